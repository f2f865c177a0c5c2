"""The merge methods: a table of names, formulas, inputs, options and sources.

theta_0 is the zero-shot checkpoint, theta_i a fine-tuned one, tau_i = theta_i - theta_0, and
alpha the factor on what is added to theta_0. A new method is a row here and a function in
`kernels.py`. This module needs no numpy, so that `wiseft merge --help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from wiseft_cli.errors import UsageError, did_you_mean
from wiseft_cli.merging.alpha import Alpha, parse_decimal

DEFAULT_METHOD = "linear"

OptionValue = str | int
"""The canonical value of an option: an exact decimal or a word as text, or an integer."""


@dataclass(frozen=True)
class MethodOption:
    """An option that some methods have.

    Attributes:
        name: Name in Python, in cards and in plan files; on the command line with hyphens.
        default: The value if it is not given; None if it must be given.
        expected: The values that are accepted, in words.
        help: What it does, in one sentence.
        parse: Returns the canonical value of a text; raises ValueError.
    """

    name: str
    default: OptionValue | None
    expected: str
    help: str
    parse: Callable[[str], OptionValue]

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class MergeMethod:
    """One merge method.

    Attributes:
        formula: The merged weights in one line.
        citation: The paper.
        options: Its own options, besides alpha, weights and layer alphas.
        default_alpha: Alpha if none is given; None if the method has no alpha.
        min_finetuned: Minimum number of fine-tuned inputs.
        max_finetuned: Maximum number of fine-tuned inputs.
        takes_weights: Whether the fine-tuned inputs can be weighted.
        takes_fisher: Whether every input needs a file of Fisher values.
        has_base: Whether the first input is the zero-shot checkpoint; otherwise all are alike.
        is_symmetric: Whether the order of the fine-tuned inputs does not matter.
    """

    name: str
    formula: str
    citation: str
    options: tuple[MethodOption, ...] = ()
    default_alpha: str | None = "0.5"
    min_finetuned: int = 1
    max_finetuned: int = 32
    takes_weights: bool = True
    takes_fisher: bool = False
    has_base: bool = True
    is_symmetric: bool = True

    @property
    def paper(self) -> str:
        """The last part of the citation, such as `arXiv:2306.01708`."""
        return self.citation.rpartition(", ")[2]

    def describe_inputs(self) -> str:
        """Return the number of inputs in words."""
        base = "ZEROSHOT and " if self.has_base else ""
        if self.min_finetuned == self.max_finetuned:
            return f"{base}one FINETUNED"
        return f"{base}{self.min_finetuned} to {self.max_finetuned} FINETUNED"


def _between(low: str, high: str, *, with_low: bool, with_high: bool) -> Callable[[str], str]:
    """Return a parser of exact decimals in an interval."""

    def parse(text: str) -> str:
        value = parse_decimal(text)
        is_above = value > Decimal(low) or (with_low and value == Decimal(low))
        is_below = value < Decimal(high) or (with_high and value == Decimal(high))
        if not (is_above and is_below):
            raise ValueError(text)
        return Alpha.of(value).text

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return parse


def _parse_seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**63:
        raise ValueError(text)
    return seed


_DENSITY = MethodOption(
    "density",
    "0.2",
    "a number above 0 and at most 1",
    "Share of the largest changes of each fine-tuned input to keep.",
    _between("0", "1", with_low=False, with_high=True),
)
_TRIM_SCOPE = MethodOption(
    "trim_scope",
    "model",
    "model or tensor",
    "Take the largest changes over the whole model, as in the paper, or over each tensor.",
    _one_of("model", "tensor"),
)
_DROP = MethodOption(
    "drop",
    "0.5",
    "a number from 0 to 1 - 2**-32",
    "Share of the changes to drop at random; the others are divided by the share that is kept.",
    # Each element is compared with a draw of 32 bits; and a larger share may be 1 as a double.
    _between("0", str(Decimal(1 - 2**-32)), with_low=True, with_high=True),
)
_SEED = MethodOption(
    "seed", 0, "a whole number from 0", "Seed of the changes that are dropped.", _parse_seed
)
_THEN = MethodOption(
    "then",
    "linear",
    "linear or ties",
    "Combine the remaining changes by their weighted mean, or by TIES's election of the sign.",
    _one_of("linear", "ties"),
)
_LAYER_ALPHA_FROM = MethodOption(
    "layer_alpha_from",
    None,
    "a number in [0, 1]",
    "Alpha of the first block; the last block has --alpha, and alpha grows linearly between.",
    _between("0", "1", with_low=True, with_high=True),
)
_OUTSIDE_BLOCKS = MethodOption(
    "outside_blocks",
    "first",
    "first or ends",
    "Alpha of tensors outside the blocks: that of the first block, as in the authors' code, or "
    "by their place, with that of the last block for the final norm, projection and head.",
    _one_of("first", "ends"),
)
_FISHER_FLOOR = MethodOption(
    "fisher_floor",
    "0.000001",
    "a number above 0 and at most 1",
    "Smallest Fisher value; smaller ones are raised to it.",
    _between("0", "1", with_low=False, with_high=True),
)

METHODS: Mapping[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod(
            "linear",
            "theta_0 + alpha * sum_i w_i tau_i",
            "WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903",
        ),
        MergeMethod(
            "slerp",
            "[sin((1 - alpha) omega) theta_0 + sin(alpha omega) theta_1] / sin(omega) per tensor, "
            "omega the angle between theta_0 and theta_1; linear where |cos(omega)| > 0.9995",
            "Animating rotation with quaternion curves, Shoemake 1985",
            max_finetuned=1,
            takes_weights=False,
        ),
        MergeMethod(
            "task-arithmetic",
            "theta_0 + alpha * sum_i tau_i",
            "Ilharco et al. 2023, arXiv:2212.04089",
            default_alpha="0.3",
            takes_weights=False,
        ),
        MergeMethod(
            "ties",
            "theta_0 + alpha * the weighted mean, per element, of the largest tau_i with the "
            "sign of their weighted sum",
            "Yadav et al. 2023, arXiv:2306.01708",
            (_DENSITY, _TRIM_SCOPE),
            default_alpha="1",
        ),
        MergeMethod(
            "dare",
            "theta_0 + alpha * sum_i w_i m_i tau_i / (1 - drop), m_i random in {0, 1}",
            "Yu et al. 2024, arXiv:2311.03099",
            (_DROP, _SEED, _THEN),
            default_alpha="1",
            is_symmetric=False,
        ),
        MergeMethod(
            "model-stock",
            "(1 - t) theta_0 + t * mean_i theta_i per tensor, t = N c / (1 + (N - 1) c) in [0, 1], "
            "c the mean cosine between two tau_i",
            "Jang et al. 2024, arXiv:2403.19522",
            default_alpha=None,
            min_finetuned=2,
            takes_weights=False,
        ),
        MergeMethod(
            "lines",
            "theta_0 + alpha_l * sum_i w_i tau_i, alpha_l = A0 + (alpha - A0) l / (L - 1) in "
            "block l",
            "Wang et al. 2025, arXiv:2410.17146",
            (_LAYER_ALPHA_FROM, _OUTSIDE_BLOCKS),
        ),
        MergeMethod(
            "fisher",
            "[(1 - alpha) F_0 theta_0 + alpha sum_i w_i F_i theta_i] / [(1 - alpha) F_0 + alpha "
            "sum_i w_i F_i], F the diagonal Fisher values",
            "Matena and Raffel 2022, arXiv:2111.09832",
            (_FISHER_FLOOR,),
            takes_fisher=True,
        ),
        MergeMethod(
            "soup",
            "sum_i w_i theta_i, without a zero-shot checkpoint",
            "Model soups, Wortsman et al. 2022, arXiv:2203.05482",
            default_alpha=None,
            has_base=False,
        ),
    )
}
"""Every method by name. `soup` is the one of `wiseft soup`; `wiseft merge` has the others."""


def find_method(name: str, *, has_base: bool = True) -> MergeMethod:
    """Return a method by its name.

    Raises:
        UsageError: There is no such method.
    """
    names = [method.name for method in METHODS.values() if method.has_base == has_base]
    if name not in names:
        raise UsageError(
            f"method {name!r}: unknown, expected one of {', '.join(names)}",
            hint="to average checkpoints without a zero-shot one, use wiseft soup"
            if name == "soup"
            else did_you_mean(name, names),
        )
    return METHODS[name]


def list_methods(*, has_base: bool = True) -> list[dict[str, Any]]:
    """Return every method as a JSON object: name, formula, inputs, options, default, citation."""
    return [
        {
            "name": method.name,
            "formula": method.formula,
            "inputs": method.describe_inputs(),
            "default_alpha": method.default_alpha,
            "takes_weights": method.takes_weights,
            "is_symmetric": method.is_symmetric,
            "options": {
                option.flag: {
                    "default": option.default,
                    "expected": option.expected,
                    "help": option.help,
                }
                for option in method.options
            },
            "citation": method.citation,
        }
        for method in METHODS.values()
        if method.has_base == has_base
    ]
