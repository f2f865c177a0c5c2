"""An exported ONNX graph classifies images in onnxruntime as the checkpoint does in torch."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image

from tests.convert.folders import clip_folder, siglip_folder
from tests.convert.tiny import HEADS, LAYERS, MLP, PATCH, SIDE, WIDTH
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.cli.app import main
from wiseft_cli.convert import configs
from wiseft_cli.errors import MissingDependencyError
from wiseft_cli.model import export_onnx
from wiseft_cli.model.classifier import load_checkpoint
from wiseft_cli.model.transforms import eval_transform

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter, in this process


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    patch = pytest.MonkeyPatch()
    key = (WIDTH, LAYERS, HEADS, MLP, PATCH)
    patch.setitem(configs.SIGLIP_TOWERS, key, ("vit_tiny_patch8_siglip", (SIDE,)))
    (folder / "classes.txt").write_text("cat\ndog\nowl\n")
    for kind, make in (("clip", clip_folder), ("siglip", siglip_folder)):
        make(folder / kind)
        words = ["--model", str(folder / kind), "--classes", str(folder / "classes.txt")]
        assert main(["zeroshot-head", *words, "-o", str(folder / f"{kind}.safetensors")]) == 0
        out = ["--format", "onnx", "-o", str(folder / f"{kind}-onnx")]
        assert main(["export", str(folder / f"{kind}.safetensors"), *out]) == 0
    patch.undo()
    return folder


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_equal_those_of_torch_for_any_batch(checkpoints: Path, kind: str) -> None:
    loaded = load_checkpoint(checkpoints / f"{kind}.safetensors")
    session = session_of(checkpoints / f"{kind}-onnx")
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, loaded.model(images).numpy(), rtol=1e-4, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == ["cat", "dog", "owl"]
    assert json.loads(facts["preprocess"])["mean"] == loaded.card.preprocess["mean"]
    assert facts["checkpoint"] == loaded.card.digest
    here = str(Path(export_onnx.__file__).parents[2])
    assert here.encode() not in (checkpoints / f"{kind}-onnx" / "model.onnx").read_bytes()


def test_the_code_in_the_readme_gives_the_class_of_the_checkpoint(
    checkpoints: Path, tmp_path: Path, monkeypatch: Any, capsys: Captured
) -> None:
    checkpoint = checkpoints / "clip.safetensors"
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").symlink_to(checkpoints / "clip-onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")
    (code,) = re.findall(r"```python\n(.*?)```", Path("FOLDER/README.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    capsys.readouterr()
    exec(code.replace("photo.jpg", "photo.png"), scope)
    loaded, image = load_checkpoint(checkpoint), Image.open("photo.png")
    expected = loaded.transform(image)
    np.testing.assert_allclose(scope["prepare"](image)[0], expected.numpy(), atol=1e-5)
    with torch.no_grad():
        best = int(loaded.model(expected[None]).argmax())
    assert capsys.readouterr().out == f"{loaded.class_names[best]}\n"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, (32, 32), (24, 40)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("orientation", ["ignore", "apply"])
def test_the_code_in_the_readme_prepares_images_as_every_card_says(
    interpolation: str, size: Any, mode: str, orientation: str
) -> None:
    stated = {"size": size, "interpolation": interpolation, "resize_mode": mode, "fill_color": 7}
    preprocess = {**stated, "mean": [0.5] * 3, "std": [0.25] * 3, "exif_orientation": orientation}
    code = export_onnx._usage(Card(role="zeroshot", preprocess=preprocess)).code
    scope: dict[str, Any] = {}
    exec(re.sub(r"\n(session|names|\(logits,\)|print).*", "", code), scope)
    for shape in ((47, 61, 3), (61, 47, 3), (30, 90, 3), (20, 7, 3), (32, 32, 3)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        image.getexif()[ExifTags.Base.Orientation] = 6
        file = io.BytesIO()
        image.save(file, "png", exif=image.getexif())
        image = Image.open(file)
        expected = eval_transform(preprocess)(image).numpy()
        np.testing.assert_allclose(scope["prepare"](image)[0], expected, atol=1e-5)


def test_two_exports_have_the_same_bytes(
    checkpoints: Path, tmp_path: Path, capsys: Captured
) -> None:
    words = ["export", str(checkpoints / "clip.safetensors"), "--format", "onnx"]
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    folders = checkpoints / "clip-onnx", tmp_path / "out"
    first, second = ((folder / "model.onnx").read_bytes() for folder in folders)
    assert first == second


def test_a_graph_with_other_logits_does_not_appear(
    checkpoints: Path, tmp_path: Path, monkeypatch: Any, capsys: Captured
) -> None:
    def export_another(_classifier: Any, _examples: Any, path: Path) -> None:
        shutil.copyfile(checkpoints / "siglip-onnx" / "model.onnx", path)

    monkeypatch.setattr(export_onnx, "_export", export_another)
    words = ["export", str(checkpoints / "clip.safetensors"), "--format", "onnx"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    assert "the exported graph computes other logits than torch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch: Any, tmp_path: Path, capsys: Captured) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError) as caught:
        export_onnx.require_onnx()
    assert caught.value.hint == "pip install 'wiseft-cli[onnx]'"
    assert main(["export", "x.safetensors", "--format", "onnx", "-o", str(tmp_path / "o")]) == 1
    assert "--format onnx needs onnxscript" in capsys.readouterr().err
