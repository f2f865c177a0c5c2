from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wiseft_cli.data.image_paths import PathStream, image_paths
from wiseft_cli.errors import DatasetError, UsageError, WiseftError

NOTHING = PathStream(io.BytesIO().read)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("f/b.png", "f/a/2.JPG", "f/a/1.webp", "f/.hidden/x.png", "f/notes.txt", "g/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*words: str, stream: PathStream = NOTHING) -> list[str]:
    return list(image_paths(words, stream))


def test_folders_yield_their_images_by_name_and_files_themselves() -> None:
    assert paths("z.bin", "f/", "g") == ["z.bin", "f/a/1.webp", "f/a/2.JPG", "f/b.png", "g/a.png"]


def test_a_folder_that_links_to_itself_is_listed_once(folder: Path) -> None:
    (folder / "g" / "again").symlink_to(folder / "g")
    assert paths("g") == ["g/a.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "split,path,label\ntest,a.png,\ntrain,/b.png,x\n"),
        ("m.tsv", "path\tsplit\na.png\ttest\n/b.png\ttrain\n"),
        ("m.jsonl", '{"path": "a.png", "split": "test"}\n{"path": "/b.png", "split": "train"}\n'),
    ],
)
def test_manifest_paths_are_relative_to_its_folder_and_labels_are_optional(
    folder: Path, name: str, text: str
) -> None:
    (folder / "g" / name).write_text(text)
    assert paths(f"g/{name}") == ["g/a.png", "/b.png"]
    assert paths(f"g/{name}?split=test") == ["g/a.png"]


def test_the_path_column_can_be_named(folder: Path) -> None:
    (folder / "m.csv").write_text("file\na.png\n")
    assert paths("m.csv?path=file") == ["a.png"]


@pytest.mark.parametrize("separator", [b"\n", b"\0"], ids=["lines", "nul"])
def test_paths_of_a_stream_do_not_depend_on_the_size_of_its_pieces(separator: bytes) -> None:
    names = [b"a.png", b" b c.png ", "\u00e4.png".encode(), b"\xff.png", b"", b"last.png"]
    data = separator.join(names)
    for size in (1, 3, 1000):
        file = io.BytesIO(data)
        found = paths(
            "-", stream=PathStream(lambda n, f=file, s=size: f.read(min(n, s)), separator)
        )
        assert [os.fsencode(path) for path in found] == [name for name in names if name]


def test_windows_line_ends_and_newlines_between_nuls_are_accepted() -> None:
    assert paths("-", stream=PathStream(io.BytesIO(b"a.png\r\nb.png\r\n").read)) == [
        "a.png",
        "b.png",
    ]
    stream = PathStream(io.BytesIO(b"a\n.png\0b.png\0").read, b"\0")
    assert paths("-", stream=stream) == ["a\n.png", "b.png"]


def test_a_path_is_yielded_before_the_next_one_is_read() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a.png\nb.p"
        raise AssertionError("read too far")

    source = pieces()
    assert next(image_paths(["-"], PathStream(lambda n: next(source)))) == "a.png"


def test_inputs_around_the_stream_keep_their_order() -> None:
    assert paths("x", "-", "y", stream=PathStream(io.BytesIO(b"s\n").read)) == ["x", "s", "y"]


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ([], UsageError, "no images; expected images, folders, manifests, or - for standard input"),
        (["-", "-"], UsageError, "- stands for standard input and can be given only once"),
        (["-"], DatasetError, "standard input contains no paths"),
        (["m.csv?label=x"], UsageError, "m.csv: images without labels do not use label"),
        (["m.csv?split=x"], DatasetError, "m.csv: contains no images of split 'x'; its splits are"
         " s"),
        (["no.csv"], DatasetError, "no.csv: cannot be read: No such file or directory"),
        (["g.csv"], DatasetError, "g.csv: contains no images"),
        (["h.jsonl"], DatasetError, "h.jsonl: 2 rows cannot be used:\n  line 1: 'path' is missing\n"
         "  line 2: not valid JSON: Expecting value"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_before_the_first_image(
    folder: Path, words: list[str], kind: type[WiseftError], message: str
) -> None:
    (folder / "m.csv").write_text("path,split\na.png,s\n")
    (folder / "g.csv").write_text("path\n")
    (folder / "h.jsonl").write_text('{"file": "a"}\nx\n')
    with pytest.raises(kind) as caught:
        list(image_paths(words, NOTHING))
    assert caught.value.message == message


def test_an_empty_folder_and_a_missing_column_are_reported(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"^folder empty contains no images \(\.apng "):
        paths("f", "empty")
    (folder / "m.csv").write_text("file\na.png\n")
    with pytest.raises(DatasetError) as caught:
        paths("m.csv")
    assert caught.value.message.endswith("  column 'path' is missing")
    assert caught.value.hint == (
        "the first line contains 'file'; expected a header with path, or name the columns:"
        " 'm.csv?path=COLUMN'"
    )


def test_a_binary_file_on_standard_input_is_rejected() -> None:
    with pytest.raises(DatasetError, match=r"^standard input is not a list of paths$"):
        paths("-", stream=PathStream(io.BytesIO(b"x" * 2**21).read))
