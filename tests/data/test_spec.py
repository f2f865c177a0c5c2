from __future__ import annotations

import pytest

from wiseft_cli.data.spec import parse_spec
from wiseft_cli.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("val=/data/x", ("val", "/data/x")),
        ("/data/imagenet-r/", (None, "/data/imagenet-r/")),
        ("val=a=b", ("val", "a=b")),
        ("./a=b", (None, "./a=b")),
        ("/x/run=3/val", (None, "/x/run=3/val")),
        ("labels.csv?split=val", (None, "labels.csv")),
        ("v=what?/a.csv?split=val", ("v", "what?/a.csv")),
        ("why?", (None, "why?")),
        ("data-{000..127}.tar", (None, "data-{000..127}.tar")),
    ],
)
def test_a_spec_is_split_into_name_data_and_options(spec: str, expected: object) -> None:
    parsed = parse_spec(spec)
    assert (parsed.name, parsed.data) == expected
    assert parsed.options.split == ("val" if "split" in spec else None)


def test_options_are_parsed_by_name() -> None:
    options = parse_spec(
        "v=a.csv?split=b c,path=file,label=wnid,group=region,all_classes=true,primary=macro_f1"
    ).options
    assert (options.split, options.all_classes, options.primary) == ("b c", True, "macro_f1")
    columns = options.columns
    assert (columns.path, columns.label, columns.group) == ("file", "wnid", "region")
    assert parse_spec("a.csv?labels_are_indices=false").options.labels_are_indices is False


@pytest.mark.parametrize("spec", ["", "=dir", "name=", " =dir", "v=?split=x"])
def test_an_empty_name_or_empty_data_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match=r"expected \[NAME=\]SPEC\[\?OPTION=VALUE,\.\.\.\]$"):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.csv?spilt=val", "--val 'a.csv?spilt=val': unknown option 'spilt'"),
        ("a.csv?split=", "--val 'a.csv?split=': split is empty"),
        ("a.csv?split=a,split=b", "--val 'a.csv?split=a,split=b': split is given more than once"),
        (
            "a.csv?all_classes=yes",
            "--val 'a.csv?all_classes=yes': all_classes is 'yes'; expected true or false",
        ),
        (
            "a.csv?map=m.yaml,all_classes=true",
            "--val 'a.csv?map=m.yaml,all_classes=true': map and all_classes contradict each other",
        ),
    ],
)
def test_invalid_options_are_usage_errors(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(spec, option="--val")
    assert caught.value.message == message


def test_options_separated_by_an_ampersand_are_rejected_with_the_comma_as_the_remedy() -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec("a=/data?split=test&primary=top5")
    assert (caught.value.message, caught.value.hint) == (
        "--data 'a=/data?split=test&primary=top5': options are separated by a comma, not by &",
        "write ?split=test,primary=top5",
    )
    assert parse_spec("/data/a&b?split=q&a").options.split == "q&a"
