"""The examples of docs/use-elsewhere.md give the results of wiseft."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.demo.embedded import embedded_model_folder
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform

PAGE = (Path(__file__).parents[1] / "docs" / "use-elsewhere.md").read_text()


def write_merged(path: Path) -> None:
    """Write a checkpoint whose encoder differs from the embedded model's."""
    path.with_name("classes.txt").write_text("0\n1\n2\n")
    head = ["zeroshot-head", "--model", "local-dir:tiny-clip", "--classes", "classes.txt"]
    assert main([*head, "-o", "start.safetensors"]) == 0
    generator = np.random.default_rng(0)
    with open_checkpoint(Path("start.safetensors")) as reader:
        arrays = {name: reader.read_array(name) for name in reader.tensors}
    for name, array in arrays.items():
        if name.startswith("visual.") and name.endswith("conv1.weight"):
            arrays[name] = array * generator.uniform(0.9, 1.1, array.shape).astype(np.float32)
    write_checkpoint(path, arrays, read_card(Path("start.safetensors")))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder in which the page's code ran, and the variables of the Python code."""
    folder = tmp_path_factory.mktemp("elsewhere")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(embedded_model_folder(), "tiny-clip")
        pixels = np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("photo.png")
        write_merged(Path("merged.safetensors"))
        for language, text in re.findall(r"^```(console|python)\n(.*?)^```$", PAGE, re.M | re.S):
            if language == "console":
                command, _ = text.splitlines()
                assert main(shlex.split(command.removeprefix("$ wiseft "))) == 0
            else:
                exec(text, names)
    return folder, names


def test_page_has_one_command_and_its_python_code_runs(ran: Any) -> None:
    assert re.findall(r"^\$ wiseft (\w+)", PAGE, re.M) == ["export"]
    # tests/test_coming_from.py runs commands like those without a prompt, with a ViT.
    _, names = ran
    assert names["probabilities"].shape == (1, 2)


def test_exported_and_plain_models_have_the_checkpoints_encoder(ran: Any) -> None:
    folder, names = ran
    classifier, _ = load_classifier(folder / "merged.safetensors")
    with torch.no_grad():
        expected = classifier.encode_image(names["images"])
    assert torch.equal(names["image_features"], expected)
    assert torch.equal(names["features"], expected)
    assert not any(name.startswith("visual.") for name in names["missing"])
    assert "logit_scale" in names["missing"]


def test_classifier_without_wiseft_gives_the_logits_of_wiseft(ran: Any) -> None:
    folder, names = ran
    classifier, card = load_classifier(folder / "merged.safetensors")
    transform = eval_transform(card.preprocess or {})
    images = transform(Image.open(folder / "photo.png"))[None]
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], classifier(images), rtol=1e-5, atol=1e-5)
    assert names["names"] == ["0", "1", "2"]


def write_images(folder: Path) -> list[str]:
    """Write one image per mode that `predict` treats in its own way."""
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    see_through = colour.quantize(16)
    see_through.info["transparency"] = 3
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    images = {
        "rgb.png": colour,
        "grey.png": colour.convert("L"),
        "grey-alpha.png": colour.convert("LA"),
        "rgba.png": Image.fromarray(generator.integers(0, 256, (50, 40, 4), dtype=np.uint8)),
        "palette.png": colour.quantize(16),
        "palette-alpha.png": see_through,
        "bilevel.png": colour.convert("1"),
        "grey16.png": Image.fromarray(generator.integers(0, 65536, (50, 40), dtype=np.uint16)),
        "float.tiff": Image.fromarray(generator.random((50, 40), dtype=np.float32)),
        "cmyk.jpg": colour.convert("CMYK"),
    }
    for name, image in images.items():
        image.save(folder / name)
    colour.save(folder / "turned.jpg", exif=exif)
    return [*images, "turned.jpg"]


def test_service_gives_the_probabilities_of_predict_for_every_image_mode(
    ran: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = ran
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"^```python\n(# service\.py\n.*?)^```$", PAGE, re.M | re.S)
    Path("service.py").write_text(code)
    images = write_images(folder)
    # -I: neither this package nor the working directory can be imported
    command = [sys.executable, "-I", "service.py", "merged.safetensors", *images]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    capsys.readouterr()
    options = ["--jsonl", "--workers", "0", "--device", "cpu"]
    assert main(["predict", "merged.safetensors", *images, *options]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in found] == images
    for line, ours in zip(found, expected, strict=True):
        assert [name for _, name, _ in line["classes"]] == [c["name"] for c in ours["top"]]
        assert [p for _, _, p in line["classes"]] == pytest.approx(
            [c["probability"] for c in ours["top"]], abs=1e-5
        )
