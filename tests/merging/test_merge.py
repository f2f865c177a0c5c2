"""A merge from files to files: tensors, cards, refused inputs and reproducible bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from blake3 import blake3

from tests.merging.pairs import (
    finetuned_card,
    tensors,
    write_foreign,
    write_pair,
    write_sharded,
    zeroshot_card,
)
from tests.merging.test_arithmetic import round_exactly
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import CheckpointError, IncompatibleCheckpointsError, OutputError
from wiseft_cli.evaluation.weight_sets import read_checkpoints
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.arithmetic import BLOCK, interpolate_arrays
from wiseft_cli.merging.merge import MergeReport, merge_checkpoints

HEAD_WARNING = (
    "classification_head.weight: nothing in {} says that its 2 rows are the same classes in the "
    "same order as in the other file"
)


def merge(zeroshot: Path, finetuned: Path, out: Path, alpha: str = "0.3", **options) -> MergeReport:
    outputs = [(parsed, out) for parsed in parse_alphas([alpha], extrapolate=True)]
    return merge_checkpoints(zeroshot, finetuned, outputs, **options)


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as reader:
        return {name: reader.read_array(name) for name in reader.tensors}


def test_every_tensor_is_interpolated(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    out = tmp_path / "out.safetensors"
    report = merge(zeroshot, finetuned, out)
    theta_0, theta_1, merged = tensors(0), tensors(1), read_all(out)
    assert merged.keys() == theta_0.keys()
    for name, array in merged.items():
        assert array.tobytes() == interpolate_arrays(theta_0[name], theta_1[name], 0.3).tobytes()
    assert report.warnings == ()
    assert report.discrete == ("visual.bn.num_batches_tracked",)


def test_large_tensors_equal_those_computed_by_torch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    theta_0 = {"w": torch.randn(3, 2 * BLOCK + 7, generator=generator)}
    theta_1 = {"w": theta_0["w"] + 0.01 * torch.randn(theta_0["w"].shape, generator=generator)}
    for name, state in (("a", theta_0), ("b", theta_1)):
        safetensors.torch.save_file(state, tmp_path / name)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", "0.7")
    merged = safetensors.torch.load_file(tmp_path / "out")["w"]
    alpha = 0.7
    expected = ((1 - alpha) * theta_0["w"].double() + alpha * theta_1["w"].double()).float()
    assert torch.equal(merged, expected)


@pytest.mark.parametrize(("alpha", "side"), [("0", 0), ("1", 1)])
def test_alpha_0_and_1_copy_the_bytes_of_their_input(tmp_path: Path, alpha: str, side: int) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    out = tmp_path / "out.safetensors"
    report = merge(zeroshot, finetuned, out, alpha)
    merged, expected = read_all(out), tensors(side)
    for name, array in merged.items():
        if array.dtype == np.int64:
            assert array == tensors(1)[name]
        else:
            assert array.tobytes() == expected[name].tobytes()
    if side == 1:
        assert report.files[0].digest == read_card(finetuned).digest


def test_the_card_keeps_model_and_classes_and_joins_both_histories(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    out = tmp_path / "out.safetensors"
    report = merge(zeroshot, finetuned, out, "0.30")
    card, card_0, card_1 = read_card(out), read_card(zeroshot), read_card(finetuned)
    assert (card.role, card.alpha, card.seed) == ("merged", "0.3", 0)
    assert (card.model, card.preprocess) == (card_0.model, card_0.preprocess)
    assert (card.classes, card.templates) == (card_0.classes, card_0.templates)
    assert (card.recipe, card.logit_scale) == (card_1.recipe, 100.0)
    assert card.digest == report.files[0].digest
    assert [entry.command for entry in card.history] == ["zeroshot-head", "finetune", "merge"]
    assert [entry.output for entry in card.history] == [card_0.digest, card_1.digest, None]
    last = card.history[-1]
    assert last.options == {"alpha": "0.3"}
    assert [(i.role, i.digest) for i in last.inputs] == [
        ("zeroshot", card_0.digest),
        ("finetuned", card_1.digest),
    ]


def documented_digest(path: Path) -> str:
    """The content digest as docs/checkpoint-format.md spells it out, from the raw file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    digest = blake3()
    for name in sorted(header, key=lambda name: name.encode()):
        begin, end = (8 + length + offset for offset in header[name]["data_offsets"])
        row = [name, header[name]["dtype"], header[name]["shape"]]
        row.append(blake3(raw[begin:end]).hexdigest())
        digest.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return "blake3:" + digest.hexdigest()


