"""`wiseft datasets`, and published sets by name in other commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.cli.test_zeroshot_head import head
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.data.dataset_card import dataset_card_names, read_dataset_card
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.images import decode_sample
from wiseft_cli.data.suite import suite_names
from wiseft_cli.model.zeroshot_prompts import resolve_prompts

Captured = pytest.CaptureFixture[str]


def make_copy(root: Path, folders: list[str]) -> Path:
    random = np.random.default_rng(0)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / folder / "1.jpg")
    return root


def test_list_has_one_line_per_set_and_suite_and_json_the_whole_cards(
    capsys: Captured,
) -> None:
    assert main(["datasets"]) == 0
    sets, suites, others = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in sets.splitlines()] == list(dataset_card_names())
    assert re.search(r"^imagenet-r +30,000 images +200 classes  ImageNet-R", sets, re.M)
    assert others == "torchvision:CLASS names any other set of classes that torchvision reads\n"
    title, *rows = suites.splitlines()
    assert title == "suites, for wiseft eval --suite NAME --root DIR:"
    assert [line.split()[0] for line in rows] == list(suite_names())
    assert main(["datasets", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    cards = {card["name"]: card for card in document["sets"]}
    assert len(cards["imagenet-r"]["class_ids"]) == 200
    assert document["suites"]["imagenet-shifts"][:2] == ["imagenet", "imagenet-v2"]


def test_show_prints_a_card(capsys: Captured) -> None:
    assert main(["datasets", "show", "imagenet-v2"]) == 0
    out = capsys.readouterr().out
    assert "licence    MIT (its repository)\n" in out
    assert "n_images   10,000\n" in out


def test_show_prints_each_split_once(capsys: Captured) -> None:
    assert main(["datasets", "show", "fmow"]) == 0
    of_first, of_second, *_ = capsys.readouterr().out.split("\nsplit      ")[1:]
    assert of_first.splitlines() == [
        "id_test",
        "folders    fmow_v1.1",
        "n_images   11,327",
        "n_classes  unknown",
        "primary    top1",
        "options    original: test, before: 2013",
    ]
    assert of_second.startswith("test\n")


def test_split_option_is_only_for_check(capsys: Captured) -> None:
    assert main(["datasets", "show", "fmow", "--split", "val"]) == 2
    assert capsys.readouterr().err == "error: --split is only for wiseft datasets check\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show"], "wiseft datasets show NAME"),
        (["check", "imagenet-r"], "wiseft datasets check NAME ROOT"),
        (["list", "imagenet-r"], "wiseft datasets list"),
        (["show", "imagenet-r", "/data"], "wiseft datasets show NAME"),
    ],
)
def test_missing_or_extra_arguments_are_usage_errors(
    capsys: Captured, words: list[str], expected: str
) -> None:
    assert main(["datasets", *words]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: expected: {expected}"


def test_check_reports_differences_and_exits_with_1(tmp_path: Path, capsys: Captured) -> None:
    root = make_copy(tmp_path, ["n01443537", "n02510455"])
    (root / "n02510455/1.jpg").write_bytes(b"no image")
    assert main(["datasets", "check", "imagenet-r", str(root), "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["n_images"], document["n_classes"], document["n_decoded"]) == (2, 2, 1)
    assert len(document["faults"]) == 3
    assert f"cannot read image {root / 'n02510455/1.jpg'}: not an image" in err


def test_check_of_a_complete_copy_prints_one_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "two.txt").write_text("a\tcat\nb\tdog\n")
    (tmp_path / "two.yaml").write_text(
        "{name: two, title: Two, source: 'https://example.org', licence: CC0, citation: none,\n"
        " layout: index-folders, folders: [inner], classes: two.txt, n_images: 2, n_classes: 2}\n"
    )
    make_copy(tmp_path / "down/inner", ["0", "1"])
    down = tmp_path / "down"
    assert main(["datasets", "check", str(tmp_path / "two.yaml"), str(down)]) == 0
    out, err = capsys.readouterr()
    assert out == f"two: {down / 'inner'}: 2 images of 2 classes; 2 decoded\n"
    assert err == ""


@pytest.mark.usefixtures("place")
def test_head_of_a_card_is_evaluated_on_the_set_by_name(tmp_path: Path, capsys: Captured) -> None:
    given = ("--templates", "simple", "--truncate", "-o", "z.safetensors")
    assert head(*given, classes="imagenet-r") == 0
    classes = read_card(Path("z.safetensors")).classes
    assert [entry.id for entry in classes] == list(read_dataset_card("imagenet-r").class_ids)
    assert (classes[0].id, classes[0].name) == ("n01443537", "goldfish")
    make_copy(tmp_path / "down/imagenet-r", [classes[3].id, classes[150].id])
    make_copy(tmp_path / "v2", ["1", "3"])  # goldfish, and the tiger shark, which the head lacks
    data = ("--data", f"imagenet-r={tmp_path / 'down'}", "--workers", "0")
    capsys.readouterr()
    assert main(["eval", "z.safetensors", *data, "--results", "r.jsonl"]) == 0
    line = json.loads(Path("r.jsonl").read_text())
    assert (line["set"], line["join"], line["n_images"], line["n_classes"]) == (
        "imagenet-r",
        "id",
        2,
        200,  # all classes compete, also those without images in this copy
    )
    assert "warning: image set 'imagenet-r': 2 images, but ImageNet-R" in capsys.readouterr().err
    assert main(["eval", "z.safetensors", "--data", f"imagenet-v2={tmp_path / 'v2'}"]) == 1
    err = capsys.readouterr().err
    assert "'imagenet-v2': 1 of 2 labels are not classes of the head" in err
    assert err.splitlines()[1] == "  'n01491361'"


@pytest.mark.usefixtures("place")
def test_templates_option_accepts_a_card() -> None:
    classes = "a_list.txt"
    Path(classes).write_text("cat\ndog\n")
    given = ("--templates", "imagenet-a", "--truncate", "-o", "z.safetensors")
    assert head(*given, classes=classes) == 0
    assert len(read_card(Path("z.safetensors")).templates) == 80


COUNTS = {"cifar10": 18, "cifar10.1": 18, "cifar10.2": 18, "cifar100": 18, "dtd": 8, "eurosat": 3}
COUNTS |= {
    "flowers102": 1,
    "fmow": 14,
    "food101": 1,
    "iwildcam": 2,
    "stanford-cars": 8,
    "sun397": 2,
}
"""Number of templates of the sets with their own; the others have ImageNet's 80."""


