"""The runs of a sweep: combinations, names, and what is rejected."""

from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_cli.errors import UsageError
from wiseft_cli.training.sweep import plan_sweep, separate_sweep_values


def test_every_combination_is_a_run_with_its_own_output() -> None:
    texts = ["lr=1e-5,3e-5", "weight-decay=0.1", "seed=0,1"]
    runs = plan_sweep(texts, "out/{lr}-{seed}.safetensors")
    assert [run.label for run in runs] == [
        "lr=1e-5 weight_decay=0.1 seed=0",
        "lr=1e-5 weight_decay=0.1 seed=1",
        "lr=3e-5 weight_decay=0.1 seed=0",
        "lr=3e-5 weight_decay=0.1 seed=1",
    ]
    assert [run.output for run in runs][1:3] == [
        Path("out/1e-5-1.safetensors"),
        Path("out/3e-5-0.safetensors"),
    ]


@pytest.mark.parametrize(
    ("texts", "output", "expected"),
    [
        (["lr"], "{lr}", "expected KEY=VALUE"),
        (["lr=1,"], "{lr}", "expected KEY=VALUE"),
        (["=1"], "x", "expected KEY=VALUE"),
        (["learning=1"], "x", "'learning' is not a recipe key"),
        (["lr=1", "lr=2"], "{lr}", "lr is given more than once"),
        (["lr=1,1"], "{lr}", "1 is given more than once"),
        (["lr=1,2", "seed=0,1"], "run-{lr}.safetensors", r"it lacks \{seed\}"),
        (["lr=1,2"], "run-{lr}-{seed}.safetensors", r"\{seed\} is not swept"),
        (["augment=a/b,c"], "{augment}", "slash"),
        (
            ["lr=1,11", "seed=11,1"],
            "run-{lr}{seed}",
            "lr=1 seed=11 and lr=11 seed=1 have the same output, run-111",
        ),
    ],
)
def test_wrong_sweeps_are_usage_errors(texts: list[str], output: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        plan_sweep(texts, output)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--sweep lr=1,2 seed=0 -o x", "--sweep lr=1,2 --sweep seed=0 -o x"),
        ("--sweep lr=1 --sweep seed=0 z", "--sweep lr=1 --sweep seed=0 z"),
        ("--sweep=lr=1 seed=0 z", "--sweep=lr=1 --sweep seed=0 z"),
        ("--sweep lr -o a=b", "--sweep lr -o a=b"),
        ("--train n=x --sweep lr=1 z --val v=y", "--train n=x --sweep lr=1 z --val v=y"),
    ],
)
def test_one_option_may_have_several_keys(words: str, expected: str) -> None:
    assert " ".join(separate_sweep_values(words.split())) == expected