def test_a_merge_of_foreign_files_has_a_card_with_both_digests(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", tensors(0), {"format": "pt", "author": "me", "step": "1"})
    b = write_foreign(tmp_path / "b", tensors(1), {"format": "pt", "author": "me", "step": "2"})
    out = tmp_path / "out"
    report = merge(a, b, out, "0.5")
    with open_checkpoint(out) as reader:
        card, metadata = reader.card, dict(reader.metadata)
    metadata.pop("wiseft")
    assert metadata == {"format": "pt", "author": "me"}
    assert card is not None
    assert (card.model, card.classes, card.role, card.alpha) == (None, (), "merged", "0.5")
    assert [i.digest for i in card.history[-1].inputs] == [
        documented_digest(a),
        documented_digest(b),
    ]
    assert card.digest == documented_digest(out) == report.files[0].digest
    assert safetensors.numpy.load_file(out).keys() == tensors(0).keys()


def test_a_foreign_finetuned_file_takes_the_zero_shot_card_with_a_warning(
    tmp_path: Path,
) -> None:
    zeroshot, _ = write_pair(tmp_path)
    foreign = write_foreign(tmp_path / "mine.safetensors", tensors(1))
    report = merge(zeroshot, foreign, tmp_path / "out")
    assert report.warnings == (
        f"{foreign} has no wiseft card: the result takes its classes and model from the other file",
        HEAD_WARNING.format(foreign),
    )
    assert read_card(tmp_path / "out").classes == zeroshot_card().classes


def test_order_alignment_scalars_and_empty_tensors_do_not_matter(tmp_path: Path) -> None:
    theta_0 = {**tensors(0), "scalar": np.float32(1.0).reshape(()), "byte": np.zeros(3, np.uint8)}
    theta_1 = {**tensors(1), "scalar": np.float32(2.0).reshape(()), "byte": np.ones(3, np.uint8)}
    a = write_foreign(tmp_path / "a", theta_0)
    straight = write_foreign(tmp_path / "b", theta_1)
    turned = write_foreign(tmp_path / "c", dict(reversed(theta_1.items())), padding=3)
    merge(a, straight, tmp_path / "straight.out")
    merge(a, turned, tmp_path / "turned.out")
    straight_bytes = (tmp_path / "straight.out").read_bytes()
    assert (tmp_path / "turned.out").read_bytes() == straight_bytes
    assert read_all(tmp_path / "straight.out")["scalar"] == np.float32(0.7 * 1.0 + 0.3 * 2.0)


def test_shards_merge_like_one_file(tmp_path: Path) -> None:
    theta_0, names = tensors(0), sorted(tensors(0))
    a = write_foreign(tmp_path / "a", theta_0, {"format": "pt"})
    b = write_foreign(tmp_path / "b", tensors(1), {"format": "pt"})
    index = write_sharded(
        tmp_path / "shards",
        {
            "model-00001-of-00002.safetensors": {name: theta_0[name] for name in names[:2]},
            "model-00002-of-00002.safetensors": {name: theta_0[name] for name in names[2:]},
        },
    )
    for number, source in enumerate((a, index, tmp_path / "shards")):
        merge(source, b, tmp_path / f"{number}.out")
    whole = (tmp_path / "0.out").read_bytes()
    assert (tmp_path / "1.out").read_bytes() == whole
    assert (tmp_path / "2.out").read_bytes() == whole


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_merge_is_bitwise_reproducible_across_threads(tmp_path: Path, threads: int) -> None:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        arrays = {
            f"t{i}": random.standard_normal((i + 1) * 30_000).astype(np.float32) for i in range(6)
        }
        write_foreign(tmp_path / name, arrays)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "one", threads=1)
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "many", threads=threads)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_several_alphas_write_what_each_alone_writes(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    alphas = parse_alphas(["0:1:0.25"])
    together = [(alpha, tmp_path / f"all-{alpha.text}") for alpha in alphas]
    report = merge_checkpoints(zeroshot, finetuned, together)
    assert [file.path for file in report.files] == [path for _, path in together]
    for alpha, path in together:
        merge(zeroshot, finetuned, tmp_path / f"one-{alpha.text}", alpha.text)
        assert path.read_bytes() == (tmp_path / f"one-{alpha.text}").read_bytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_dtype_rounds_the_float64_value_once(tmp_path: Path, dtype: type, stored: str) -> None:
    random = np.random.default_rng(0)
    x, y = (random.standard_normal(500).astype(dtype) for _ in range(2))
    write_foreign(tmp_path / "a", {"w": x, "n": np.array([1])})
    write_foreign(tmp_path / "b", {"w": y.astype(np.float32), "n": np.array([2])})
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "out", "0.3", dtype=stored)
    merged = read_all(tmp_path / "out")
    value = (1 - 0.3) * x.astype(np.float64) + 0.3 * y.astype(np.float32).astype(np.float64)
    if stored == "float32":
        assert merged["w"].tobytes() == value.astype(np.float32).tobytes()
    else:
        expected = [round_exactly(float(v), stored) for v in value]
        assert merged["w"].view(np.uint16).tolist() == expected
    assert merged["n"].dtype == np.int64
    card = read_card(tmp_path / "out")
    assert card.history[-1].options == {"alpha": "0.3", "dtype": stored}


