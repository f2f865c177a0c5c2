from __future__ import annotations

import codecs
import csv
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_image_folder import put
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.manifest import Columns, RowFaults, list_manifest, read_rows
from wiseft_cli.data.records import ImageRecord
from wiseft_cli.errors import DatasetError


def read(folder: Path, text: str | bytes, name: str = "m.csv", **options: object) -> ImageSet:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(data)
    return list_manifest(folder / name, name="set", **options)


def refusal(folder: Path, text: str | bytes, name: str = "m.csv", **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        read(folder, text, name, **options)
    assert caught.value.message.startswith(str(folder / name))
    return caught.value.message.removeprefix(str(folder / name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path, "b/2.png", "b/10.png", "a.jpg", size=5)


def test_rows_become_records_sorted_by_path(folder: Path) -> None:
    image_set = read(folder, "label,path,camera\ndog,b/2.png,7\ncat,b/10.png,8\ndog,a.jpg,9\n")
    assert image_set == ImageSet(
        "set",
        folder,
        (
            ImageRecord("a.jpg", "dog", 5),
            ImageRecord("b/10.png", "cat", 5),
            ImageRecord("b/2.png", "dog", 5),
        ),
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", 'path,label\r\na.jpg,"big, ""red"" dog"\r\n\r\nb/2.png,cat\r\n'),
        ("m.csv", codecs.BOM_UTF8 + b'path, label\na.jpg, "big, ""red"" dog"\nb/2.png, cat '),
        ("m.csv", 'path,label\ra.jpg,"big, ""red"" dog"\rb/2.png,cat\r'),
        ("m.tsv", 'path\tlabel\na.jpg\t"big, ""red"" dog"\nb/2.png\tcat\n'),
        (
            "m.jsonl",
            '{"path": "a.jpg", "label": "big, \\"red\\" dog", "x": [1]}\n\n'
            '{"label": "cat", "path": "b/2.png"}',
        ),
        (
            "M.CSV",
            "path,label,split\na.jpg,'x,\nb/2.png,cat,\n".replace("'x", '"big, ""red"" dog"'),
        ),
    ],
)
def test_all_file_formats_are_equivalent(folder: Path, name: str, text: str | bytes) -> None:
    found = [(record.path, record.label) for record in read(folder, text, name).records]
    assert found == [("a.jpg", 'big, "red" dog'), ("b/2.png", "cat")]


def test_one_split_is_read_and_images_of_others_may_be_missing(folder: Path) -> None:
    text = "path,label,split\na.jpg,x,val\nb/2.png,y,val\ngone.png,z,train\n"
    assert read(folder, text, split="val").labels == ("x", "y")
    assert refusal(folder, text) == ": has several splits: train (1), val (2)"
    assert refusal(folder, text, split="tset") == (
        ": has no split 'tset'; found train (1), val (2)"
    )
    assert refusal(folder, "path,label\na.jpg,x\n", split="val") == (
        ": has no split 'val'; found no splits in column 'split'"
    )
    assert len(read(folder, "path,label,split\na.jpg,x,val\n").records) == 1


def test_groups_are_read_and_missing_ones_noted(folder: Path) -> None:
    image_set = read(folder, "path,label,group\na.jpg,x,north\nb/2.png,y,\nb/10.png,y,south\n")
    assert [record.group for record in image_set.records] == ["north", "south", None]
    assert image_set.groups == ("north", "south")
    assert image_set.notes == ("image set 'set': 1 of 3 images have no group",)


def test_columns_can_be_named(folder: Path) -> None:
    image_set = read(
        folder,
        "file,path,wnid,region\na.jpg,-,n1,west\n",
        columns=Columns(path="file", label="wnid", group="region"),
    )
    assert image_set.records == (ImageRecord("a.jpg", "n1", 5, "west"),)


def test_absolute_paths_are_accepted(folder: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    image_set = read(elsewhere, f"path,label\n{folder}/a.jpg,x\n")
    assert image_set.source(0) == folder / "a.jpg"


def test_repeated_rows_of_an_image_count_once(folder: Path) -> None:
    image_set = read(folder, "path,label\na.jpg,x\n./a.jpg,x\nb/../a.jpg,x\nb//2.png,y\n")
    assert [record.path for record in image_set.records] == ["a.jpg", "b/2.png"]
    assert image_set.notes == ("image set 'set': 2 repeated rows ignored; each image counts once",)


def words_for_nul() -> str:
    """Return what this version of Python says about a NUL byte in a path."""
    try:
        os.stat("a\0")
    except ValueError as error:
        return str(error)
    raise AssertionError("a path with a NUL byte was accepted")


def test_unusable_rows_are_listed_with_their_lines(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    text = (
        "path,label,group\na.jpg,x,g\n,x,g\nb/2.png, ,g\nb/10.png,x\n"
        'a.jpg,y,g\na.jpg,x,h\n"b/two\nlines.png",x,g\nb,x,g\npipe,x,g\nb/2.png\0,x,g\n'
    )
    assert refusal(folder, text) == (
        ": 9 rows cannot be used:\n"
        "  line 3: the path is empty\n"
        "  line 4: the label is empty\n"
        "  line 5: 2 cells, expected 3\n"
        "  line 6: a.jpg: label 'y' contradicts 'x' on line 2\n"
        "  line 7: a.jpg: group 'h' contradicts 'g' on line 2\n"
        "  line 9: b/two\\nlines.png: No such file or directory\n"
        "  line 10: b: is not a regular file\n"
        "  line 11: pipe: is not a regular file\n"
        f"  line 12: b/2.png\\u0000: {words_for_nul()}"
    )


def test_ten_unusable_rows_are_listed_and_the_rest_counted(folder: Path) -> None:
    text = "path,label\n" + "".join(f"{at}.png,x\n" for at in range(25))
    lines = refusal(folder, text).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (
        12,
        ": 25 rows cannot be used:",
        "  ... and 15 more",
    )


def test_bad_json_lines_are_listed(folder: Path) -> None:
    text = (
        '{"path": "a.jpg", "label": 3}\n{"path": "a.jpg"\n[1]\n{"path": "a.jpg"}\n'
        '{"path": "a.jpg", "label": true}\n{"path": "a.jpg", "label": "3", "split": null}\n'
        '{"path": null, "label": 1.5}\n' + "[" * 100_000 + "\n"
    )
    message = refusal(folder, text, "m.jsonl")
    assert message.startswith(
        ": 7 rows cannot be used:\n"
        "  line 2: not valid JSON: Expecting ',' delimiter\n"
        "  line 3: not a JSON object\n"
        "  line 4: 'label' is missing\n"
        "  line 5: 'label' is true, expected text\n"
        "  line 7: 'path' is null, expected text\n"
        "  line 7: 'label' is 1.5, expected text\n"
        "  line 8: not valid JSON: "
    )


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["  column 'path' is missing", "  column 'label' is missing"]),
        ("a.jpg,dog\n", ["  column 'path' is missing", "  column 'label' is missing"]),
        ("path,class\n", ["  column 'label' is missing"]),
        ("path,label,label\n", ["  column 'label' occurs more than once"]),
    ],
)
def test_an_incomplete_header_is_rejected(folder: Path, text: str, faults: list[str]) -> None:
    message = ", line 1: the header does not fit:"
    assert refusal(folder, text).splitlines() == [message, *faults]


