"""Class lists keep their order, and errors in them name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError
from wiseft_cli.prompts.class_names import ClassList, _find_other_form, read_class_names


def listed(*pairs: tuple[str, str]) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(*pair) for pair in pairs)


def write(tmp_path: Path, text: str, *, name: str = "classes.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def error_of(path: Path) -> ClassNamesError:
    with pytest.raises(ClassNamesError) as caught:
        read_class_names(path)
    return caught.value


def test_text_lines_without_tabs_are_both_id_and_name(tmp_path: Path) -> None:
    path = write(tmp_path, "tench\n  goldfish \r\ngreat white shark\n \n\n")
    assert read_class_names(path) == ClassList(
        listed(
            ("tench", "tench"),
            ("goldfish", "goldfish"),
            ("great white shark", "great white shark"),
        ),
        "text",
    )


@pytest.mark.parametrize("name", ["zeroshot.safetensors", "clip.pt", "model.bin"])
def test_weights_are_not_a_class_list(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x00")
    error = error_of(tmp_path / name)
    assert error.message.endswith(f"{name}: is a file of weights, expected a class list")
    assert "wiseft inspect FILE --json" in str(error.hint)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "cat\na photo of a {}.\n"),
        ("a.txt", "n1\tcat\nn2\t{}\n"),
        ("a.json", '["cat", "the {} here"]'),
        ("a.yaml", "n1: cat\nn2: [dog, 'my {}']\n"),
    ],
)
def test_templates_are_not_class_names(tmp_path: Path, name: str, text: str) -> None:
    error = error_of(write(tmp_path, text, name=name))
    assert "is a template; give it with --templates" in error.message


def test_braces_with_other_content_are_part_of_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, "set {a, b}\n{ }\n")
    assert [entry.name for entry in read_class_names(path).entries] == ["set {a, b}", "{ }"]


def test_names_may_repeat_under_different_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "n04008634\tmissile\nn03773504\tmissile\n")
    assert read_class_names(path).entries == listed(
        ("n04008634", "missile"), ("n03773504", "missile")
    )


def test_underscores_in_a_text_file_are_kept(tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, "sea_lion")).entries == listed(("sea_lion", "sea_lion"))


def test_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, "\ufeffcat")).entries == listed(("cat", "cat"))


def test_duplicate_names_without_ids_report_their_lines_and_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, "crane\nowl\nheron\ncrane\nowl\ncrane\n")
    error = error_of(path)
    assert error.message == (
        f"{path}: duplicate class names:\n"
        "  line 1 and line 4 and line 6: 'crane'\n"
        "  line 2 and line 5: 'owl'"
    )
    assert error.hint == "give each class its own id: one id<TAB>name per line"


def test_duplicate_ids_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tcat\na\tdog\n")
    error = error_of(path)
    assert error.message == f"{path}: duplicate class ids:\n  line 1 and line 2: 'a'"
    assert error.hint == "each id may occur only once"


def test_all_malformed_lines_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\tc\nowl\nid\tname\n")
    assert error_of(path).message == (
        f"{path}: not a valid class list:\n"
        "  line 1: 2 tabs, expected id<TAB>name\n"
        "  line 2: no id, but other lines have one"
    )


def test_empty_overlong_and_control_character_entries_are_all_reported(tmp_path: Path) -> None:
    path = write(tmp_path, f"\tcat\nid\t\nlong\t{'x' * 251}\nbell\t\x07\n")
    assert error_of(path).message == (
        f"{path}: not a valid class list:\n"
        "  line 1: the id is empty\n"
        "  line 2: the name is empty\n"
        "  line 3: the name has 251 characters, at most 250 are allowed\n"
        "  line 4: the name '\\x07' has control characters"
    )


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("cat\n\ndog\n", [2]),
        ("\ncat\n \t\ndog\n", [1, 3]),
        ("a\tcat\n\u200b\nb\tdog\n\n\n", [2]),
        ("cat\r\n\xa0\r\ndog\r\n", [2]),
    ],
)
def test_blank_line_between_classes_is_rejected(
    text: str, lines: list[int], tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    error = error_of(path)
    assert error.message.splitlines() == [
        f"{path}: not a valid class list:",
        *(f"  line {number}: blank, but each line is one row of the head" for number in lines),
    ]
    assert error.hint is not None
    assert error.hint.endswith("without blank lines")


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("c.csv", "cat\ndog\n", "a CSV table"),
        ("c.txt", "0,airplane\n1,automobile\n", "a CSV table"),
        ("c.txt", 'n01440764,"tench, Tinca"\nn01443537,goldfish\n', "a list of ids and names"),
        ("c.txt", "x1;cat\nx2;dog\n", "a CSV table"),
        ("c.txt", "id,name\n7,cat\n", "a table with a header"),
        ("c.txt", "class_id\tclass_name\n7\tcat\n", "a table with a header"),
        ("c.txt", "['cat', 'dog']\n", "a Python or JSON list"),
        ("c.txt", 'names = [\n    "cat",\n    "dog",\n]\n', "a Python or JSON list"),
        ("c.txt", "('cat', 'dog')", "a Python or JSON list"),
        ("c.txt", "{0: 'tench',\n 1: 'goldfish'}", "a Python or JSON list"),
        ("c.txt", '{"id": 0, "name": "cat"}\n{"id": 1, "name": "dog"}\n', "a Python or JSON list"),
        ("c.txt", "'cat',\n'dog'\n", "a list of quoted names"),
        ("c.txt", "- cat\n- dog\n", "a list with a bullet"),
        ("c.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n", "a list of ids and names"),
        ("c.txt", "a: cat\nb: dog\n", "a mapping of ids to names"),
        ("c.txt", "0 cat\n1 dog\n2 owl\n", "a list with a number"),
        ("c.txt", "1. cat\n2. dog\n", "a list with a number"),
        ("c.txt", "cat, dog, owl\n", "a list of names in one line"),
        ("c.txt", "<ul>\n<li>cat</li>\n</ul>\n", "an XML or HTML document"),
    ],
)
def test_other_forms_are_rejected_by_name(name: str, text: str, form: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name=name)
    error = error_of(path)
    assert error.message.startswith(f"{path}: is {form}")
    assert error.message.endswith("expected one name or one id<TAB>name per line")
    assert error.hint is not None


@pytest.mark.parametrize(
    "names",
    [
        ["Paris, France", "Rome, Italy"],
        ["2 door car", "4 door car"],
        ["0", "1", "2"],
        ["C++", "C#", "[other]"],
        ["(none)", "cat (animal)"],
        ["Crater: Tycho", "sea"],
        ["it's", "'tis"],
        ["n-gram", "- dash"],
    ],
)
def test_names_with_punctuation_are_kept(names: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join(names))
    assert [entry.name for entry in read_class_names(path).entries] == names


def test_ten_faults_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "x\ty\n" + "lonely\n" * 12)
    lines = error_of(path).message.splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  ... and 2 more"


@pytest.mark.parametrize(("name", "text"), [("c.txt", " \n\n"), ("c.yaml", ""), ("c.json", "[]")])
def test_empty_class_list_is_rejected(name: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name=name)
    assert error_of(path).message == f"{path}: contains no classes"


def test_missing_file_and_wrong_encoding_are_reported(tmp_path: Path) -> None:
    absent = tmp_path / "absent.txt"
    assert error_of(absent).message == f"{absent}: cannot be read: No such file or directory"
    path = tmp_path / "latin.txt"
    path.write_bytes("ok\ncaf\xe9\n".encode("latin-1"))
    assert error_of(path).message == f"{path}, line 2: is not UTF-8 text (byte 0xe9)"


def test_folder_names_become_sorted_classes_with_a_note_about_underscores(tmp_path: Path) -> None:
    for name in ("sea_lion", "cat", ".cache", "Owl"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.txt").touch()
    assert read_class_names(tmp_path) == ClassList(
        listed(("Owl", "Owl"), ("cat", "cat"), ("sea_lion", "sea lion")),
        "folder",
        (
            "class names are folder names with underscores replaced by spaces (1 of 3 changed); "
            "ids are the folder names",
        ),
    )


def test_folder_names_without_underscores_need_no_note(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert read_class_names(tmp_path).notes == ()


def test_folder_without_subfolders_is_rejected(tmp_path: Path) -> None:
    assert (
        error_of(tmp_path).message == f"{tmp_path}: contains no subfolders, expected one per class"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "n01: tench\nn02: 'gold fish'\n"),
        ("c.yml", '{"n01": "tench", "n02": "gold fish"}'),
        ("c.json", '{"n01": "tench", "n02": "gold fish"}'),
    ],
)
def test_mappings_give_ids_and_names_in_file_order(name: str, text: str, tmp_path: Path) -> None:
    found = read_class_names(write(tmp_path, text, name=name))
    assert found.entries == listed(("n01", "tench"), ("n02", "gold fish"))
    assert found.source_kind == ("json" if name == "c.json" else "yaml")


@pytest.mark.parametrize(("name", "text"), [("c.yaml", "- b\n- a\n"), ("c.json", '["b", "a"]')])
def test_lists_give_names(name: str, text: str, tmp_path: Path) -> None:
    found = read_class_names(write(tmp_path, text, name=name))
    assert found.entries == listed(("b", "b"), ("a", "a"))


def test_yaml_scalars_are_read_as_written(tmp_path: Path) -> None:
    path = write(tmp_path, "no: yes\n007: 1e3\n2020-01-01: null\n", name="c.yaml")
    assert read_class_names(path).entries == listed(
        ("no", "yes"), ("007", "1e3"), ("2020-01-01", "null")
    )


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("c.yaml", "a: cat\nb: dog\na: owl\n", "line 1 and line 3"),
        ("c.json", '{"a": "cat", "b": "dog", "a": "owl"}', "entry 1 and entry 3"),
    ],
)
def test_duplicate_keys_are_rejected(name: str, text: str, places: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name=name)
    assert error_of(path).message == f"{path}: duplicate class ids:\n  {places}: 'a'"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: [x\n", ", line 2: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("c.yaml", "just text", ", line 1: expected a list or a mapping, found a text"),
        ("c.yaml", "a: {b: c}\n", ", line 1: unknown field 'b', expected name or prompts"),
        ("c.yaml", "a:\n- b\n- [c]\n", ", line 3: expected a text, found a list"),
        ("c.yaml", "? [a]\n: b\n", ", line 1: expected a text, found a list"),
        ("c.yaml", "a:\n  name: b\n  name: c\n", ", line 3: duplicate field 'name'"),
        ("c.yaml", "a: {prompts: b}\n", ", line 1: expected a list of prompts, found a text"),
        ("c.yaml", "- [a]\n", ", line 1: expected a text, found a list"),
        ("c.yaml", "&a [*a]\n", ": its aliases stand for too many values"),
        (
            "c.json",
            '{"a": 1\n"b": 2}',
            ", line 2: is not JSON: Expecting ',' delimiter",
        ),
        ("c.json", "3", ": expected a list or a mapping, found a number"),
        ("c.json", '{"a": 1}', ", entry 1: expected a text, found a number"),
        ("c.json", '["a", {"b": "c"}]', ", entry 2: expected a text, found a mapping"),
        ("c.json", '{"a": "b", "c": ["d", null]}', ", entry 2: expected a text, found null"),
        ("c.json", "[true]", ", entry 1: expected a text, found true or false"),
    ],
)
def test_malformed_documents_are_rejected_with_their_place(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text, name=name)
    found = error_of(path).message
    if "is not JSON" in message:  # the parser's own words differ between Python versions
        found, message = found[: found.index("JSON")], message[: message.index("JSON")]
    assert found == f"{path}{message}"


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_deep_nesting_is_rejected_without_a_crash(name: str, tmp_path: Path) -> None:
    error_of(write(tmp_path, "[" * 100_000, name=name))


names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    lambda text: text.strip() == text and any(character.isalnum() for character in text)
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(names, names, min_size=1, max_size=8))
def test_every_format_reads_back_the_written_classes(
    tmp_path: Path, classes: dict[str, str]
) -> None:
    expected = listed(*classes.items())
    text = "".join(f"{key}\t{name}\n" for key, name in classes.items())
    # A leading U+FEFF is read as a byte order mark; other forms, such as CSV, are rejected.
    is_other = _find_other_form(tmp_path / "c.txt", text.split("\n")) is not None
    if not text.startswith("\ufeff") and not is_other:
        assert read_class_names(write(tmp_path, text)).entries == expected
    document = json.dumps(classes)
    assert read_class_names(write(tmp_path, document, name="c.json")).entries == expected
    document = yaml.safe_dump(classes, sort_keys=False, allow_unicode=False)
    assert read_class_names(write(tmp_path, document, name="c.yaml")).entries == expected


@pytest.mark.parametrize("name", ["c.txt", "c.yaml", "c.json"])
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(
            st.sampled_from("ab\t\n \"'{}[]:,-?&*!|>%@#~1\u00e9\ufeff\x00\u2028"), max_size=60
        ).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )
)
def test_arbitrary_bytes_are_a_class_list_or_an_error_that_names_the_file(
    tmp_path: Path, name: str, data: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    try:
        found = read_class_names(path)
    except ClassNamesError as error:
        assert error.message.startswith(str(path))  # noqa: PT017
        return
    ids = [entry.id for entry in found.entries]
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(entry.id.strip() and entry.name.strip() for entry in found.entries)
    prompts = list(found.prompts(["a {}"]))
    assert [index for index, _ in prompts] == sorted(index for index, _ in prompts)
    assert {index for index, _ in prompts} == set(range(len(ids)))
