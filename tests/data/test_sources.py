from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.data.test_image_folder import put
from wiseft_cli.data.sources import open_image_set, open_image_sets
from wiseft_cli.data.spec import parse_spec
from wiseft_cli.errors import DatasetError, UsageError


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
def test_a_data_spec_is_split_into_name_data_and_options(spec: str, expected: object) -> None:
    parsed = parse_spec(spec)
    assert (parsed.name, parsed.data) == expected
    assert parsed.options.split == ("val" if "split" in spec else None)


def test_options_are_read_by_name() -> None:
    options = parse_spec(
        "v=a.csv?split=b c,path=file,label=wnid,group=region,all_classes=true,primary=macro_f1"
    ).options
    assert (options.split, options.all_classes, options.primary) == ("b c", True, "macro_f1")
    columns = options.columns
    assert (columns.path, columns.label, columns.group) == ("file", "wnid", "region")
    assert parse_spec("a.csv?labels_are_indices=false").options.labels_are_indices is False


@pytest.mark.parametrize("spec", ["", "=dir", "name=", " =dir", "v=?split=x"])
def test_an_empty_name_or_data_is_a_usage_error(spec: str) -> None:
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
def test_options_that_cannot_be_are_usage_errors(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_image_set(spec, option="--val")
    assert caught.value.message == message


def test_sets_are_named_after_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(put(tmp_path / "mine", "a/1.png"))
    Path("labels.csv").write_text("path,label,split\na/1.png,a,val\n")
    with tarfile.open("data-00.tar", "w") as shard:
        shard.add("a/1.png", "1.png")
        Path("1.cls").write_text("a")
        shard.add("1.cls")
    assert [
        open_image_set(spec).name
        for spec in (".", "x=.", "labels.csv", "labels.csv?split=val", "data-{00..00}.tar")
    ] == ["mine", "x", "labels", "labels-val", "data"]
    Path("data-00.tar").rename("0.tar")
    assert open_image_set("{0..0}.tar").name == "mine"


def test_options_of_manifests_are_refused_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    with pytest.raises(UsageError) as caught:
        open_image_set(f"{tmp_path}?split=val,label=x")
    assert caught.value.message == (
        f"{tmp_path}: split, label applies only to manifests (.csv, .tsv, .jsonl)"
    )


def test_a_file_of_no_known_kind_is_refused_with_the_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DatasetError) as caught:
        open_image_set(str(tmp_path / "a.txt"))
    assert caught.value.message == (
        f"{tmp_path}/a.txt is not a known kind of file; expected a folder, a manifest"
        " (.csv, .tsv, .jsonl) or shards (data-{000..127}.tar)"
    )


def test_a_map_leaves_out_labels_and_is_kept_for_the_join(tmp_path: Path) -> None:
    put(tmp_path / "set", "a/1.png", "b/1.png", "b/2.png")
    (tmp_path / "m.yaml").write_text("classes: {a: n1}\nleave_out: [b]\n")
    image_set = open_image_set(f"{tmp_path}/set?map={tmp_path}/m.yaml,primary=top5")
    assert [record.path for record in image_set.records] == ["a/1.png"]
    assert image_set.notes == (f"image set 'set': {tmp_path}/m.yaml leaves out 2 images",)
    assert image_set.join_options.label_map is not None
    assert image_set.join_options.primary == "top5"
    (tmp_path / "m.yaml").write_text("classes: {c: n1}\nleave_out: [a, b]\n")
    with pytest.raises(DatasetError, match=r"leaves out every label of image set 'set': 'a', 'b'$"):
        open_image_set(f"{tmp_path}/set?map={tmp_path}/m.yaml")


def write_suite(tmp_path: Path, text: str) -> str:
    (tmp_path / "suite.yaml").write_text(text)
    return str(tmp_path / "suite.yaml")


def test_a_suite_opens_its_sets_from_its_own_folder(tmp_path: Path) -> None:
    put(tmp_path / "val", "a/1.png", "b/1.png")
    (tmp_path / "labels.csv").write_text("path,kind,split\nval/a/1.png,n1,test\nx,n2,train\n")
    (tmp_path / "m.yaml").write_text("a: n1\nb: n2\n")
    suite = write_suite(
        tmp_path,
        "- data: val\n  map: m.yaml\n"
        "- {name: shift, data: labels.csv, split: test, label: kind, primary: worst_group}\n"
        "- data: val\n  name: indices\n  labels_are_indices: true\n",
    )
    val, shift, indices = open_image_sets(suite)
    assert (val.name, shift.name, indices.name) == ("val", "shift", "indices")
    assert val.join_options.label_map is not None
    assert val.join_options.label_map.path == tmp_path / "m.yaml"
    assert [(record.path, record.label) for record in shift.records] == [("val/a/1.png", "n1")]
    assert shift.join_options.primary == "worst_group"
    assert indices.join_options.labels_are_indices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": contains nothing, expected a list of image sets"),
        ("data: val\n", ": contains a mapping, expected a list of image sets"),
        ("- val\n", ", line 1: expected an image set, found a text"),
        ("- name: x\n", ", line 1: the image set has no `data:`"),
        ("- data: v\n  mpa: x\n", ", line 2: unknown key 'mpa'"),
        ("- data: v\n  data: w\n", ", line 2: 'data' occurs more than once"),
        ("- data: [v]\n", ", line 1: the value of data is not text"),
        ("- data: o.yaml\n", ", line 1: 'o.yaml' is a suite; a suite lists only image sets"),
        (
            "- data: v\n- data: v\n  all_classes: 1\n",
            ", line 2: all_classes is '1'; expected true or false",
        ),
    ],
)
def test_a_suite_that_is_none_says_where(tmp_path: Path, text: str, message: str) -> None:
    suite = write_suite(tmp_path, text)
    with pytest.raises(DatasetError) as caught:
        open_image_sets(suite)
    assert caught.value.message == suite + message


def test_a_suite_is_no_single_set_and_takes_no_name(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "- data: val\n")
    with pytest.raises(UsageError, match=r"is a suite of several sets; expected one set: a folder"):
        open_image_set(suite, option="--train")
    with pytest.raises(UsageError, match=r"the sets of a suite have their own names and options$"):
        open_image_sets(f"x={suite}")


def test_a_folder_of_shards_is_told_how_to_name_them(tmp_path: Path) -> None:
    put(tmp_path, "0.tar", "1.tar")
    with pytest.raises(DatasetError) as caught:
        open_image_set(str(tmp_path))
    assert (
        caught.value.hint == f"name its shards with a pattern, as in '{tmp_path}/{{000..127}}.tar'"
    )


def test_options_with_an_ampersand_between_them_are_told_of_the_comma() -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec("a=/data?split=test&primary=top5")
    assert (caught.value.message, caught.value.hint) == (
        "--data 'a=/data?split=test&primary=top5': options are separated by a comma, not by &",
        "write ?split=test,primary=top5",
    )
    assert parse_spec("/data/a&b?split=q&a").options.split == "q&a"
