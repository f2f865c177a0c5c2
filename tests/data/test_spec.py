from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_image_folder import put
from wiseft_cli.data.spec import parse_data_spec
from wiseft_cli.errors import UsageError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("val=/data/x", ("val", Path("/data/x"))),
        ("/data/imagenet-r/", ("imagenet-r", Path("/data/imagenet-r"))),
        ("val=a=b", ("val", Path("a=b"))),
        ("./a=b", ("a=b", Path("a=b"))),
        ("/x/run=3/val", ("val", Path("/x/run=3/val"))),
    ],
)
def test_a_data_spec_is_split_at_the_first_equals_sign(spec: str, expected: object) -> None:
    assert parse_data_spec(spec) == expected


def test_a_folder_without_a_name_in_its_path_is_named_after_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(put(tmp_path / "mine", "a/1.png"))
    assert parse_data_spec(".") == ("mine", Path())


@pytest.mark.parametrize("spec", ["", "=dir", "name=", " =dir", "/"])
def test_an_empty_name_or_folder_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match=r"expected \[NAME=\]DIR$"):
        parse_data_spec(spec)
