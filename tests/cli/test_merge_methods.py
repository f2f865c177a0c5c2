"""`wiseft merge` with several fine-tuned inputs and methods: outputs, messages and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.merging import references
from tests.merging.pairs import finetuned_card, tensors, write_foreign, zeroshot_card
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.merging.fisher_file import FisherInfo, write_fisher
from wiseft_cli.merging.methods import METHODS
from wiseft_cli.merging.plan_file import combine_request

FLOATING = [name for name, array in tensors(0).items() if array.dtype == np.float32]
BLOCK = "visual.transformer.resblocks.0.weight"


def blocks(seed: int) -> dict[str, np.ndarray]:
    """Tensors with two numbered blocks; integers are equal for all seeds but 0."""
    random = np.random.default_rng(seed)
    found = tensors(seed)
    found["visual.bn.num_batches_tracked"] = np.array(min(seed, 1), np.int64)
    for index in (0, 1):
        name = BLOCK.replace("0", str(index))
        found[name] = random.standard_normal((8, 8)).astype(np.float32)
    return found


class Done(NamedTuple):
    """What a command did; `run_wiseft` runs it in this process."""

    returncode: int
    stdout: str
    stderr: str


RunWiseft = Callable[..., Done]


@pytest.fixture
def run_wiseft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunWiseft:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(list(arguments))
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A zero-shot checkpoint `zs` and three fine-tuned from it, `a`, `b` and `c`."""
    digest = write_checkpoint(tmp_path / "zs", blocks(0), zeroshot_card())
    for seed, name in enumerate("abc", start=1):
        card = replace(finetuned_card(digest), seed=seed)
        write_checkpoint(tmp_path / name, blocks(seed), card)
    return tmp_path


def read(path: Path) -> dict[str, np.ndarray]:
    from tests.merging.test_merge import read_all

    return read_all(path)


def test_several_fine_tuned_inputs_are_averaged(folder: Path, run_wiseft: RunWiseft) -> None:
    done = run_wiseft("merge", "zs", "a", "b", "c", "--alpha", "0.4", "-o", "m")
    assert (done.returncode, done.stdout) == (0, "m\n")
    theta_0, finetuned = blocks(0), [blocks(seed) for seed in (1, 2, 3)]
    merged, expected = read(folder / "m"), references.linear(theta_0, finetuned, 0.4)
    for name in FLOATING:
        np.testing.assert_allclose(merged[name], expected[name], rtol=1e-6)
    card = read_card(folder / "m")
    assert (card.alpha, card.method, card.weights) == ("0.4", "linear", ("1/3",) * 3)
    digests = {read_card(folder / name).digest for name in "abc"}
    first, *others = card.history[-1].inputs
    assert first.digest == read_card(folder / "zs").digest
    assert {item.digest for item in others} == digests
    assert {entry.output for entry in card.history} >= digests
    assert (card.recipe, card.seed) == (finetuned_card("").recipe, None)


def test_weights_follow_their_inputs_into_the_card(folder: Path, run_wiseft: RunWiseft) -> None:
    first = run_wiseft("merge", "zs", "a", "b", "--weights", "0.75,0.25", "-o", "m")
    second = run_wiseft("merge", "zs", "b", "a", "--weights", "0.25,0.75", "-o", "n")
    assert (first.returncode, second.returncode) == (0, 0)
    assert (folder / "m").read_bytes() == (folder / "n").read_bytes()
    card = read_card(folder / "m")
    weights = dict(zip((i.digest for i in card.history[-1].inputs[1:]), card.weights, strict=True))
    assert weights == {
        read_card(folder / "a").digest: "0.75",
        read_card(folder / "b").digest: "0.25",
    }


