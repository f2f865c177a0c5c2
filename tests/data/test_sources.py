from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.data.test_image_folder import put
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError, UsageError


def test_default_names_come_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_manifest_options_are_rejected_for_other_data(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    with pytest.raises(UsageError) as caught:
        open_image_set(f"{tmp_path}?split=val,label=x")
    assert caught.value.message == (
        f"{tmp_path}: split, label applies only to manifests (.csv, .tsv, .jsonl)"
    )


def test_an_unknown_kind_of_file_is_rejected_with_the_known_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DatasetError) as caught:
        open_image_set(str(tmp_path / "a.txt"))
    assert caught.value.message == (
        f"{tmp_path}/a.txt is not a known kind of file; expected a folder, a manifest"
        " (.csv, .tsv, .jsonl) or shards (data-{000..127}.tar)"
    )


def test_a_label_map_leaves_out_images_and_is_kept_for_the_join(tmp_path: Path) -> None:
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


def test_a_folder_of_shards_is_rejected_with_a_pattern_as_the_remedy(tmp_path: Path) -> None:
    put(tmp_path, "0.tar", "1.tar")
    with pytest.raises(DatasetError) as caught:
        open_image_set(str(tmp_path))
    assert (
        caught.value.hint == f"name its shards with a pattern, as in '{tmp_path}/{{000..127}}.tar'"
    )