def test_a_named_column_is_required(folder: Path) -> None:
    message = refusal(folder, "path,label\na.jpg,x\n", columns=Columns(group="region"))
    assert message.endswith("  column 'region' is missing")
    message = refusal(folder, '{"path": "a.jpg", "label": "x"}\n', "m.jsonl",
                      columns=Columns(group="region"))  # fmt: skip
    assert message.endswith("  line 1: 'region' is missing")


def test_files_that_are_not_utf8_or_not_csv_are_rejected(folder: Path) -> None:
    assert refusal(folder, b"path,label\na.jpg,caf\xe9\n") == (
        ", line 2: is not UTF-8 text (byte 0xe9)"
    )
    assert refusal(folder, 'path,label\na.jpg,"x\n').startswith(", line 2: not valid CSV: ")
    assert refusal(folder, "path,label\n") == ": contains no images"
    with pytest.raises(DatasetError, match=r"nowhere\.csv: cannot be read: No such file"):
        list_manifest(folder / "nowhere.csv", name="x")


def test_a_manifest_of_a_folder_has_the_fingerprint_of_the_folder_unless_it_has_groups(
    tmp_path: Path,
) -> None:
    put(tmp_path, "b/2.png", "a/1.png")
    assert list_image_folder(tmp_path).labels == ("a", "b")
    from_folder = data_fingerprint(list_image_folder(tmp_path))
    text = "path,label\na/1.png,a\nb/2.png,b\n"
    assert data_fingerprint(read(tmp_path, text)) == from_folder
    grouped = "path,label,group\na/1.png,a,g\nb/2.png,b,h\n"
    assert data_fingerprint(read(tmp_path, grouped)) != from_folder