def test_different_dtypes_are_refused_with_the_remedy(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", {"w": np.zeros(2, np.float32)})
    b = write_foreign(tmp_path / "b", {"w": np.zeros(2, np.float16)})
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        merge(a, b, tmp_path / "out")
    assert caught.value.message == (
        f"{b} does not match {a} at 1 of 1 tensor:\n  w: dtype F16, expected F32"
    )
    assert caught.value.hint == "choose the dtype to store, for example --dtype float32"


def test_missing_copy_copies_and_reports_tensors_of_one_input(tmp_path: Path) -> None:
    half = np.array([1.5, 2.5], np.float16)
    a = write_foreign(tmp_path / "a", {"w": np.zeros(2, np.float32), "only_0": half})
    b = write_foreign(tmp_path / "b", {"w": np.ones(2, np.float32), "only_1": np.array([3])})
    report = merge(a, b, tmp_path / "out", "0.5", copies_missing=True)
    merged = read_all(tmp_path / "out")
    assert report.missing == ("only_0", "only_1")
    assert merged["only_0"].tobytes() == half.tobytes()
    assert merged["only_1"] == 3
    assert read_card(tmp_path / "out").history[-1].options == {"alpha": "0.5", "missing": "copy"}
    merge(a, b, tmp_path / "out32", "0.5", copies_missing=True, dtype="float32")
    assert read_all(tmp_path / "out32")["only_0"].dtype == np.float32


def test_extra_tensors_remove_model_and_classes_from_the_card(
    tmp_path: Path,
) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    full = write_foreign(tmp_path / "full", {**read_all(finetuned), "text": np.ones(2, np.float32)})
    report = merge(zeroshot, full, tmp_path / "out", "0.5", copies_missing=True)
    card = read_card(tmp_path / "out")
    assert (card.model, card.classes, card.role) == (None, (), "merged")
    assert [entry.command for entry in card.history] == ["zeroshot-head", "merge"]
    assert report.warnings == (
        f"{full} has no wiseft card, and 1 tensor that {zeroshot} lacks: the result is not a "
        "classifier, and its card has no model",
        HEAD_WARNING.format(full),
    )


def test_a_file_merged_with_itself_warns(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    report = merge(zeroshot, zeroshot, tmp_path / "out", "0.5")
    assert report.warnings == (
        f"{zeroshot} and {zeroshot} are the same file, so every merge equals it",
    )


def test_dtypes_without_arithmetic_are_copied_if_equal_and_refused_if_not(tmp_path: Path) -> None:
    packed = np.arange(6, dtype=np.uint8)
    kinds = {"q": "F4"}
    same = {"q": packed, "z": np.array([1 + 2j], np.complex64)}
    other = {"q": packed[::-1].copy(), "z": np.array([2 + 2j], np.complex64)}
    a = write_foreign(tmp_path / "a", same, dtypes=kinds)
    b = write_foreign(tmp_path / "b", same, dtypes=kinds)
    c = write_foreign(tmp_path / "c", other, dtypes=kinds)
    merge(a, b, tmp_path / "out")
    assert (tmp_path / "out").read_bytes().endswith(same["z"].tobytes() + packed.tobytes())
    with pytest.raises(IncompatibleCheckpointsError) as caught:
        merge(a, c, tmp_path / "no")
    assert caught.value.message == (
        f"{c} cannot be merged with {a}:\n"
        "  q: dtype F4 cannot be interpolated, and the bytes differ\n"
        "  z: dtype C64 cannot be interpolated, and the bytes differ"
    )
    assert not (tmp_path / "no").exists()


def test_new_non_finite_values_warn_and_raise_if_strict(
    tmp_path: Path,
) -> None:
    a = write_foreign(tmp_path / "a", {"w": np.array([3e38, 1, np.inf], np.float32)})
    b = write_foreign(tmp_path / "b", {"w": np.array([-3e38, 1, 1], np.float32)})
    report = merge(a, b, tmp_path / "out", "-1")
    text = "alpha -1: merged values are not finite although those of both inputs are: w (1 value)"
    assert report.warnings == (f"{a}: values are infinite or NaN: w (1 value)", text)
    assert report.files[0].not_finite == {"w": 1}
    assert report.not_finite == ({"w": 1}, {})
    with pytest.raises(CheckpointError) as caught:
        merge(a, b, tmp_path / "strict", "-1", is_strict=True)
    assert caught.value.message.endswith(f"\n  {text}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


@pytest.mark.parametrize("alpha", ["0", "0.3", "1", "1.5"])
@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
def test_values_of_the_inputs_that_are_not_finite_are_counted(
    tmp_path: Path, alpha: str, dtype: type
) -> None:
    size = BLOCK + 100
    x, y, same = (np.ones(size).astype(dtype) for _ in range(3))
    x[[0, BLOCK, size - 1]] = np.inf, -np.inf, np.nan
    y[[0, 7]] = np.nan
    same[5] = np.inf
    a = write_foreign(tmp_path / "a", {"w": x, "z": same, "fine": np.ones(9, dtype)})
    b = write_foreign(tmp_path / "b", {"w": y, "z": same, "fine": np.ones(9, dtype)})
    report = merge(a, b, tmp_path / "out", alpha)
    assert report.not_finite == ({"w": 3, "z": 1}, {"w": 2, "z": 1})
    assert report.warnings == (
        f"{a}: values are infinite or NaN: w (3 values), z (1 value)",
        f"{b}: values are infinite or NaN: w (2 values), z (1 value)",
    )
    with pytest.raises(CheckpointError, match="--strict makes warnings errors"):
        merge(a, b, tmp_path / "strict", alpha, is_strict=True)
    assert not (tmp_path / "strict").exists()


def test_copied_and_converted_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", {"w": np.ones(2), "text": np.array([np.nan, 1, np.inf])})
    b = write_foreign(tmp_path / "b", {"w": np.ones(2)})
    for number, dtype in enumerate((None, "float32")):
        report = merge(a, b, tmp_path / str(number), copies_missing=True, dtype=dtype)
        assert report.not_finite == ({"text": 2}, {})


@pytest.mark.parametrize(("n_empty", "n_tensors"), [(1, 1), (3, 4), (2, 4), (0, 2)])
def test_files_of_empty_tensors_are_named(tmp_path: Path, n_empty: int, n_tensors: int) -> None:
    paths = [
        write_foreign(
            tmp_path / side,
            {f"t{i}": np.zeros(0 if i < n_empty else 2, np.float32) for i in range(n_tensors)},
        )
        for side in "ab"
    ]
    expected = tuple(
        f"{path}: {n_empty} of {n_tensors} tensor{'s' * (n_tensors > 1)} are empty, as DeepSpeed "
        "ZeRO-3 saves them in each process; gather the weights with its zero_to_fp32.py"
        for path in paths
    )
    found = merge(*paths, tmp_path / "out").warnings
    assert found == (expected if 2 * n_empty > n_tensors else ())


def test_finite_inputs_are_never_reported(tmp_path: Path) -> None:
    largest = np.array([3.4e38, -3.4e38, 1e-45], np.float32)
    a = write_foreign(tmp_path / "a", {"w": largest})
    b = write_foreign(tmp_path / "b", {"w": -largest})
    for alpha in ("0", "0.5", "1", "-3"):
        assert merge(a, b, tmp_path / alpha, alpha).not_finite == ({}, {})


def test_another_zero_shot_parent_warns_and_raises_if_strict(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    stranger = tmp_path / "stranger.safetensors"
    write_checkpoint(stranger, tensors(1), finetuned_card("blake3:" + "ab" * 32))
    own = (read_card(zeroshot).digest or "").removeprefix("blake3:")[:12]
    text = (
        f"{stranger} was fine-tuned from another zero-shot checkpoint (abababababab) "
        f"than {zeroshot} ({own})"
    )
    assert merge(zeroshot, stranger, tmp_path / "out").warnings == (text,)
    with pytest.raises(CheckpointError, match="--strict makes warnings errors"):
        merge(zeroshot, stranger, tmp_path / "strict", is_strict=True)


def test_two_fine_tuned_checkpoints_are_named_as_such(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    digest = read_card(zeroshot).digest or ""
    sibling, stranger = tmp_path / "sibling", tmp_path / "stranger"
    write_checkpoint(sibling, tensors(2), finetuned_card(digest))
    write_checkpoint(stranger, tensors(3), finetuned_card("blake3:" + "ab" * 32))
    merge(zeroshot, sibling, tmp_path / "m", "0.5")
    own = digest.removeprefix("blake3:")[:12]
    tail = "alpha 0 is the first of them, not a zero-shot model"
    for first, second, kinds in (
        (finetuned, sibling, f"two finetuned checkpoints with the same zero-shot parent {own}"),
        (
            finetuned,
            stranger,
            f"two finetuned checkpoints with different zero-shot parents {own} and abababababab",
        ),
        (
            tmp_path / "m",
            finetuned,
            f"a merged and a finetuned checkpoint with the same zero-shot parent {own}",
        ),
        (
            finetuned,
            tmp_path / "m",
            f"a finetuned and a merged checkpoint with the same zero-shot parent {own}",
        ),
    ):
        report = merge(first, second, tmp_path / "out", "0.5", force=True)
        assert report.warnings == (f"{first} and {second} are {kinds}: {tail}",)
        roles = [item.role for item in read_card(tmp_path / "out").history[-1].inputs]
        assert roles == [read_card(first).role, read_card(second).role]
    assert merge(zeroshot, tmp_path / "m", tmp_path / "again").warnings == ()


def test_the_wrong_order_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        merge(finetuned, zeroshot, tmp_path / "out")
    assert caught.value.message == (
        f"{finetuned}: is a finetuned checkpoint, expected a zero-shot checkpoint"
    )
    assert caught.value.hint == (
        f"name the zero-shot checkpoint first: wiseft merge {zeroshot} {finetuned}"
    )


@pytest.mark.parametrize("side", [0, 1])
def test_a_flipped_byte_raises_an_error_that_names_the_file(tmp_path: Path, side: int) -> None:
    pair = write_pair(tmp_path)
    damaged = bytearray(pair[side].read_bytes())
    damaged[-9] ^= 1
    pair[side].write_bytes(damaged)
    with pytest.raises(CheckpointError) as caught:
        merge(*pair, tmp_path / "out")
    assert caught.value.message == (
        f"{pair[side]}: its tensors do not match its card: content digest "
        f"{documented_digest(pair[side])}, expected {read_card(pair[side]).digest}"
    )
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


@pytest.mark.parametrize("link", ["none", "symbolic", "hard"])
def test_an_output_that_is_an_input_is_refused_even_with_force(tmp_path: Path, link: str) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    out = finetuned if link == "none" else tmp_path / "link"
    if link == "symbolic":
        out.symlink_to(finetuned)
    elif link == "hard":
        out.hardlink_to(finetuned)
    before = finetuned.read_bytes()
    with pytest.raises(OutputError, match="is also an input"):
        merge(zeroshot, finetuned, out, force=True)
    assert finetuned.read_bytes() == before


def test_a_shard_as_output_is_refused_as_an_input(tmp_path: Path) -> None:
    index = write_sharded(tmp_path / "m", {"x.safetensors": {"w": np.zeros(2, np.float32)}})
    b = write_foreign(tmp_path / "b", {"w": np.ones(2, np.float32)})
    for out in (index, tmp_path / "m" / "x.safetensors"):
        with pytest.raises(OutputError, match="is also an input"):
            merge(index, b, out, force=True)


def test_a_merge_of_merges_lists_every_step_once(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    merge(zeroshot, finetuned, tmp_path / "m1", "0.5")
    merge(zeroshot, tmp_path / "m1", tmp_path / "m2", "0.5")
    history = read_card(tmp_path / "m2").history
    assert [entry.command for entry in history] == ["zeroshot-head", "finetune", "merge", "merge"]
    assert len({entry.output for entry in history}) == 4
    quarter = {
        name: interpolate_arrays(array, interpolate_arrays(array, tensors(1)[name], 0.5), 0.5)
        for name, array in tensors(0).items()
    }
    for name, array in read_all(tmp_path / "m2").items():
        assert array.tobytes() == quarter[name].tobytes()


def test_unknown_card_fields_are_kept_if_both_inputs_agree(tmp_path: Path) -> None:
    zeroshot, finetuned = tmp_path / "zs", tmp_path / "ft"
    extra = {"licence": "MIT", "note": "a"}
    digest = write_checkpoint(zeroshot, tensors(0), replace(zeroshot_card(), extra=extra))
    other = replace(finetuned_card(digest), extra={**extra, "note": "b"})
    write_checkpoint(finetuned, tensors(1), other)
    merge(zeroshot, finetuned, tmp_path / "out")
    assert read_card(tmp_path / "out").extra == {"licence": "MIT"}


def test_progress_adds_up_to_the_bytes_of_both_inputs(tmp_path: Path) -> None:
    zeroshot, finetuned = write_pair(tmp_path)
    calls: list[tuple[int, int]] = []
    merge(zeroshot, finetuned, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    total = 2 * sum(array.nbytes for array in tensors(0).values())
    assert {call[0] for call in calls} == {total}
    assert sum(call[1] for call in calls) == total


@pytest.mark.parametrize("names", [("w",), ("visual.proj", "token_embedding.weight"), ("a.b.c",)])
def test_a_merge_of_foreign_files_is_not_sent_back_to_merge(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    a, b = (
        write_foreign(tmp_path / side, {name: np.full(3, i, np.float32) for name in names})
        for i, side in enumerate("ab")
    )
    merge(a, b, tmp_path / "out")
    with pytest.raises(CheckpointError, match="its card has no model") as caught:
        read_checkpoints([tmp_path / "out"])
    assert caught.value.hint is not None
    assert "merge of files from other programs" in caught.value.hint
    assert "wiseft zeroshot-head --model NAME --pretrained FILE" in caught.value.hint
