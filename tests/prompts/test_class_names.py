"""Class lists are read in order, and what is wrong with them is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError
from wiseft_cli.prompts.class_names import ClassList, read_class_names


def listed(*pairs: tuple[str, str]) -> tuple[ClassEntry, ...]:
    return tuple(ClassEntry(*pair) for pair in pairs)


def write(tmp_path: Path, text: str, *, name: str = "classes.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def refusal(path: Path) -> ClassNamesError:
    with pytest.raises(ClassNamesError) as caught:
        read_class_names(path)
    return caught.value


def test_lines_are_names_in_their_order_and_ids_too(tmp_path: Path) -> None:
    path = write(tmp_path, "tench\n\n  goldfish \r\ngreat white shark\n")
    assert read_class_names(path) == ClassList(
        listed(
            ("tench", "tench"),
            ("goldfish", "goldfish"),
            ("great white shark", "great white shark"),
        ),
        "text",
    )


def test_ids_stand_before_a_tab_and_let_names_repeat(tmp_path: Path) -> None:
    path = write(tmp_path, "n04008634\tmissile\nn03773504\tmissile\n")
    assert read_class_names(path).entries == listed(
        ("n04008634", "missile"), ("n03773504", "missile")
    )


def test_underscores_in_a_text_file_stay(tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, "sea_lion")).entries == listed(("sea_lion", "sea_lion"))


def test_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, "\ufeffcat")).entries == listed(("cat", "cat"))


def test_repeated_names_without_ids_show_the_lines_and_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, "crane\nowl\n\ncrane\nowl\ncrane\n")
    error = refusal(path)
    assert error.message == (
        f"{path}: repeats class names\n"
        "  line 1 and line 4 and line 6: 'crane'\n"
        "  line 2 and line 5: 'owl'"
    )
    assert error.hint == "give each class an id of its own: id<TAB>name, one a line"


def test_repeated_ids_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tcat\na\tdog\n")
    error = refusal(path)
    assert error.message == f"{path}: repeats class ids\n  line 1 and line 2: 'a'"
    assert error.hint == "each id may stand once"


def test_malformed_lines_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a\tb\tc\nowl\nid\tname\n")
    assert refusal(path).message == (
        f"{path}: is not a class list\n"
        "  line 1: 2 tabs, expected id<TAB>name\n"
        "  line 2: no id, unlike other lines"
    )


def test_empty_long_and_control_texts_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path, f"\tcat\nid\t\nlong\t{'x' * 251}\nbell\t\x07\n")
    assert refusal(path).message == (
        f"{path}: is not a class list\n"
        "  line 1: the id is empty\n"
        "  line 2: the name is empty\n"
        "  line 3: the name has 251 characters, at most 250 are allowed\n"
        "  line 4: the name '\\x07' has control characters"
    )


def test_ten_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "x\ty\n" + "lonely\n" * 12)
    lines = refusal(path).message.splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  ... and 2 more"


@pytest.mark.parametrize(("name", "text"), [("c.txt", " \n\n"), ("c.yaml", ""), ("c.json", "[]")])
def test_list_without_a_class_is_an_error(name: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name=name)
    assert refusal(path).message == f"{path}: holds no class"


def test_missing_file_and_wrong_encoding_are_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.txt"
    assert refusal(absent).message == f"{absent}: cannot be read: No such file or directory"
    path = tmp_path / "latin.txt"
    path.write_bytes("ok\ncaf\xe9\n".encode("latin-1"))
    assert refusal(path).message == f"{path}, line 2: is not UTF-8 text (byte 0xe9)"


def test_subfolders_are_the_classes_sorted_and_the_change_of_names_is_said(
    tmp_path: Path,
) -> None:
    for name in ("sea_lion", "cat", ".cache", "Owl"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.txt").touch()
    assert read_class_names(tmp_path) == ClassList(
        listed(("Owl", "Owl"), ("cat", "cat"), ("sea_lion", "sea lion")),
        "folder",
        (
            "class names come from folder names, with underscores read as spaces in 1 of 3; "
            "ids keep the folder names",
        ),
    )


def test_folder_names_without_underscores_need_no_note(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert read_class_names(tmp_path).notes == ()


def test_folder_without_subfolders_is_an_error(tmp_path: Path) -> None:
    assert refusal(tmp_path).message == f"{tmp_path}: has no subfolders, expected one a class"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "n01: tench\nn02: 'gold fish'\n"),
        ("c.yml", '{"n01": "tench", "n02": "gold fish"}'),
        ("c.json", '{"n01": "tench", "n02": "gold fish"}'),
    ],
)
def test_mappings_give_ids_and_names_in_their_order(name: str, text: str, tmp_path: Path) -> None:
    found = read_class_names(write(tmp_path, text, name=name))
    assert found.entries == listed(("n01", "tench"), ("n02", "gold fish"))
    assert found.source_kind == ("json" if name == "c.json" else "yaml")


@pytest.mark.parametrize(("name", "text"), [("c.yaml", "- b\n- a\n"), ("c.json", '["b", "a"]')])
def test_lists_give_names(name: str, text: str, tmp_path: Path) -> None:
    found = read_class_names(write(tmp_path, text, name=name))
    assert found.entries == listed(("b", "b"), ("a", "a"))


def test_yaml_scalars_stay_what_was_written(tmp_path: Path) -> None:
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
def test_keys_that_stand_twice_are_seen(name: str, text: str, places: str, tmp_path: Path) -> None:
    path = write(tmp_path, text, name=name)
    assert refusal(path).message == f"{path}: repeats class ids\n  {places}: 'a'"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: [x\n", ", line 2: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("c.yaml", "just text", ", line 1: is a single value, not a class list"),
        ("c.yaml", "a: {b: c}\n", ", line 1: a class has no field 'b', but name and prompts"),
        ("c.yaml", "a:\n- b\n- [c]\n", ", line 3: a list stands where text is expected"),
        ("c.yaml", "? [a]\n: b\n", ", line 1: a list stands where text is expected"),
        ("c.yaml", "a:\n  name: b\n  name: c\n", ", line 3: the field 'name' stands twice"),
        ("c.yaml", "a: {prompts: b}\n", ", line 1: the prompts are a text, expected a list"),
        ("c.yaml", "- [a]\n", ", line 1: a list stands where text is expected"),
        ("c.yaml", "&a [*a]\n", ", line 1: a list stands where text is expected"),
        (
            "c.json",
            '{"a": 1,\n}',
            ", line 2: is not JSON: Illegal trailing comma before end of object",
        ),
        ("c.json", "3", ": is a single value, not a class list"),
        ("c.json", '{"a": 1}', ", entry 1: a number stands where text is expected"),
        ("c.json", '["a", {"b": "c"}]', ", entry 2: a mapping stands where text is expected"),
        ("c.json", '{"a": "b", "c": ["d", null]}', ", entry 2: null stands where text is expected"),
        ("c.json", "[true]", ", entry 1: true or false stands where text is expected"),
    ],
)
def test_documents_of_another_form_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text, name=name)
    found = refusal(path).message
    if "is not JSON" in message:  # the parser's own words differ between Python versions
        found, message = found[: found.index("JSON")], message[: message.index("JSON")]
    assert found == f"{path}{message}"


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
def test_deep_nesting_is_an_error_and_not_a_crash(name: str, tmp_path: Path) -> None:
    refusal(write(tmp_path, "[" * 100_000, name=name))


names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    lambda text: text.strip() == text
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(names, names, min_size=1, max_size=8))
def test_every_format_gives_back_what_was_written(tmp_path: Path, classes: dict[str, str]) -> None:
    expected = listed(*classes.items())
    text = "".join(f"{key}\t{name}\n" for key, name in classes.items())
    if not text.startswith("\ufeff"):  # a first byte order mark is one
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
def test_any_bytes_are_a_class_list_or_a_refusal_that_names_the_file(
    tmp_path: Path, name: str, data: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    refused: ClassNamesError | None = None
    try:
        found = read_class_names(path)
    except ClassNamesError as error:
        refused = error
    if refused is not None:
        assert refused.message.startswith(str(path))
        return
    ids = [entry.id for entry in found.entries]
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(entry.id.strip() and entry.name.strip() for entry in found.entries)
    prompts = list(found.prompts(["a {}"]))
    assert [index for index, _ in prompts] == sorted(index for index, _ in prompts)
    assert {index for index, _ in prompts} == set(range(len(ids)))