def test_cells_of_any_length_are_read(folder: Path) -> None:
    for length in (131_072, 131_073, 400_000):
        text = f"path,label,note\na.jpg,x,{'n' * length}\nb/2.png,{'y' * length},-\n"
        assert [len(label) for label in read(folder, text).labels] == [1, length]


def test_an_open_quote_is_reported_with_the_line_that_it_begins_on(folder: Path) -> None:
    for rows, line in (('a.jpg,"x\nb/2.png,y\n', 2), ('a.jpg,x\nb/2.png,"y\n\n', 3)):
        with pytest.raises(DatasetError) as caught:
            read(folder, f"path,label\n{rows}")
        assert f"m.csv, line {line}: not valid CSV: " in caught.value.message
        assert caught.value.hint == f"a quote in the row that begins on line {line} is not closed"


@pytest.mark.parametrize(
    ("name", "separator"), [("m.csv", "\t"), ("m.csv", ";"), ("m.tsv", ","), ("m.tsv", ";")]
)
def test_the_separator_is_the_one_that_fits_the_header(
    folder: Path, name: str, separator: str
) -> None:
    text = f"path{separator} label\na.jpg{separator}x\nb/2.png{separator}y\n"
    found = [(record.path, record.label) for record in read(folder, text, name).records]
    assert found == [("a.jpg", "x"), ("b/2.png", "y")]
    columns = Columns(path="file", label="wnid")
    named = read(folder, f"wnid{separator}file\nn1{separator}a.jpg\n", name, columns=columns)
    assert named.records == (ImageRecord("a.jpg", "n1", 5),)


def test_paths_of_one_file_count_once(folder: Path) -> None:
    (folder / "link.jpg").symlink_to("a.jpg")
    (folder / "c").symlink_to("b")
    paths = ["a.jpg", f"{folder}/a.jpg", "./a.jpg", "b/../a.jpg", "link.jpg", "c/2.png", "b/2.png"]
    image_set = read(folder, "path,label\n" + "".join(f"{path},x\n" for path in paths))
    assert [record.path for record in image_set.records] == ["a.jpg", "c/2.png"]
    assert image_set.notes == ("image set 'set': 5 repeated rows ignored; each image counts once",)


@pytest.mark.parametrize("other", ["{folder}/a.jpg", "b/../a.jpg", "link.jpg"])
def test_different_labels_of_one_file_are_rejected_with_both_lines(
    folder: Path, other: str
) -> None:
    (folder / "link.jpg").symlink_to("a.jpg")
    other = other.format(folder=folder)
    assert refusal(folder, f"path,label\na.jpg,x\n{other},y\n") == (
        f": 1 row cannot be used:\n  line 3: {other}: label 'y' contradicts 'x' on line 2 (a.jpg)"
    )


def test_hard_links_are_images_of_their_own(folder: Path) -> None:
    os.link(folder / "a.jpg", folder / "same.jpg")
    image_set = read(folder, "path,label\na.jpg,x\nsame.jpg,y\n./a.jpg,x\n")
    assert [record.path for record in image_set.records] == ["a.jpg", "same.jpg"]


