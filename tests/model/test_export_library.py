"""Exported folders load strictly in transformers and timm, with the logits of the checkpoint."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    SiglipModel,
    SiglipVisionModel,
)

from tests.convert.folders import clip_folder, siglip_folder
from tests.convert.tiny import HEADS, LAYERS, MLP, PATCH, SIDE, WIDTH, images
from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, HistoryInput, ModelSpec
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.convert import configs
from wiseft_cli.convert.timm_config import CLIP_TOWERS
from wiseft_cli.model.classifier import load_checkpoint
from wiseft_cli.model.export import find_repository
from wiseft_cli.reporting.model_card import Usage, render_model_card, results_of
from wiseft_cli.reporting.results import CheckpointName, read_result_lines

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    clip_folder(folder / "clip")
    siglip_folder(folder / "siglip")
    return folder


@pytest.fixture(autouse=True)
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints clip.safetensors and siglip.safetensors, moved as by fine-tuning."""
    monkeypatch.chdir(tmp_path)
    key = (WIDTH, LAYERS, HEADS, MLP, PATCH)
    monkeypatch.setitem(configs.SIGLIP_TOWERS, key, ("vit_tiny_patch8_siglip", (SIDE,)))
    Path("classes.txt").write_text("cat\ndog\nowl\n")
    for kind in ("clip", "siglip"):
        head = ["--model", str(models / kind), "--classes", "classes.txt", "-o", "z.safetensors"]
        assert main(["zeroshot-head", *head, "--force"]) == 0
        with open_checkpoint(Path("z.safetensors")) as reader:
            arrays = {name: reader.read_array(name) for name in reader.tensors}
        generator = np.random.default_rng(0)
        for array in arrays.values():
            array += 0.02 * generator.standard_normal(array.shape).astype(np.float32)
        write_checkpoint(Path(f"{kind}.safetensors"), arrays, read_card(Path("z.safetensors")))


def export(kind: str, *arguments: str) -> None:
    assert main(["export", f"{kind}.safetensors", "-o", "out", *arguments]) == 0


def expected(kind: str) -> torch.Tensor:
    with torch.no_grad():
        return load_checkpoint(f"{kind}.safetensors").model(images())