@pytest.mark.parametrize("name", dataset_card_names())
def test_shipped_cards_have_classes_and_templates(name: str) -> None:
    card = read_dataset_card(name)
    prompts, _ = resolve_prompts(name, name)
    assert tuple(entry.id for entry in prompts.classes.entries) == card.class_ids
    assert len(prompts.templates) == COUNTS.get(name, 80)
    assert not any("{}" in prompt or "_" in prompt for _, prompt in prompts)


@pytest.mark.usefixtures("place")
def test_users_card_gives_classes_and_templates_by_its_path(capsys: Captured) -> None:
    Path("names.txt").write_text("a\tcat\nb\tdog\nc\tcow\n")
    Path("prompts.txt").write_text("my {}.\n")
    Path("own.yaml").write_text(
        "{name: own, title: Own, source: 'https://example.org', licence: CC0, citation: none,\n"
        " layout: id-folders, classes: names.txt, class_ids: [c, a], templates: prompts.txt,\n"
        " n_images: 2, n_classes: 2}\n"
    )
    given = ("--templates", "own.yaml", "--truncate", "-o", "z.safetensors")
    assert head(*given, classes="own.yaml") == 0
    assert "built-in" not in capsys.readouterr().err
    card = read_card(Path("z.safetensors"))
    assert [(entry.id, entry.name) for entry in card.classes] == [("a", "cat"), ("c", "cow")]
    assert card.templates == ("my {}.",)
    Path("own.yaml").write_text("{licence: CC0, layout: id-folders, classes: names.txt}\n")
    assert head("-o", "y.safetensors", classes="own.yaml") == 1
    assert capsys.readouterr().err.splitlines()[0] == (
        "error: own.yaml: a data set card needs name, title, source, citation, n_classes"
    )


def test_show_prints_the_sets_of_a_suite(capsys: Captured) -> None:
    assert main(["datasets", "show", "wilds"]) == 0
    out = capsys.readouterr().out
    assert "fmow-ood: the set fmow, split test, in ROOT/fmow_v1.1\n" in out
    assert main(["datasets", "show", "wilds", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {
        "name": "iwildcam-id",
        "card": "iwildcam",
        "split": "id_test",
        "folder": "iwildcam_v2.0",
    }


def test_check_reports_an_unknown_primary_metric(tmp_path: Path, capsys: Captured) -> None:
    make_copy(tmp_path / "shapes", ["circle"])
    (tmp_path / "classes.txt").write_text("circle\n")
    (tmp_path / "shapes.yaml").write_text(
        "{name: s, title: S, source: here, licence: CC0, citation: me, layout: id-folders,"
        " classes: classes.txt, n_images: 1, n_classes: 1, primary: topp}"
    )
    assert main(["datasets", "check", str(tmp_path / "shapes.yaml"), str(tmp_path / "shapes")]) == 1
    assert "  primary is 'topp', expected one of top1, top5, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "is_reported"), [("", True), ("exif_orientation: apply\n", False)]
)
def test_check_counts_orientations_of_decoded_images(tmp_path, capsys, line, is_reported) -> None:
    (tmp_path / "shapes" / "a").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("a\n")
    for number in range(5):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if number < 2 else 1
        Image.new("RGB", (9, 6)).save(tmp_path / f"shapes/a/{number}.png", exif=exif)
    (tmp_path / "shapes.yaml").write_text(
        "name: shapes\ntitle: Shapes\nsource: here\nlicence: CC0\ncitation: me\n"
        f"layout: id-folders\nclasses: classes.txt\nn_images: 5\nn_classes: 1\n{line}"
    )
    words = ["datasets", "check", str(tmp_path / "shapes.yaml"), str(tmp_path / "shapes")]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n_rotated"] == 2
    assert ("warning: 2 of 5 decoded images carry an EXIF orientation; " in err) == is_reported


@pytest.mark.parametrize("n_tried", [1, 2, 5, 6, 7, 12])
def test_sample_is_spread_over_the_set_and_includes_the_last(tmp_path: Path, n_tried: int) -> None:
    (tmp_path / "a").mkdir()
    for at in range(7):
        (tmp_path / f"a/{at}.png").write_bytes(b"")
    images = list_image_folder(tmp_path)
    unreadable = decode_sample(images, n_tried).unreadable
    assert len(set(unreadable)) == min(n_tried, 7)
    assert f"{tmp_path}/a/{6 if n_tried > 1 else 0}.png" in unreadable[-1]
