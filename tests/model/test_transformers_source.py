"""`zeroshot-head --model` takes folders of transformers and computes what transformers does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, SiglipModel

from tests.convert.folders import clip_folder, edit_json, siglip_folder
from tests.convert.tiny import HEADS, LAYERS, MLP, PATCH, SIDE, WIDTH, images
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.convert import configs
from wiseft_cli.model.classifier import load_checkpoint

CLASSES = ["cat", "dog", "owl"]
pytestmark = pytest.mark.filterwarnings("ignore:Support for class-based")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip_folder(tmp_path_factory.mktemp("models") / "tiny-siglip")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    key = (WIDTH, LAYERS, HEADS, MLP, PATCH)
    monkeypatch.setitem(configs.SIGLIP_TOWERS, key, ("vit_tiny_patch8_siglip", (SIDE,)))
    Path("classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


@pytest.fixture
def copy(clip: Path, place: Path) -> Path:
    return Path(shutil.copytree(clip, place / "copy"))


def head(model: str, *more: str) -> int:
    arguments = ["--model", model, "--classes", "classes.txt", "-o", "z.safetensors"]
    return main(["zeroshot-head", *arguments, *more])


def expected_logits(model: Any, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [f"a photo of a {name}." for name in CLASSES]
    tokens = tokenizer(prompts, padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        inputs = {"input_ids": tokens.input_ids, "pixel_values": images(8)}
        if "attention_mask" in tokens and isinstance(model, CLIPModel):
            inputs["attention_mask"] = tokens.attention_mask
        return model(**inputs).logits_per_image  # type: ignore[no-any-return]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("spelling", ["{}", "local-dir:{}"])
def test_logits_equal_those_of_clip_model(clip: Path, spelling: str) -> None:
    assert head(spelling.format(clip)) == 0
    loaded = load_checkpoint("z.safetensors")
    with torch.no_grad():
        found = loaded.model(images(8))
    expected = expected_logits(CLIPModel.from_pretrained(clip).eval(), clip)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert loaded.card.model is not None
    assert (loaded.card.model.name, loaded.card.model.config["quick_gelu"]) == ("tiny-clip", True)


@pytest.mark.usefixtures("place")
def test_logits_equal_those_of_siglip_model(siglip: Path) -> None:
    assert head(str(siglip)) == 0
    with torch.no_grad():
        found = load_checkpoint("z.safetensors").model(images(8))
    expected = expected_logits(SiglipModel.from_pretrained(siglip).eval(), siglip)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("size", [(SIDE, SIDE), (3 * SIDE, 3 * SIDE), (70, 50)])
def test_images_are_prepared_as_the_processor_does(clip: Path, size: tuple[int, int]) -> None:
    assert head(str(clip)) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    found = load_checkpoint("z.safetensors").transform(image)
    processor = CLIPImageProcessor.from_pretrained(clip)
    expected = processor(image, return_tensors="pt").pixel_values[0]
    # Resizing rounds differently in Pillow and in torchvision: by one level of 255 here.
    tolerance = 1e-6 if size == (SIDE, SIDE) else 1.01 / 255 / 0.2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.usefixtures("place")
def test_a_sharded_folder_gives_the_same_head(clip: Path, place: Path) -> None:
    sharded = place / "sharded" / "tiny-clip"
    shutil.copytree(clip, sharded, ignore=shutil.ignore_patterns("model.safetensors"))
    CLIPModel.from_pretrained(clip).save_pretrained(sharded, max_shard_size="50KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    assert head(str(clip)) == 0
    digest = read_card(Path("z.safetensors")).digest
    assert head(str(sharded), "--force") == 0
    assert read_card(Path("z.safetensors")).digest == digest


def test_a_folder_with_a_file_of_torch_save_gives_the_same_head(clip: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]  # as old files have
    torch.save(tensors, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    assert head(str(clip)) == 0
    digest = read_card(Path("z.safetensors")).digest
    assert head("copy", "--force") == 0
    assert read_card(Path("z.safetensors")).digest == digest


@pytest.mark.usefixtures("place")
def test_a_repository_of_the_hub_in_the_form_of_transformers_is_used(
    clip: Path,
) -> None:
    repository = Path(constants.HF_HUB_CACHE) / "models--wiseft-test--tiny-clip"
    shutil.copytree(clip, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    try:
        assert head("hf-hub:wiseft-test/tiny-clip") == 0
    finally:
        shutil.rmtree(repository)
    card = read_card(Path("z.safetensors"))
    assert head(str(clip), "--force") == 0
    assert read_card(Path("z.safetensors")).digest == card.digest
    assert card.model is not None
    assert card.model.source == "hf-hub:wiseft-test/tiny-clip"


def test_weights_with_names_of_transformers_fit_an_open_clip_folder(clip: Path, copy: Path) -> None:
    assert head(str(clip)) == 0
    digest = read_card(Path("z.safetensors")).digest
    config = configs.open_clip_model_config(configs.read_transformers_config(copy), copy)
    config["text_cfg"]["hf_tokenizer_name"] = "tiny"
    (copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    assert head("local-dir:copy", "--force") == 0
    assert read_card(Path("z.safetensors")).digest == digest


OLD_PROCESSOR = {
    "crop_size": SIDE, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3], "resample": 3, "size": SIDE,
}  # fmt: skip


def test_old_files_of_transformers_mean_the_same(clip: Path, copy: Path) -> None:
    (copy / "preprocessor_config.json").write_text(json.dumps(OLD_PROCESSOR))
    config = json.loads((copy / "config.json").read_text())
    config |= {"text_config_dict": None, "vision_config_dict": config["vision_config"]}
    config["vision_config"] = {"hidden_size": 8, "output_attentions": False}
    (copy / "config.json").write_text(json.dumps(config))
    assert head(str(clip)) == 0
    card = read_card(Path("z.safetensors"))
    assert head("copy", "--force") == 0
    found = read_card(Path("z.safetensors"))
    assert (found.digest, found.preprocess) == (card.digest, card.preprocess)


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    kinds = {"clip": "CLIPConfig", "siglip": "SiglipConfig", "siglip2": "Siglip2Config"}
    for kind, name in kinds.items():
        library = getattr(transformers, name)().to_dict()
        for part, defaults in configs.DEFAULTS[kind].items():
            for key, value in defaults.items():
                assert library[part][key] == value, (kind, part, key)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"model_type": "bert"}, "model type 'bert', expected clip, siglip, siglip2"),
    "diffusion": ({"model_type": None, "_class_name": "UNet2D"}, "model type 'UNet2D'"),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq"}},
        "the model is quantized (gptq)",
    ),
    "projection": ({"projection_dim": 25}, "visual_projection.weight: shape (24, 32)"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_wrong_config_is_rejected(
    case: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected = BAD_CONFIGS[case]
    edit_json(copy / "config.json", **changes)
    assert head("copy") == 1
    error = capsys.readouterr().err
    assert "config.json" in error
    assert expected in error
    assert not Path("z.safetensors").exists()


BAD_PROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "other size": ({"crop_size": {"height": 48, "width": 48}}, "cannot make images of 32 x 32"),
    "resized to more than the crop": ({"size": {"shortest_edge": 40}}, "cannot make images"),
    "interpolation": ({"resample": 0}, "resample: 0, expected 2 or 3"),
    "rescale": ({"rescale_factor": 1 / 127.5}, "rescale_factor: 0.0078"),
}


@pytest.mark.parametrize("case", BAD_PROCESSORS)
def test_preprocessing_that_does_not_fit_is_rejected(
    case: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected = BAD_PROCESSORS[case]
    edit_json(copy / "preprocessor_config.json", **changes)
    assert head("copy") == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / name).unlink()
    assert head("local-dir:copy") == 1
    error = capsys.readouterr().err
    assert (name if name != "config.json" else "open_clip_config.json") in error


def test_a_tokenizer_of_another_vocabulary_is_rejected(
    siglip: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (copy / name).unlink()
    for path in siglip.glob("tokenizer*"):
        shutil.copy(path, copy)
    assert head("copy") == 1
    error = capsys.readouterr().err
    assert "ends prompts with token 0, but its text tower takes the feature of token 613" in error
    assert "the tokenizer belongs to another model" in error


def test_a_missing_shard_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CLIPModel.from_pretrained(copy).save_pretrained(copy, max_shard_size="50KB")
    (copy / "model.safetensors").unlink()
    shard = sorted(copy.glob("model-*"))[1]
    shard.unlink()
    assert head("copy") == 1
    assert f"{shard.name}: no such file" in capsys.readouterr().err


def test_old_configs_with_id_2_use_the_highest_token(clip: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0}
    (copy / "config.json").write_text(json.dumps(config))
    assert head(str(clip)) == 0
    digest = read_card(Path("z.safetensors")).digest
    assert head("copy", "--force") == 0
    assert read_card(Path("z.safetensors")).digest == digest
