"""A model folder converts as a whole: config, preprocessing, tokenizer and weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from tests.clip_merges import write_clip_merges
from tests.convert.folders import MERGES, clip_folder, edit_json, siglip_folder
from tests.convert.tiny import HEADS, LAYERS, MLP, PATCH, SIDE, WIDTH, images, raw_tensors
from wiseft_cli.cli.app import main
from wiseft_cli.convert import configs

Captured = pytest.CaptureFixture[str]
TEXTS = ["a photo of a cat", "the dog."]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key = (WIDTH, LAYERS, HEADS, MLP, PATCH)
    monkeypatch.setitem(configs.SIGLIP_TOWERS, key, ("vit_tiny_patch8_siglip", (SIDE,)))


def convert(*arguments: str) -> None:
    assert main(["convert", *arguments]) == 0


def test_open_clip_loads_a_converted_clip_folder_with_the_same_features() -> None:
    clip_folder(Path("hf"))
    convert("hf", "-o", "oc/")
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:oc")
    tokenizer = open_clip.get_tokenizer("local-dir:oc")
    original = CLIPModel.from_pretrained("hf").eval()
    tokens = AutoTokenizer.from_pretrained("hf")(
        TEXTS, padding="max_length", max_length=20, return_tensors="pt"
    )
    with torch.no_grad():
        expected = original(**tokens, pixel_values=images())
        image, text, scale = model.eval()(images(), tokenizer(TEXTS))
    logits = scale * image @ text.T
    torch.testing.assert_close(logits, expected.logits_per_image, atol=2e-5, rtol=1e-5)
    assert preprocess.transforms[0].size == SIDE


@pytest.mark.parametrize(
    ("make", "loader"), [(clip_folder, CLIPModel), (siglip_folder, SiglipModel)]
)
def test_a_folder_survives_the_way_to_open_clip_and_back(make: object, loader: type) -> None:
    make(Path("hf"))  # type: ignore[operator]
    convert("hf", "-o", "oc/")
    convert("oc", "--to", "transformers", "-o", "back/")
    assert raw_tensors(Path("back/model.safetensors")) == raw_tensors(Path("hf/model.safetensors"))
    convert("back", "-o", "again/")
    assert raw_tensors(Path("again/open_clip_model.safetensors")) == raw_tensors(
        Path("oc/open_clip_model.safetensors")
    )
    model, report = loader.from_pretrained("back", output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(report.values()), report
    original = loader.from_pretrained("hf")  # type: ignore[attr-defined]
    tokenized = [AutoTokenizer.from_pretrained(f)(TEXTS).input_ids for f in ("hf", "back")]
    assert tokenized[0] == tokenized[1]
    processors = [AutoImageProcessor.from_pretrained(f).to_dict() for f in ("hf", "back")]
    for key in ("image_mean", "image_std", "size", "resample", "do_center_crop"):
        assert processors[0].get(key) == processors[1].get(key) or not processors[1].get(key)
    tokens = torch.tensor([AutoTokenizer.from_pretrained("hf")(TEXTS[0]).input_ids])
    with torch.no_grad():
        found, expected = (
            one.eval()(input_ids=tokens, pixel_values=images()).logits_per_image
            for one in (model, original)
        )
    torch.testing.assert_close(found, expected)


def nested_folder(bpe_path: object) -> None:
    """Write oc/ of open_clip with its own byte-pair file in a folder of it."""
    clip_folder(Path("hf"))
    convert("hf", "-o", "oc/")
    for path in (*Path("oc").glob("vocab*"), *Path("oc").glob("*tok*"), Path("oc/merges.txt")):
        path.unlink(missing_ok=True)
    Path("oc/parts").mkdir()
    write_clip_merges(Path("oc/parts/bpe.txt.gz"), MERGES)
    document = json.loads(Path("oc/open_clip_config.json").read_text())
    document["model_cfg"]["text_cfg"].pop("hf_tokenizer_name", None)
    document["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": bpe_path}
    Path("oc/open_clip_config.json").write_text(json.dumps(document))


def test_merges_in_a_folder_of_the_model_are_named_as_they_are_copied() -> None:
    nested_folder("parts/bpe.txt.gz")
    convert("oc", "-o", "copy/")
    document = json.loads(Path("copy/open_clip_config.json").read_text())
    assert document["model_cfg"]["text_cfg"]["tokenizer_kwargs"] == {"bpe_path": "bpe.txt.gz"}
    assert Path("copy/bpe.txt.gz").read_bytes() == Path("oc/parts/bpe.txt.gz").read_bytes()


@pytest.mark.parametrize("bpe_path", ["../secret.gz", "{here}/secret.gz", 7, ["a"], "", "gone.gz"])
@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_merges_outside_the_model_folder_are_not_copied(
    bpe_path: object, library: str, capsys: Captured
) -> None:
    if isinstance(bpe_path, str):
        bpe_path = bpe_path.format(here=Path.cwd())
    nested_folder(bpe_path)
    write_clip_merges(Path("secret.gz"), MERGES)
    capsys.readouterr()
    assert main(["convert", "oc", "--to", library, "-o", "copy/"]) == 1
    error = capsys.readouterr().err
    if bpe_path == "gone.gz":
        assert "oc/gone.gz: not found, but bpe_path in oc/open_clip_config.json names it" in error
    else:
        assert f"bpe_path is {bpe_path!r}, expected the name of a file inside" in error
    assert not Path("copy").exists()


def test_timm_loads_a_converted_folder_with_the_same_features() -> None:
    clip_folder(Path("hf"))
    convert("hf", "--to", "timm", "-o", "timm/")
    model = timm.create_model("local-dir:timm", pretrained=True).eval()
    original = CLIPModel.from_pretrained("hf").eval()
    with torch.no_grad():
        expected = original.visual_projection(original.vision_model(images()).pooler_output)
        torch.testing.assert_close(model(images()), expected, atol=1e-5, rtol=1e-5)


def test_clips_own_vocabulary_is_written_as_transformers_has_it() -> None:
    from wiseft_cli.convert.clip_vocabulary import default_merges, write_clip_tokenizer

    Path("clip").mkdir()
    write_clip_tokenizer(Path("clip"), default_merges(), context_length=77)
    Path("clip/config.json").write_text('{"model_type": "clip"}')
    tokenizer = AutoTokenizer.from_pretrained("clip")
    reference = open_clip.SimpleTokenizer()
    assert len(tokenizer) == 49408
    texts = ["a photo of a tree-house.", "", "Ünicode 語, 123!", "it's  SPACED", "x" * 300]
    found = tokenizer(texts, padding="max_length", max_length=77, truncation=True).input_ids
    pad = tokenizer.pad_token_id
    for row, expected in zip(found, reference(texts).tolist(), strict=True):
        length = expected.index(49407) + 1
        assert row[:length] == expected[:length]
        assert set(row[length:]) <= {pad}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("config.json", "no config.json beside the weights"),
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("vocab.json merges.txt tokenizer_config.json", "no tokenizer files"),
    ],
)
def test_missing_files_are_named_and_nothing_is_written(
    damage: str, expected: str, capsys: Captured
) -> None:
    clip_folder(Path("hf"))
    for name in damage.split():
        Path("hf", name).unlink()
    assert main(["convert", "hf", "-o", "oc/"]) == 1
    assert expected in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["hf"]


def test_a_config_that_contradicts_the_tensors_is_rejected(capsys: Captured) -> None:
    clip_folder(Path("hf"))
    config = json.loads(Path("hf/config.json").read_text())
    edit_json(
        Path("hf/config.json"), vision_config=config["vision_config"] | {"num_hidden_layers": 2}
    )
    assert main(["convert", "hf", "-o", "oc/"]) == 1
    error = capsys.readouterr().err
    assert "contradicts the weights" in error
    assert "vision_model.encoder.layers.2.mlp.fc1.weight" in error
    assert not Path("oc").exists()


def test_a_timm_model_makes_no_folder_of_open_clip(capsys: Captured) -> None:
    clip_folder(Path("hf"))
    convert("hf", "--to", "timm", "-o", "timm/")
    assert main(["convert", "timm", "-o", "oc/"]) == 1
    assert "a model of timm has no text tower" in capsys.readouterr().err
    convert("timm", "-o", "oc.safetensors")


def test_a_folder_is_replaced_only_if_convert_wrote_it(capsys: Captured) -> None:
    clip_folder(Path("hf"))
    convert("hf", "-o", "oc/")
    assert main(["convert", "hf", "-o", "oc/"]) == 1
    convert("hf", "-o", "oc/", "--force")
    Path("oc/notes.txt").write_text("precious")
    assert main(["convert", "hf", "-o", "oc/", "--force"]) == 1
    assert "notes.txt" in capsys.readouterr().err