def test_parent_folders_are_followed_through_links(folder: Path) -> None:
    put(folder / "store" / "deep", "3.png", size=7)
    put(folder / "store", "a.jpg", size=9)
    (folder / "link").symlink_to(folder / "store" / "deep")
    assert read(folder, "path,label\nlink/../a.jpg,x\n").records[0].size_bytes == 9


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("path", ["café.png", "größe/żółw.png", "a/ガ.png"])
def test_paths_match_files_in_another_unicode_form(
    tmp_path: Path, path: str, on_disk: Literal["NFC", "NFD"]
) -> None:
    put(tmp_path, unicodedata.normalize(on_disk, path), size=4)
    for form in ("NFC", "NFD"):
        image_set = read(tmp_path, f"path,label\n{unicodedata.normalize(form, path)},x\n")
        assert image_set.records[0].size_bytes == 4
        assert image_set.source(0).is_file()


def test_names_in_both_unicode_forms_stay_two_images(tmp_path: Path) -> None:
    put(tmp_path, "café.png", size=4)
    put(tmp_path, unicodedata.normalize("NFD", "café.png"), size=6)
    rows = f"café.png,x\n{unicodedata.normalize('NFD', 'café.png')},y\n"
    found = {at.label: at.size_bytes for at in read(tmp_path, f"path,label\n{rows}").records}
    assert found == {"x": 4, "y": 6}


def test_paths_with_backslashes_and_a_tilde_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "b"))
    text = "path,label\nb\\2.png,x\n.\\a.jpg,y\n~/10.png,z\n"
    found = {record.label: record.path for record in read(folder, text).records}
    assert found == {"x": "b/2.png", "y": "a.jpg", "z": f"{folder}/b/10.png"}
    put(folder, "odd\\name.png", size=8)
    assert read(folder, "path,label\nodd\\name.png,x\n").records[0].size_bytes == 8


@pytest.mark.parametrize(
    ("row", "fault", "hint"),
    [
        (",x", "the path is empty", "give each row a path, or remove it"),
        ("a.jpg,", "the label is empty", "give each row a label, or remove it"),
        ("a.jpg", "1 cells, expected 2", "quote cells that contain the separator"),
        ("no.png,x", "no.png: No such file", "image paths are relative to the folder of m.csv"),
        ("C:\\a\\b.png,x", "C:\\a\\b.png: is a path of Windows", "image paths are relative to"),
        ("https://a.org/1.png,x", "https://a.org/1.png is a URL", "download the images"),
        ("s3://bucket/1.png,x", "s3://bucket/1.png is a URL", "download the images"),
        ("b/2.png,z", "label 'z' contradicts 'y' on line 2", "remove one of two rows"),
    ],
)
def test_each_kind_of_fault_has_its_own_hint(folder: Path, row: str, fault: str, hint: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(folder, f"path,label\nb/2.png,y\n{row}\n")
    assert f"  line 3: {fault}" in caught.value.message.replace("b/2.png: ", "")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
    assert ";" not in caught.value.hint


def test_the_hints_of_several_faults_are_joined(folder: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read(folder, "path,label\na.jpg,\nno.png,x\nb/2.png,\n")
    assert str(caught.value.hint).split("; ") == [
        "give each row a label, or remove it",
        "image paths are relative to the folder of m.csv, or absolute",
    ]


def test_a_tar_file_is_not_called_a_text_file(folder: Path) -> None:
    with tarfile.open(folder / "m.csv", "w") as tar:
        tar.add(folder / "a.jpg", "a.jpg")
    with pytest.raises(DatasetError, match="is a tar file, expected a table"):
        list_manifest(folder / "m.csv", name="set")


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1),
            st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])),
        ),
        min_size=1,
    )
)
def test_files_written_by_the_csv_and_json_libraries_are_read_back(
    tmp_path_factory, cells: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    with open(folder / "m.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *cells])
    lines = [json.dumps({"path": path, "label": label}) + "\n" for path, label in cells]
    (folder / "m.jsonl").write_text("".join(lines))
    for name in ("m.csv", "m.jsonl"):
        faults = RowFaults(folder / name)
        rows = read_rows(folder / name, Columns(), faults)
        usable = [(os.path.normpath(path), label.strip()) for path, label in cells if label.strip()]
        assert [(os.path.normpath(row.path), row.label) for row in rows] == usable
        assert len(faults) == len(cells) - len(usable)