def module_of(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location(
        "image_classifier", folder / "image_classifier.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ImageClassifier(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_the_classifier_of_the_folder_has_the_logits_of_the_checkpoint(
    kind: str, library: str
) -> None:
    export(kind, "--format", library)
    classifier = module_of(Path("out"))
    with torch.no_grad():
        torch.testing.assert_close(classifier(images()), expected(kind), atol=2e-5, rtol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    top = classifier.predict(Image.fromarray(pixels), top=2)
    assert len(top) == 2
    assert {name for name, _ in top} <= {"cat", "dog", "owl"}


LOADERS = {
    "clip": (CLIPVisionModelWithProjection, CLIPModel),
    "siglip": (SiglipVisionModel, SiglipModel),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("is_whole", [False, True])
def test_transformers_loads_the_folder_strictly(kind: str, is_whole: bool, models: Path) -> None:
    export(kind, "--format", "transformers", *(["--model", str(models / kind)] * is_whole))
    loader = LOADERS[kind][is_whole]
    model, report = loader.from_pretrained("out", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    processor = AutoImageProcessor.from_pretrained("out")
    card = read_card(Path(f"{kind}.safetensors"))
    assert list(processor.image_mean) == (card.preprocess or {})["mean"]
    if is_whole:
        original = loader.from_pretrained(models / kind).eval()
        texts = ["a photo of a cat.", "a photo of the dog."]
        tokenizers = [AutoTokenizer.from_pretrained(path) for path in ("out", models / kind)]
        ids = [
            tokenizer(texts, padding="max_length", max_length=20).input_ids
            for tokenizer in tokenizers
        ]
        assert ids[0] == ids[1]
        tokens = torch.tensor(ids[0])
        with torch.no_grad():
            found, wanted = (
                one.text_model(input_ids=tokens).pooler_output for one in (model.eval(), original)
            )
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_timm_builds_the_folder_with_the_preprocessing_of_the_card(kind: str) -> None:
    export(kind, "--format", "timm")
    model = timm.create_model("local-dir:out", pretrained=True)
    config = timm.data.resolve_data_config(model=model)
    card = read_card(Path(f"{kind}.safetensors"))
    assert list(config["mean"]) == (card.preprocess or {})["mean"]
    assert tuple(config["input_size"]) == (3, SIDE, SIDE)
    transform = timm.data.create_transform(**config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    torch.testing.assert_close(
        transform(image), load_checkpoint(f"{kind}.safetensors").transform(image)
    )


def test_known_towers_have_the_shape_that_timm_builds() -> None:
    for shape, (name, size) in CLIP_TOWERS.items():
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        block = model.blocks[0]
        patch = model.patch_embed.patch_size[0]
        width, _, heads, mlp, _ = shape
        assert (model.embed_dim, block.attn.num_heads, block.mlp.fc1.out_features, patch) == (
            width,
            heads,
            mlp,
            shape[4],
        )
        assert model.patch_embed.img_size == (size, size)


def write_results(digest: str | None) -> None:
    line = {
        "schema": 1, "checkpoints": [{"name": "x", "role": "zeroshot", "digest": digest}],
        "alpha": None, "set": "imagenet-r", "reference": False, "data_fingerprint": "sha256:0",
        "n_images": 30000, "n_unreadable": 0, "n_classes": 200, "join": "id", "primary": "top1",
        "metrics": {"top1": {"value": 0.7712, "low": 0.76, "high": 0.78}}, "precision": "fp32",
        "version": "0.1.0",
    }  # fmt: skip
    Path("results.jsonl").write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize("library", ["transformers", "timm", "open_clip"])
def test_the_model_card_has_front_matter_and_metrics(library: str, models: Path) -> None:
    write_results(read_card(Path("clip.safetensors")).digest)
    model = [] if library == "timm" else ["--model", str(models / "clip")]
    export("clip", "--format", library, "--results", "results.jsonl", *model)
    text = Path("out/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["library_name"] == library
    assert fields["datasets"] == ["imagenet-r"]
    assert "license" not in fields
    assert "# license: choose" in front
    metric = fields["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["name"], metric["value"]) == ("top1", 0.7712)
    assert "| imagenet-r | 30,000 | top1 | 77.12 % | 76.00 to 78.00 |" in body
    assert "3 classes: cat, dog, owl." in body
    assert str(Path.cwd()) not in text


def test_names_in_the_model_card_are_no_markup() -> None:
    write_results("sha256:a")
    (line,) = read_result_lines(Path("results.jsonl"))
    hostile = "<img src=x> | [a](http://b) `c`"
    card = replace(
        read_card(Path("clip.safetensors")),
        model=ModelSpec(hostile, hostile, {}),
        classes=(ClassEntry("0", hostile),),
    )
    lines = [replace(line, set_name=hostile)]
    text = render_model_card(card, Usage("timm", "x"), name=hostile, lines=lines)
    _, body = text.split("\n---\n", 1)
    escaped = r"&lt;img src=x&gt; \| \[a\](http://b) \`c\`"
    assert hostile not in body
    assert body.count(escaped) == 5  # the title, the model, its source, the set and the class
    assert f"| {escaped} | 30,000 | top1 |" in body


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("x", "hf-hub:org/model", "org/model"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("ViT-B-32", "sha256:0", None),
        ("ViT-B-32", None, None),
    ],
)
def test_the_base_model_is_its_repository_on_the_hub(
    name: str, source: str | None, expected: str | None
) -> None:
    card = read_card(Path("clip.safetensors"))
    assert find_repository(replace(card, model=ModelSpec(name, source, {}))) == expected


def test_a_row_of_an_alpha_belongs_to_the_merge_with_the_same_inputs() -> None:
    write_results("sha256:a")
    (line,) = read_result_lines(Path("results.jsonl"))
    parts = (
        CheckpointName("z", "zeroshot", "sha256:a"),
        CheckpointName("f", "finetuned", "sha256:b"),
    )
    row = replace(line, checkpoints=parts, alpha="0.5")
    inputs = (HistoryInput("zeroshot", "sha256:a"), HistoryInput("finetuned", "sha256:b"))
    card = Card("merged", alpha="0.5", history=(HistoryEntry("merge", "0", {}, inputs),))
    assert results_of(card, [row, line]) == [row]
    assert results_of(replace(card, alpha="0.3"), [row]) == []
    assert results_of(replace(card, history=()), [row]) == []


def test_results_of_another_checkpoint_are_reported_and_left_out(capsys: Captured) -> None:
    write_results("sha256:" + "0" * 64)
    export("clip", "--format", "timm", "--results", "results.jsonl")
    assert "warning: results.jsonl: no line has the digest of clip.safetensors" in (
        capsys.readouterr().err
    )
    assert "imagenet-r" not in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--format open_clip needs --model"),
        (["--format", "timm", "--model", "x"], "--model does not apply to --format timm"),
        (["--format", "timm", "--pretrained", "x"], "--pretrained and --random-weights need"),
    ],
)
def test_options_that_do_not_fit_the_format_are_rejected(
    arguments: list[str], expected: str, capsys: Captured
) -> None:
    assert main(["export", "clip.safetensors", "-o", "out", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_same_checkpoint_gives_the_same_bytes() -> None:
    for name in ("a", "b"):
        assert main(["export", "clip.safetensors", "--format", "transformers", "-o", name]) == 0
    files = sorted(path.name for path in Path("a").iterdir())
    assert files == sorted(path.name for path in Path("b").iterdir())
    assert all((Path("a") / n).read_bytes() == (Path("b") / n).read_bytes() for n in files)


def test_a_timm_folder_holds_the_projection_as_its_head() -> None:
    export("clip", "--format", "timm")
    tensors = load_file("out/model.safetensors")
    with open_checkpoint(Path("clip.safetensors")) as reader:
        projection = reader.read_array("visual.proj")
    assert np.array_equal(tensors["head.weight"].numpy(), projection.T)
    assert not tensors["head.bias"].any()


def test_an_image_encoder_of_another_kind_is_rejected(capsys: Captured, models: Path) -> None:
    card = read_card(Path("clip.safetensors"))
    assert card.model is not None
    vision = card.model.config["vision_cfg"] | {"layers": [1, 1, 1, 1]}
    changed = replace(
        card, model=replace(card.model, config={**card.model.config, "vision_cfg": vision})
    )
    with open_checkpoint(Path("clip.safetensors")) as reader:
        arrays = {name: reader.read_array(name) for name in reader.tensors}
    write_checkpoint(Path("resnet.safetensors"), arrays, changed)
    for library in ("transformers", "timm"):
        assert main(["export", "resnet.safetensors", "--format", library, "-o", "out"]) == 1
        assert "cannot express this image encoder: it is a ResNet" in capsys.readouterr().err
        assert not Path("out").exists()