def test_the_weight_of_a_single_input_changes_nothing(folder: Path, run_wiseft: RunWiseft) -> None:
    run_wiseft("merge", "zs", "a", "-o", "m")
    run_wiseft("merge", "zs", "a", "--weights", "1", "--method", "linear", "-o", "n")
    assert (folder / "m").read_bytes() == (folder / "n").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "task-arithmetic"],
        ["--method", "ties"],
        ["--method", "ties", "--trim-scope", "tensor", "--density", "0.5", "--alpha", "0.3,1"],
        ["--method", "dare", "--seed", "3"],
        ["--method", "model-stock"],
        ["--method", "lines", "--layer-alpha-from", "0.1", "--outside-blocks", "ends"],
        ["--layer-alpha", "visual.transformer.*.{0-1}.*=0.9", "--layer-alpha", "visual.*=0.1"],
    ],
)
def test_every_method_gives_the_same_bytes_for_any_order_and_threads(
    folder: Path, run_wiseft: RunWiseft, options: list[str]
) -> None:
    template = "{alpha}" if "0.3,1" in options else ""
    for name, inputs, threads in (("x", "abc", "1"), ("y", "abc", "8"), ("z", "cab", "2")):
        done = run_wiseft(
            "merge", "zs", *inputs, *options, "--threads", threads, "-o", f"{name}{template}"
        )
        assert done.returncode == 0, done.stderr
    for alpha in ("0.3", "1") if template else ("",):
        expected = (folder / f"x{alpha}").read_bytes()
        assert (folder / f"y{alpha}").read_bytes() == expected
        if "dare" not in options:
            assert (folder / f"z{alpha}").read_bytes() == expected


def test_inspect_says_how_a_merge_was_made(folder: Path, run_wiseft: RunWiseft) -> None:
    run_wiseft("merge", "zs", "a", "b", "--method", "model-stock", "-o", "m")
    run_wiseft("merge", "zs", "a", "b", "--method", "ties", "-o", "t")
    shown = run_wiseft("inspect", "m").stdout
    assert "merged by model-stock from a zero-shot and 2 fine-tuned checkpoints" in shown
    shown = run_wiseft("inspect", "t").stdout
    assert (
        "merged by ties at alpha 1 from a zero-shot and 2 fine-tuned checkpoints with equal weights"
        " (density 0.2, trim_scope model)"
    ) in shown
    weights = ["--weights", "0.75,0.25", "--layer-alpha", "visual.proj=0.1"]
    run_wiseft("merge", "zs", "a", "b", *weights, "-o", "w")
    shown = run_wiseft("inspect", "w").stdout
    assert f"0.75 ({(read_card(folder / 'a').digest or '')[7:19]})" in shown
    assert "(layer_alpha visual.proj=0.1)" in shown
    run_wiseft("merge", "zs", "a", "--method", "slerp", "-o", "s")
    assert "from a zero-shot and a fine-tuned checkpoint\n" in run_wiseft("inspect", "s").stdout
    document = json.loads(run_wiseft("inspect", "m", "--json").stdout)["card"]
    assert (document["alpha"], document["method"]) == (None, "model-stock")


def test_messages_name_what_the_method_found(folder: Path, run_wiseft: RunWiseft) -> None:
    done = run_wiseft("merge", "zs", "a", "b", "--method", "model-stock", "-o", "m", "--json")
    assert "model-stock: t is" in done.stderr
    assert json.loads(done.stdout)["notes"][0].startswith("model-stock: t is")
    assert json.loads(done.stdout)["alpha"] is None


