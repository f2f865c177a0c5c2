"""Plan a sweep: one fine-tuning run for each combination of recipe values.

Model soups (Wortsman et al. 2022, arXiv:2203.05482) average the runs of such a sweep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from wiseft_cli.errors import UsageError, did_you_mean
from wiseft_cli.training.recipe import RECIPE_KEYS

_EXAMPLE = "for example --sweep lr=1e-5,3e-5 seed=0,1 -o 'run-{lr}-{seed}.safetensors'"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        values: Text of each swept recipe key, as it was given.
        output: Path of the run's checkpoint.
    """

    values: Mapping[str, str]
    output: Path

    @property
    def label(self) -> str:
        """The values in the form `lr=1e-5 seed=0`."""
        return " ".join(f"{key}={value}" for key, value in self.values.items())


def plan_sweep(texts: Sequence[str], output: str) -> tuple[SweepRun, ...]:
    """Return the runs of a sweep, the last key varying fastest.

    Args:
        texts: A recipe key and its values each, as in `lr=1e-5,3e-5`.
        output: Path of the outputs; `{key}` stands for the value of a swept key.
    Raises:
        UsageError: A text is malformed, a key is unknown or occurs twice, or two runs would have
            the same output.
    """
    swept: dict[str, list[str]] = {}
    for text in texts:
        key, values = _parse(text)
        if key in swept:
            raise UsageError(f"--sweep: {key} is given more than once")
        swept[key] = values
    _check_output(output, swept)
    runs = []
    for combination in product(*swept.values()):
        values_of = dict(zip(swept, combination, strict=True))
        path = output
        for key, value in values_of.items():
            path = path.replace(f"{{{key}}}", value)
        runs.append(SweepRun(values_of, Path(path)))
    _require_distinct_outputs(runs)
    return tuple(runs)


def _require_distinct_outputs(runs: Sequence[SweepRun]) -> None:
    labels: dict[Path, str] = {}
    for run in runs:
        if run.output in labels:
            raise UsageError(
                f"-o: the runs {labels[run.output]} and {run.label} have the same output, "
                f"{run.output}",
                hint=f"separate the keys in the name, {_EXAMPLE}",
            )
        labels[run.output] = run.label


def _parse(text: str) -> tuple[str, list[str]]:
    key, _, rest = text.partition("=")
    key = key.strip().replace("-", "_")
    values = [value.strip() for value in rest.split(",")]
    if not key or not all(values):
        raise UsageError(f"--sweep {text!r}: expected KEY=VALUE,VALUE,...", hint=_EXAMPLE)
    if key not in RECIPE_KEYS:
        raise UsageError(
            f"--sweep {text!r}: {key!r} is not a recipe key",
            hint=did_you_mean(key, RECIPE_KEYS) or f"the keys are {', '.join(RECIPE_KEYS)}",
        )
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise UsageError(f"--sweep {text!r}: {', '.join(repeated)} is given more than once")
    if any("/" in value for value in values):
        raise UsageError(f"--sweep {text!r}: a value with a slash would change the output's folder")
    return key, values


def _check_output(output: str, swept: Mapping[str, Sequence[str]]) -> None:
    named = set(re.findall(r"\{(\w+)\}", output))
    missing = [key for key, values in swept.items() if len(values) > 1 and key not in named]
    if missing:
        raise UsageError(
            f"-o {output}: several runs would have the same name; it lacks"
            f" {', '.join(f'{{{key}}}' for key in missing)}",
            hint=_EXAMPLE,
        )
    unknown = sorted(named - set(swept))
    if unknown:
        raise UsageError(
            f"-o {output}: {', '.join(f'{{{key}}}' for key in unknown)} is not swept", hint=_EXAMPLE
        )


def separate_sweep_values(words: Sequence[str]) -> list[str]:
    """Repeat `--sweep` before each of its values: `--sweep a=1,2 b=3,4` names two keys."""
    found: list[str] = []
    in_sweep = False
    for word in words:
        is_value = re.match(r"[A-Za-z_][\w-]*=", word) is not None
        if in_sweep and is_value and found[-1] != "--sweep":
            found.append("--sweep")
        in_sweep = word == "--sweep" or word.startswith("--sweep=") or (in_sweep and is_value)
        found.append(word)
    return found
