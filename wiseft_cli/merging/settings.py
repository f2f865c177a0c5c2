"""The settings of a merge: method, weights, alphas per layer and the method's options.

`methods.py` is the table of methods. This module needs no numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from wiseft_cli.errors import UsageError, counted
from wiseft_cli.merging.alpha import Alpha, parse_alphas, parse_decimal
from wiseft_cli.merging.methods import (
    DEFAULT_METHOD,
    METHODS,
    MergeMethod,
    OptionValue,
    find_method,
)


@dataclass(frozen=True)
class LayerAlpha:
    """The alpha of the tensors whose names match a pattern."""

    pattern: str
    alpha: Alpha


@dataclass(frozen=True)
class MergeSettings:
    """How inputs are merged, apart from alpha. `resolve_settings` makes valid ones.

    Attributes:
        method: A name of `METHODS`.
        weights: One weight per fine-tuned input, in their order; empty for equal weights.
        layer_alphas: Alphas of some tensors instead of alpha; the first match counts.
        options: The value of every option of the method, by name.
    """

    method: str = DEFAULT_METHOD
    weights: tuple[Alpha, ...] = ()
    layer_alphas: tuple[LayerAlpha, ...] = ()
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    @property
    def spec(self) -> MergeMethod:
        """The row of the table."""
        return METHODS[self.method]

    @property
    def is_plain(self) -> bool:
        """Whether nothing but alpha is set: (1 - alpha) * theta_0 + alpha * theta_1."""
        return self.method == DEFAULT_METHOD and not self.weights and not self.layer_alphas

    def number(self, option: str) -> float:
        """Return the double nearest to the value of an option."""
        return float(self.options[option])

    def document(self, n_finetuned: int) -> dict[str, Any]:
        """Return what cards and histories state: method, options and weights.

        It is empty for the interpolation of two checkpoints at one alpha.
        """
        if self.is_plain and n_finetuned == 1:
            return {}
        document: dict[str, Any] = {"method": self.method}
        options: dict[str, Any] = dict(self.options)
        if self.layer_alphas:
            options["layer_alpha"] = [[row.pattern, row.alpha.text] for row in self.layer_alphas]
        if options:
            document["method_options"] = options
        if self.spec.takes_weights and n_finetuned > 1:
            equal = f"1/{n_finetuned}"
            document["weights"] = [w.text for w in self.weights] or [equal] * n_finetuned
        return document


def resolve_settings(
    method: str = DEFAULT_METHOD,
    *,
    n_finetuned: int = 1,
    weights: Sequence[str] = (),
    layer_alphas: Iterable[LayerAlpha] = (),
    options: Mapping[str, OptionValue | None] | None = None,
    has_base: bool = True,
) -> MergeSettings:
    """Return the settings of a merge, with defaults filled in.

    Args:
        n_finetuned: Number of fine-tuned inputs; of a method without base, of all inputs.
        weights: Exact decimals, one per fine-tuned input; empty for equal weights.
        options: Options by name; those that are None are not given.
    Raises:
        UsageError: The method does not exist or does not take these inputs, weights or options.
    """
    spec = find_method(method, has_base=has_base)
    if not spec.min_finetuned <= n_finetuned <= spec.max_finetuned:
        raise UsageError(
            f"method {method}: {counted(n_finetuned, 'fine-tuned input')} given, expected "
            f"{spec.describe_inputs()}",
            hint=None if spec.max_finetuned > 1 else "linear, ties and others take several",
        )
    layer_alphas = tuple(layer_alphas)
    if layer_alphas and spec.default_alpha is None:
        raise UsageError(f"method {method}: has no alpha, so it takes no --layer-alpha")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    return MergeSettings(
        method,
        _resolve_weights(spec, weights, n_finetuned),
        layer_alphas,
        _resolve_options(spec, given),
    )


def resolve_alphas(
    settings: MergeSettings, texts: Sequence[str], *, extrapolate: bool = False
) -> tuple[Alpha | None, ...]:
    """Return the alphas of a merge: those given, or the method's default.

    Args:
        texts: Numbers, lists and ranges; empty for the default.
        extrapolate: Whether values outside [0, 1] are allowed.
    Returns:
        One None if the method has no alpha.
    Raises:
        UsageError: A text is malformed, a value is out of range, or the method has no alpha.
    """
    default = settings.spec.default_alpha
    if default is None:
        if texts:
            raise UsageError(
                f"method {settings.method}: has no alpha",
                hint="omit --alpha"
                + (
                    "; the method finds the factor of each tensor itself"
                    if settings.spec.has_base
                    else ""
                ),
            )
        return (None,)
    alphas = parse_alphas(texts or [default], extrapolate=extrapolate)
    outside = [alpha.text for alpha in alphas if not 0.0 <= alpha.value <= 1.0]
    if outside and settings.spec.takes_fisher:
        raise UsageError(
            f"method {settings.method}: alpha {', '.join(outside)} is outside [0, 1], and a mean"
            " has no negative weights"
        )
    return alphas


def _resolve_options(spec: MergeMethod, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    own = {option.name: option for option in spec.options}
    faults = [_describe_foreign(name) for name in given if name not in own]
    values: dict[str, OptionValue] = {}
    for option in spec.options:
        value = given.get(option.name, option.default)
        try:
            if value is None:
                faults.append(f"{option.flag} is missing, expected {option.expected}")
            else:
                values[option.name] = option.parse(str(value))
        except ValueError:
            faults.append(f"{option.flag} is {value!r}, expected {option.expected}")
    if faults:
        raise UsageError(
            f"method {spec.name}: wrong options",
            faults=faults,
            hint=f"{spec.name} has {', '.join(option.flag for option in spec.options)}"
            if own
            else f"{spec.name} has no options of its own",
        )
    return values


def _describe_foreign(name: str) -> str:
    owners = [
        f"{method.name} ({option.help[0].lower()}{option.help[1:].rstrip('.')})"
        for method in METHODS.values()
        for option in method.options
        if option.name == name
    ]
    flag = f"--{name.replace('_', '-')}"
    return f"{flag} is an option of {owners[0]}" if owners else f"{flag} does not exist"


def _resolve_weights(
    spec: MergeMethod, texts: Sequence[str], n_finetuned: int
) -> tuple[Alpha, ...]:
    """Check that weights are positive and that their sum is exactly 1."""
    if not texts:
        return ()
    if not spec.takes_weights:
        takers = ", ".join(method.name for method in METHODS.values() if method.takes_weights)
        raise UsageError(
            f"method {spec.name}: takes no --weights",
            hint=f"these methods do: {takers}",
        )
    decimals = [_parse_weight(text) for text in texts]
    if len(decimals) != n_finetuned:
        raise UsageError(
            f"--weights: {counted(len(decimals), 'weight')} for "
            f"{counted(n_finetuned, 'fine-tuned input')}",
            hint="give one weight per fine-tuned input, in their order, or omit --weights",
        )
    for position, weight in enumerate(decimals, start=1):
        if weight <= 0:
            raise UsageError(
                f"--weights: weight {position} is {weight}, expected a number above 0",
                hint="leave an input out instead of giving it the weight 0",
            )
    total = sum(decimals)
    if total != 1:
        raise UsageError(
            f"--weights: the sum of {', '.join(texts)} is {total}, expected exactly 1",
            hint=_suggest_weights(decimals) + ", or omit --weights for equal weights",
        )
    # The weight 1 of a single input is no setting.
    return tuple(map(Alpha.of, decimals)) if n_finetuned > 1 else ()


def _parse_weight(text: str) -> Decimal:
    try:
        return parse_decimal(text)
    except ValueError:
        raise UsageError(
            f"--weights: {text!r} is not a number", hint="write decimals, for example 0.5,0.25,0.25"
        ) from None


def _suggest_weights(decimals: Sequence[Decimal]) -> str:
    """Return weights of the same proportions whose sum is 1."""
    total, places = sum(decimals), Decimal("0.0001")
    rounded = [(weight / total).quantize(places) for weight in decimals[:-1]]
    rounded.append(1 - sum(rounded, Decimal(0)))
    if min(rounded) <= 0:
        return "divide the weights by their sum"
    return "did you mean " + ",".join(Alpha.of(weight).text for weight in rounded)