def test_a_single_input_names_the_output_by_its_method(folder: Path, run_wiseft: RunWiseft) -> None:
    done = run_wiseft("merge", "zs", "a", "--method", "slerp", "--alpha", "0,0.5")
    assert done.stdout.splitlines() == ["a-slerp-0.safetensors", "a-slerp-0.5.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["a", "b"], ["no default name", "-o FILE"]),
        (["a", "--method", "tie"], ["method 'tie'", "did you mean ties?"]),
        (["a", "--density", "0.1"], ["--density is an option of ties"]),
        (["a", "b", "-o", "x", "--method", "model-stock", "--alpha", "1"], ["has no alpha"]),
        (["a", "b", "-o", "{alpha}", "--method", "model-stock"], ["has no alpha to put into"]),
        (["a", "b", "-o", "x", "--weights", "0.5,0.6"], ["is 1.1", "did you mean"]),
        (["a", "--layer-alpha", "visual.nothing.*=0.2"], ["matches none of", "inspect --tensors"]),
        (["a", "--layer-alpha", "*=0.2", "--layer-alpha", "visual.*=1"], ["an earlier pattern"]),
        (["a", "--layer-alpha", "x{3-1}=0.2"], ["not a range"]),
        (["a", "--layer-alpha", "visual.*"], ["expected PATTERN=ALPHA"]),
        (["a", "--layer-alpha", "visual.*=2"], ["--layer-alpha visual.*: alpha 2 is outside"]),
        (["a", "--method", "fisher"], ["0 Fisher files given, expected 2"]),
        (["a", "--fisher", "f"], ["only the method fisher takes"]),
        (["a", "b", "-o", "x", "--method", "slerp"], ["2 fine-tuned inputs given"]),
    ],
)
def test_wrong_options_are_usage_errors(
    folder: Path, run_wiseft: RunWiseft, arguments: list[str], facts: list[str]
) -> None:
    before = sorted(folder.iterdir())
    done = run_wiseft("merge", "zs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    for fact in facts:
        assert fact in done.stderr
    assert sorted(folder.iterdir()) == before


def test_a_plan_states_what_the_options_say(folder: Path, run_wiseft: RunWiseft) -> None:
    options = [
        *("--method", "ties", "--weights", "0.25,0.75", "--density", "0.3", "--alpha", "0.8"),
        *("--layer-alpha", "visual.proj=0.1", "--dtype", "bfloat16"),
    ]
    plan = run_wiseft("merge", "zs", "a", "b", *options, "--print-plan").stdout
    assert plan.splitlines() == [
        "method: ties",
        "alpha: [0.8]",
        "weights: [0.25, 0.75]",
        "layer_alpha:",
        '  "visual.proj": 0.1',
        "density: 0.3",
        "trim_scope: model",
        "dtype: bfloat16",
        "missing: refuse",
    ]
    (folder / "plan.yaml").write_text(plan)
    by_plan = ["--plan", "plan.yaml"]
    assert run_wiseft("merge", "zs", "a", "b", *by_plan, "--print-plan").stdout == plan
    run_wiseft("merge", "zs", "a", "b", *options, "-o", "x")
    run_wiseft("merge", "zs", "a", "b", *by_plan, "-o", "y")
    assert (folder / "x").read_bytes() == (folder / "y").read_bytes()
    changed = run_wiseft("merge", "zs", "a", "b", *by_plan, "--density", "0.9", "--print-plan")
    assert "density: 0.9" in changed.stdout


def test_the_integer_0_replaces_the_value_of_the_plan(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("method: dare\nseed: 5\n")
    assert combine_request(plan, {"seed": 0, "drop": None}).options == {"seed": "0"}


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("methd: ties\n", ["plan.yaml, line 1: unknown key 'methd'", "did you mean method?"]),
        ("- ties\n", ["holds a list, expected a mapping"]),
        ("method: [a\n", ["is not YAML"]),
        ("alpha: 0.5\nalpha: 1\n", ["line 2: alpha is set again"]),
        ("layer_alpha: 0.5\n", ["layer_alpha is a text, expected pattern: alpha"]),
        ("layer_alpha:\n  x: 3\n", ["line 1", "alpha 3 is outside"]),
        (
            "layer_alpha:\n  [a, b]: 0.2\n",
            ["line 1: a pattern of layer_alpha is a list, expected one value"],
        ),
        ("dtype: int8\n", ["dtype is 'int8', expected float32 or"]),
        ("extrapolate: maybe\n", ["expected true or false"]),
    ],
)
def test_a_wrong_plan_is_reported_with_its_line(
    folder: Path, run_wiseft: RunWiseft, text: str, facts: list[str]
) -> None:
    (folder / "plan.yaml").write_text(text)
    done = run_wiseft("merge", "zs", "a", "--plan", "plan.yaml")
    assert done.returncode == 1
    for fact in facts:
        assert fact in done.stderr


def test_list_methods_needs_no_inputs(run_wiseft: RunWiseft) -> None:
    done = run_wiseft("merge", "--list-methods")
    assert done.returncode == 0
    for method in METHODS.values():
        assert (f"\n{method.name}\n" in done.stdout) == method.has_base
        assert (method.citation in done.stdout) or not method.has_base
        for option in method.options:
            assert f"{option.flag}: " in done.stdout


def write_fishers(folder: Path) -> list[str]:
    options = []
    for seed, name in enumerate(("zs", "a", "b")):
        random = np.random.default_rng(seed)
        values = {
            key: random.random(array.shape).astype(np.float32)
            for key, array in blocks(seed).items()
            if array.dtype == np.float32 and key != "visual.proj"
        }
        digest = read_card(folder / name).digest or ""
        info = FisherInfo(digest, "sha256:0", 4, 0, "model", 0, "0.1.0")
        write_fisher(folder / f"{name}.fisher", values, info)
        options += ["--fisher", f"{name}.fisher"]
    return options


