"""WILDS sets are read from their own tables; unusable rows are rejected with their lines."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from tests.data.test_manifest import words_for_nul
from tests.data.wilds_copies import (
    COUNTRIES,
    COUNTRY_COLUMNS,
    FMOW_COLUMNS,
    IWILDCAM_COLUMNS,
    make_fmow,
    make_iwildcam,
    write_rows,
)
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.sources import open_image_set, open_suite
from wiseft_cli.errors import DatasetError

PERIODS = {"id_test": ("test", "", "2013"), "test": ("test", "2016", "9")}
PERIODS |= {"id_val": ("val", "", "2013"), "val": ("val", "2013", "2016")}
PERIODS |= {"train": ("train", "", "2013")}


@pytest.fixture(scope="module")
def wilds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wilds")
    make_iwildcam(root, n_train=2, n_test=12)
    make_fmow(root)
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("split", [split.name for split in read_dataset_card("iwildcam").splits])
def test_split_of_iwildcam_has_the_rows_and_labels_of_the_table(wilds: Path, split: str) -> None:
    images = open_image_set(f"iwildcam={wilds}?split={split}")
    rows = rows_of(wilds / "iwildcam_v2.0/metadata.csv")
    assert {record.path: record.label for record in images.records} == {
        f"train/{row['filename']}": row["y"] for row in rows if row["split"] == split
    }
    assert images.root == wilds / "iwildcam_v2.0"
    assert (images.groups, images.join_options.primary) == ((), "macro_f1")
    size = (images.root / images.records[0].path).stat().st_size
    assert images.records[0].size_bytes == size


@pytest.mark.parametrize("split", [split.name for split in read_dataset_card("fmow").splits])
def test_split_of_fmow_is_an_original_split_between_two_dates(wilds: Path, split: str) -> None:
    images = open_image_set(f"fmow={wilds}/fmow_v1.1?split={split}")
    original, start, end = PERIODS[split]
    expected = {  # ISO times of one zone sort as texts
        f"images/rgb_img_{at}.png": row["category"]
        for at, row in enumerate(rows_of(wilds / "fmow_v1.1/rgb_metadata.csv"))
        if row["split"] == original and start <= row["timestamp"] < end
    }
    assert {record.path: record.label for record in images.records} == expected
    assert expected
    assert images.join_options.primary == ("worst_group" if split in ("test", "val") else "top1")


def test_splits_of_fmow_meet_at_the_first_second_of_a_year(wilds: Path) -> None:
    table = rows_of(wilds / "fmow_v1.1/rgb_metadata.csv")
    times = {}
    for split in PERIODS:
        images = open_image_set(f"fmow={wilds}?split={split}")
        numbers = [int(record.path[15:-4]) for record in images.records]
        times[split] = {table[number]["timestamp"] for number in numbers}
    assert "2012-12-31T23:59:59Z" in times["id_test"]
    assert min(times["val"]) == "2013-01-01T00:00:00Z"
    assert "2015-12-31T23:59:59Z" in times["val"]
    assert min(times["test"]) == "2016-01-01T00:00:00Z"


def test_regions_are_groups_except_for_unknown_countries(wilds: Path) -> None:
    images = open_image_set(f"fmow={wilds}?split=id_test")
    assert images.groups == ("Africa", "Americas", "Asia", "Europe", "Oceania", "nan")
    region = {code: of or "nan" for _, _, code, of in COUNTRIES}
    table = rows_of(wilds / "fmow_v1.1/rgb_metadata.csv")
    codes = [table[int(record.path[15:-4])]["country_code"] for record in images.records]
    assert [record.group for record in images.records] == [region.get(code) for code in codes]
    n_unknown = Counter(codes)["XKX"]
    assert n_unknown
    assert images.notes == (
        f"image set 'fmow': {n_unknown} images are in no region of country_code_mapping.csv;"
        " worst_group does not count them, as in WILDS",
    )


def test_suite_has_both_sets_in_and_out_of_distribution(wilds: Path) -> None:
    sets = open_suite("wilds", wilds)
    assert [(images.name, images.join_options.primary) for images in sets] == [
        ("iwildcam-id", "macro_f1"),
        ("iwildcam-ood", "macro_f1"),
        ("fmow-id", "top1"),
        ("fmow-ood", "worst_group"),
    ]
    assert [len(images.join_options.competing) for images in sets] == [182, 182, 62, 62]


def iwildcam_rows(*changes: dict[str, object]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"split": "id_test", "y": at, "filename": f"{at}.jpg"} for at in range(3)
    ]
    return [{"": at} | row for at, row in enumerate([*rows, *changes])]


def write_iwildcam(folder: Path, *changes: dict[str, object]) -> Path:
    write_rows(folder / "metadata.csv", IWILDCAM_COLUMNS, iwildcam_rows(*changes))
    (folder / "train").mkdir()
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        (folder / "train" / name).write_bytes(b"x")
    return folder


def refusal(spec: str) -> tuple[str, str]:
    with pytest.raises(DatasetError) as caught:
        open_image_set(spec)
    return caught.value.message, caught.value.hint or ""


def test_unusable_rows_of_iwildcam_are_listed_with_their_lines(tmp_path: Path) -> None:
    folder = write_iwildcam(
        tmp_path,
        {"split": "id_test", "y": 182, "filename": "a.jpg"},
        {"split": "ID_test", "y": 1, "filename": "b.jpg"},
        {"split": "id_test", "y": 1, "filename": "../0.jpg"},
        {"split": "id_test", "y": 4, "filename": "1.jpg"},
        {"split": "id_test", "y": "", "filename": "2.jpg"},
        {"split": "train", "y": 500, "filename": "not/of/this/split"},
        {"split": "id_test", "y": 7, "filename": "gone.jpg"},
        {"split": "id_test", "y": 7, "filename": ""},
        {"split": "id_test", "y": 7, "filename": "a\0b.jpg"},
    )
    with (folder / "metadata.csv").open("a") as file:
        file.write("12,id_test\n")
    message, hint = refusal(f"iwildcam={folder}")
    assert message.splitlines() == [
        f"{folder / 'metadata.csv'}: 9 rows cannot be used:",
        "  line 5: y is '182', expected one of the 182 from 0 to 181",
        "  line 6: split is 'ID_test', expected one of id_test, id_val, test, train, val",
        "  line 7: filename is '../0.jpg', expected a file in train/",
        "  line 9: y is '', expected one of the 182 from 0 to 181",
        "  line 12: filename is '', expected a file in train/",
        "  line 14: 2 cells, expected 11",
        "  line 8: train/1.jpg is on line 3 too",
        "  line 11: train/gone.jpg: No such file or directory",
        f"  line 13: train/a\\u0000b.jpg: {words_for_nul()}",
    ]
    assert hint == (
        "is the copy complete and unchanged? Get it from"
        " https://wilds.stanford.edu/datasets/#iwildcam"
    )


def test_missing_files_are_reported_with_the_expected_folders(tmp_path: Path) -> None:
    assert refusal(f"iwildcam={tmp_path}") == (
        f"image set 'iwildcam': {tmp_path} is not a copy of iWildCam2020-WILDS 2.0: 2 of 2 required"
        " files are missing:\n  metadata.csv\n  train/",
        "get it from https://wilds.stanford.edu/datasets/#iwildcam; it is expected in the folder"
        " that you name, or below it in iwildcam_v2.0/",
    )
    message, _ = refusal(f"fmow={tmp_path / 'gone'}")
    assert message.startswith(f"image set 'fmow': {tmp_path / 'gone'} is not a folder with a copy")
    write_rows(tmp_path / "fmow_v1.1/rgb_metadata.csv", FMOW_COLUMNS, [])
    message, _ = refusal(f"fmow={tmp_path}")
    assert message == (
        f"image set 'fmow': {tmp_path / 'fmow_v1.1'} is not a copy of FMoW-WILDS 1.1: 2 of 3"
        " required files are missing:\n  country_code_mapping.csv\n  images/"
    )


def test_table_without_its_columns_is_rejected_with_those_it_has(tmp_path: Path) -> None:
    folder = write_iwildcam(tmp_path)
    (folder / "metadata.csv").write_text("split,y,y,name\n")
    assert refusal(f"iwildcam={folder}") == (
        f"{folder / 'metadata.csv'}, line 1: the header cannot be used:\n"
        "  column 'y' is repeated\n  column 'filename' is missing",
        "the header is 'split', 'y', 'y', 'name'; is this the set's original file?",
    )
    (folder / "metadata.csv").write_text("")
    assert refusal(f"iwildcam={folder}")[1].startswith("the header is empty;")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"split,y,filename\nid_test,0,\xff.jpg\n", ": is not UTF-8 text: 'utf-8' codec can't"),
        (b'split,y,filename\nid_test,0,"0.jpg\n', ", line 2: is not CSV: unexpected end of data"),
    ],
)
def test_table_that_is_not_csv_in_utf8_is_rejected(
    tmp_path: Path, table: bytes, message: str
) -> None:
    folder = write_iwildcam(tmp_path)
    (folder / "metadata.csv").write_bytes(table)
    assert refusal(f"iwildcam={folder}")[0].startswith(f"{folder / 'metadata.csv'}{message}")


def test_split_without_rows_is_rejected(tmp_path: Path) -> None:
    folder = write_iwildcam(tmp_path)
    assert refusal(f"iwildcam={folder}?split=val")[0] == (
        f"image set 'iwildcam': {folder / 'metadata.csv'} has no row of split 'val'"
    )


def test_byte_order_mark_line_ends_blank_lines_and_other_columns_are_ignored(
    tmp_path: Path,
) -> None:
    folder = write_iwildcam(tmp_path)
    plain = open_image_set(f"iwildcam={folder}").records
    text = (folder / "metadata.csv").read_text().rstrip("\n").replace("\n", "\r\n\r\n")
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_image_set(f"iwildcam={folder}").records == plain
    write_rows(folder / "metadata.csv", [*IWILDCAM_COLUMNS, "region"], iwildcam_rows())
    assert open_image_set(f"iwildcam={folder}").records == plain


def write_fmow(folder: Path, *rows: dict[str, str]) -> Path:
    whole = {"split": "test", "category": "zoo", "country_code": "DEU"}
    whole |= {"timestamp": "2016-01-01T00:00:00Z"}
    write_rows(folder / "rgb_metadata.csv", FMOW_COLUMNS, [whole | row for row in rows])
    countries = [{"alpha-3": code, "region": region} for _, _, code, region in COUNTRIES]
    write_rows(folder / "country_code_mapping.csv", COUNTRY_COLUMNS, countries)
    (folder / "images").mkdir()
    for at in range(len(rows)):
        (folder / f"images/rgb_img_{at}.png").write_bytes(b"x")
    return folder


def test_unusable_rows_of_fmow_are_listed_with_their_lines(tmp_path: Path) -> None:
    folder = write_fmow(
        tmp_path,
        {},
        {"split": "tset"},
        {"timestamp": "24 July 2017"},
        {"timestamp": "2017-07-24T16:05:53"},
        {"category": "false_detection"},
        {"category": "false_detection", "timestamp": "2014-07-24T16:05:53Z"},
        {"category": "false_detection", "split": "seq", "timestamp": ""},
        {},
    )
    (folder / "images/rgb_img_7.png").unlink()
    message, _ = refusal(f"fmow={folder}?split=test")
    assert message.splitlines() == [
        f"{folder / 'rgb_metadata.csv'}: 5 rows cannot be used:",
        "  line 3: split is 'tset', expected one of train, val, test, seq",
        "  line 4: timestamp is '24 July 2017', expected a time such as 2015-07-24T16:05:53Z",
        "  line 5: timestamp is '2017-07-24T16:05:53', expected a time such as"
        " 2015-07-24T16:05:53Z",
        "  line 6: category is 'false_detection', expected one of the 62 from airport to zoo",
        "  line 9: images/rgb_img_7.png: No such file or directory",
    ]


def test_time_zones_are_converted(tmp_path: Path) -> None:
    folder = write_fmow(
        tmp_path,
        {"timestamp": "2016-01-01T01:00:00+01:00"},
        {"timestamp": "2016-01-01T00:59:59+01:00"},
    )
    images = open_image_set(f"fmow={folder}?split=test")
    assert [record.path for record in images.records] == ["images/rgb_img_0.png"]


def test_unusable_rows_of_the_country_table_are_rejected(tmp_path: Path) -> None:
    folder = write_fmow(tmp_path, {})
    (folder / "country_code_mapping.csv").write_text("alpha-3,region\nDEU,Europe,x\n")
    assert refusal(f"fmow={folder}?split=test")[0] == (
        f"{folder / 'country_code_mapping.csv'}: 1 row cannot be used:\n"
        "  line 2: 3 cells, expected 2"
    )


@pytest.mark.parametrize("options", ["{original: rest}", "{original: test, to: 2016}", "{}"])
def test_users_card_defines_its_splits_of_fmow(tmp_path: Path, options: str) -> None:
    write_fmow(tmp_path, {})
    given = "{original: test, from: 201}" if options == "{}" else options
    (tmp_path / "own.yaml").write_text(
        "{name: own, title: Own, source: 'https://example.org', licence: CC0, citation: none,\n"
        " layout: fmow-wilds, classes: own.txt, n_classes: 1,\n"
        f" splits: {{late: {{n_images: 1, options: {given}}}}}}}\n"
    )
    (tmp_path / "own.txt").write_text("zoo\n")
    message, hint = refusal(f"{tmp_path}?card={tmp_path / 'own.yaml'}")
    found = given.strip("{}")
    assert message == (f"image set 'own': the card defines split 'late' by the options {{{found}}}")
    assert "`original`, one of train, val, test, seq," in hint
    card = (tmp_path / "own.yaml").read_text().replace(given, "{original: test}")
    (tmp_path / "own.yaml").write_text(card)
    images: ImageSet = open_image_set(f"{tmp_path}?card={tmp_path / 'own.yaml'}")
    assert (len(images.records), images.groups, images.notes) == (1, ("Europe",), ())
