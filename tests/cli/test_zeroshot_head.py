"""`wiseft zeroshot-head`: output streams, exit codes, bytes and errors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.cli.app import main
from wiseft_cli.model.classifier import load_classifier

RunWiseft = Callable[..., "subprocess.CompletedProcess[str]"]


def head(*arguments: str, model: str = "local-dir:tiny", classes: str = "classes.txt") -> int:
    return main(["zeroshot-head", "--model", model, "--classes", classes, *arguments])


@pytest.mark.usefixtures("place")
def test_stdout_has_the_path_alone_and_stderr_the_messages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert head("-o", "z.safetensors", "--device", "cpu") == 0
    out, err = capsys.readouterr()
    assert out == "z.safetensors\n"
    source = read_card(Path("z.safetensors")).model
    assert source is not None
    assert source.source is not None
    assert err.splitlines() == [
        "classes: 3 from classes.txt (text)",
        "templates: 1, the default; 3 prompts",
        f"model: tiny, weights {source.source[:19]}..., GELU, 32x32 px",
    ]


@pytest.mark.usefixtures("place")
def test_json_has_path_digest_role_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pets/sea_lion").mkdir(parents=True)
    assert head("-o", "z.safetensors", "--json", classes="pets") == 0
    out, err = capsys.readouterr()
    warning = (
        "class names are folder names with underscores replaced by spaces (1 of 1 changed); "
        "ids are the folder names"
    )
    card = read_card(Path("z.safetensors"))
    assert json.loads(out) == {
        "path": "z.safetensors",
        "digest": card.digest,
        "role": "zeroshot",
        "alpha": None,
        "warnings": [warning],
    }
    assert card.classes == (ClassEntry("sea_lion", "sea lion"),)
    assert f"note: {warning}" in err.splitlines()


@pytest.mark.usefixtures("place")
def test_card_holds_what_later_commands_need() -> None:
    arguments = ("--templates", "templates.txt", "--template", "{}!", "-o", "z.safetensors")
    assert head(*arguments) == 0
    card = read_card(Path("z.safetensors"), roles=["zeroshot"])
    assert card.templates == ("a {}.", "the {}", "{}!")
    assert card.classes == tuple(ClassEntry(name, name) for name in ("cat", "dog", "owl"))
    assert card.model is not None
    assert card.model.name == "tiny"
    assert card.model.config["quick_gelu"] is False
    assert card.model.config["vision_cfg"]["image_size"] == [32, 32]
    assert card.preprocess == {
        "exif_orientation": "apply",
        "size": [32, 32],
        "mode": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    }
    (entry,) = card.history
    assert (entry.command, entry.inputs, entry.output) == ("zeroshot-head", (), None)
    assert entry.options["weights"] == card.model.source
    assert entry.options.keys() == {"model", "pretrained", "weights", "classes", "templates"}


@pytest.mark.parametrize("folder", ["tiny", "tiny-siglip"])
@pytest.mark.usefixtures("place")
def test_classifier_gives_the_logits_of_open_clip(folder: str) -> None:
    assert head("-o", "z.safetensors", model=f"local-dir:{folder}") == 0
    classifier, card = load_classifier(Path("z.safetensors"))
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(
        f"local-dir:{folder}", bpe_path=str(Path(folder) / "bpe.txt.gz")
    )
    weights = open_clip.build_zero_shot_classifier(
        model.eval(), tokenizer, ["cat", "dog", "owl"], ["a photo of a {}."]
    )
    size = model.visual.image_size[0]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.encode_image(images, normalize=True)
        expected = model.logit_scale.exp() * features @ weights
        if model.logit_bias is not None:
            expected = expected + model.logit_bias
        torch.testing.assert_close(classifier(images), expected, rtol=1e-5, atol=1e-5)
    assert card.logit_scale == model.logit_scale.detach().exp().item()


@pytest.mark.usefixtures("place")
def test_file_holds_only_the_image_tower_and_the_head() -> None:
    assert head("-o", "z.safetensors") == 0
    with open_checkpoint(Path("z.safetensors")) as reader:
        names = set(reader.tensors)
        dtypes = {info.dtype for info in reader.tensors.values()}
    model = open_clip.create_model("local-dir:tiny")
    expected = {name for name in model.state_dict() if name.startswith("visual.")}
    assert names == expected | {"classification_head.weight", "classification_head.bias"}
    assert dtypes == {"F32"}


def test_two_processes_write_the_same_bytes_without_any_path(
    place: Path, run_wiseft: RunWiseft, run_wiseft_process: RunWiseft
) -> None:
    other = place / "elsewhere"
    other.mkdir()
    runs = [
        execute(
            "zeroshot-head",
            "--model",
            f"local-dir:{place / 'tiny'}",
            "--classes",
            place / "classes.txt",
            "-o",
            cwd / "z.safetensors",
            cwd=cwd,
        )
        for execute, cwd in ((run_wiseft, place), (run_wiseft_process, other))
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "arning" not in run.stderr
    first, second = (cwd / "z.safetensors" for cwd in (place, other))
    assert first.read_bytes() == second.read_bytes()
    assert str(place).encode() not in first.read_bytes()
    assert runs[0].stdout == f"{first}\n"


def test_error_has_no_traceback_and_leaves_no_file(
    place: Path, run_wiseft_process: RunWiseft
) -> None:
    run = run_wiseft_process(
        "zeroshot-head",
        "--model",
        "RN101",
        "--pretrained",
        "openai",
        "--classes",
        "classes.txt",
        "-o",
        "z.safetensors",
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines()[-2:] == [
        "error: weights openai of RN101: not in the local cache, and HF_HUB_OFFLINE forbids "
        "downloads",
        "hint: unset HF_HUB_OFFLINE, or download them elsewhere and use --pretrained FILE",
    ]
    assert "Traceback" not in run.stderr
    assert not list(place.glob("*z.safetensors*"))


@pytest.mark.usefixtures("place")
def test_existing_output_is_rejected_before_the_model_is_searched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("z.safetensors").write_text("precious")
    assert head("-o", "z.safetensors", model="no-such-model") == 1
    assert capsys.readouterr().err.startswith("error: z.safetensors: exists already\n")
    assert Path("z.safetensors").read_text() == "precious"
    assert head("-o", "z.safetensors", "--force") == 0
    assert read_card(Path("z.safetensors")).role == "zeroshot"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "output",
    ["classes.txt", "templates.txt", "tiny/open_clip_model.safetensors", "tiny/bpe.txt.gz"],
)
def test_output_that_is_an_input_is_rejected_even_with_force(
    output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(output).read_bytes()
    assert head("--templates", "templates.txt", "-o", output, "--force") == 1
    assert f"error: {output}: is also an input" in capsys.readouterr().err
    assert Path(output).read_bytes() == before


@pytest.mark.usefixtures("place")
def test_long_prompts_are_named_and_no_file_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("classes.txt").write_text("cat\n" + "zq" * 20 + "\n")
    assert head("-o", "z.safetensors") == 1
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "error: 1 prompt longer than the 20 tokens of the model's context:",
        f"  a photo of a {'zq' * 20}.",
        "hint: shorten the templates or the class names, or cut prompts with --truncate",
    ]
    assert not Path("z.safetensors").exists()


@pytest.mark.usefixtures("place")
def test_random_and_pretrained_weights_exclude_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--random-weights", "--pretrained", "openai", "-o", "z.safetensors")
    assert head(*arguments, model="RN50") == 2
    assert capsys.readouterr().err == (
        "error: --random-weights and --pretrained exclude each other\n"
    )


@pytest.mark.usefixtures("place")
def test_random_weights_have_no_source_in_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny/open_clip_model.safetensors").unlink()
    assert head("--random-weights", "-o", "z.safetensors") == 0
    card = read_card(Path("z.safetensors"))
    assert card.model is not None
    assert card.model.source is None
    assert "model: tiny, weights random, GELU, 32x32 px" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("names", ["cat\n", "cat\ndog\n"])
def test_heads_of_one_and_two_classes_work(names: str) -> None:
    Path("classes.txt").write_text(names)
    assert head("-o", "z.safetensors") == 0
    classifier, card = load_classifier(Path("z.safetensors"))
    logits = classifier(torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, len(card.classes)) == (1, names.count("\n"))