def test_fisher_files_weight_the_inputs_in_any_order(folder: Path, run_wiseft: RunWiseft) -> None:
    options = write_fishers(folder)
    done = run_wiseft("merge", "zs", "a", "b", "--method", "fisher", *options, "-o", "m")
    assert done.returncode == 0, done.stderr
    fishers = [read(folder / f"{name}.fisher") for name in ("zs", "a", "b")]
    floating = [{n: blocks(seed)[n] for n in (*FLOATING, BLOCK)} for seed in (0, 1, 2)]
    expected = references.fisher(floating[0], floating[1:], fishers, 0.5, floor=1e-6)
    merged = read(folder / "m")
    for name, values in expected.items():
        np.testing.assert_allclose(merged[name], values, rtol=2e-7)
    roles = [item.role for item in read_card(folder / "m").history[-1].inputs]
    assert roles == ["zeroshot", "finetuned", "finetuned", "fisher", "fisher", "fisher"]
    swapped = [*options[:2], *options[4:], *options[2:4]]
    run_wiseft("merge", "zs", "b", "a", "--method", "fisher", *swapped, "-o", "n")
    assert (folder / "m").read_bytes() == (folder / "n").read_bytes()


def test_a_fisher_file_of_another_checkpoint_is_rejected(
    folder: Path, run_wiseft: RunWiseft
) -> None:
    options = write_fishers(folder)
    swapped = [*options[:2], *options[4:], *options[2:4]]
    done = run_wiseft("merge", "zs", "a", "b", "--method", "fisher", *swapped, "-o", "m")
    assert done.returncode == 1
    assert "b.fisher: is the Fisher information of checkpoint" in done.stderr


def test_the_input_that_differs_from_the_others_is_named(
    folder: Path, run_wiseft: RunWiseft
) -> None:
    odd = blocks(9)
    odd["visual.proj"] = odd["visual.proj"][:, :3]
    del odd["visual.empty"]
    write_foreign(folder / "odd", odd)
    done = run_wiseft("merge", "zs", "a", "odd", "b", "-o", "m")
    assert done.returncode == 1
    assert "odd does not match zs and the 2 inputs like it" in done.stderr
    assert "odd: visual.empty: only in zs" in done.stderr
    assert "odd: visual.proj: shape (8, 3), expected (8, 4)" in done.stderr
    first = run_wiseft("merge", "odd", "a", "b", "-o", "m")
    assert "odd does not match a and the 1 input like it" in first.stderr


def test_another_zero_shot_parent_is_named(folder: Path, run_wiseft: RunWiseft) -> None:
    digest = write_checkpoint(folder / "other", blocks(7), zeroshot_card())
    write_checkpoint(folder / "stranger", blocks(8), finetuned_card(digest))
    done = run_wiseft("merge", "zs", "a", "stranger", "-o", "m")
    assert "stranger was fine-tuned from another zero-shot checkpoint" in done.stderr
    assert "a was" not in done.stderr


def test_parents_named_by_two_hashes_are_not_taken_for_two(
    folder: Path, run_wiseft: RunWiseft
) -> None:
    for name, digest in (("old", "sha256:" + "cd" * 32), ("older", "sha256:" + "ef" * 32)):
        write_checkpoint(folder / name, blocks(8), finetuned_card(digest))
    done = run_wiseft("soup", "a", "old", "-o", "m")
    assert done.returncode == 0
    assert "another zero-shot" not in done.stderr
    text = "older was fine-tuned from another zero-shot checkpoint (efefefefefef) than old"
    assert text in run_wiseft("soup", "a", "old", "older", "-o", "n").stderr


@pytest.mark.parametrize("shape", [(), (1,)])
def test_integers_must_agree_and_counters_take_the_largest(
    folder: Path, run_wiseft: RunWiseft, shape: tuple[int, ...]
) -> None:
    for name, steps, ids in (("p", 5, 1), ("q", 3, 1), ("r", 4, 2)):
        arrays = {
            "w": np.full(4, steps, np.float32),
            "bn.num_batches_tracked": np.full(shape, steps),
            "ids": np.array([ids, 2]),
        }
        write_foreign(folder / name, arrays)
    done = run_wiseft("merge", "q", "p", "q", "-o", "m")
    assert done.returncode == 0, done.stderr
    assert read(folder / "m")["bn.num_batches_tracked"] == 5
    done = run_wiseft("merge", "q", "p", "r", "-o", "n")
    assert done.returncode == 1
    assert "ids: p and r" in done.stderr
    assert "the same file" in run_wiseft("merge", "zs", "a", "a", "-o", "o").stderr
