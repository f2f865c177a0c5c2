"""Results lines: one JSON object per weight set and image set, in a file of lines.

`wiseft eval` writes them; `wiseft plot` and other programs read them. Each addition replaces the
whole file, so that a killed run leaves it as it was before or after the addition. Several runs
can add to the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.errors import ResultsError, did_you_mean_path

SCHEMA = 1
METHOD_SCHEMA = 2
"""Schema of a line with a merge method, which readers of schema 1 would take for another row."""

N_ANCHORS = "n_anchors"
"""Field with the number of readable anchor frames of a set of video frames."""

N_ROTATED = "n_exif_ignored"
"""Field with the number of images whose EXIF orientation was not applied."""

FINE_TUNING = "fine_tuning"
"""Field with the recipe, the seed and the training set of the run that fine-tuned the weights."""

PREDICTIONS = "predictions"
"""Field with the name of the file of predictions, without its folder."""

SOUP = "soup"
"""The merge method without a zero-shot checkpoint."""

_ANCHOR_METRICS = ("pm0", "pm10")
"""Metrics that are fractions of the anchor frames, not of the images."""


@dataclass(frozen=True)
class CheckpointName:
    """A checkpoint in a results line, with its content digest."""

    name: str
    role: str
    digest: str


@dataclass(frozen=True)
class Metric:
    """A fraction in [0, 1] with the ends of its 95 % interval, or None for both."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The interval; the value twice if there is none."""
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high


@dataclass(frozen=True)
class MergedBy:
    """How weights were merged, if not by the interpolation of two checkpoints.

    Attributes:
        method: Name of the merge method.
        options: The value of each of its options.
        weights: Weight of each fine-tuned checkpoint; empty if the method takes none.
        fisher: Content digest of each checkpoint's Fisher file; empty without such files.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    fisher: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Identity of the merge, apart from its checkpoints and alpha."""
        return canonical_json([self.method, {**self.options}, self.weights, self.fisher])

    def __str__(self) -> str:
        texts = [
            f"{name.replace('_', ' ')} {value if isinstance(value, str | int) else len(value)}"
            for name, value in self.options.items()
        ]
        if self.weights and not all("/" in weight for weight in self.weights):
            texts.append(f"weights {' '.join(self.weights)}")
        return f"{self.method} ({', '.join(texts)})" if texts else self.method


class WeightsKey(NamedTuple):
    """Identity of the weights of a row: digests of the checkpoints, alpha, and the merge."""

    digests: tuple[str, ...]
    alpha: str | None
    merge: str = ""


class MeasurementKey(NamedTuple):
    """Identity of a measurement: of two lines with one key the later is valid.

    The name of the set is included because the fingerprint does not cover pixels: a folder and
    its recoloured copy in an uncompressed format have the same fingerprint. The protocol is
    included because a content digest does not cover the card: the same tensors can belong to a
    reversed list of classes.
    """

    weights: WeightsKey
    set_name: str
    data_fingerprint: str
    join: str
    protocol: str
    precision: str
    metrics: frozenset[str]


@dataclass(frozen=True)
class ResultLine:
    """Metrics of one weight set on one image set.

    Attributes:
        checkpoints: One; or theta_0 and theta_1 if weights are interpolated or outputs averaged;
            or all inputs of a merge by a method.
        alpha: Exact decimal, the weight of theta_1; None if no weights are interpolated, or if the
            method has no alpha.
        set_name: Name of the image set (`set` in JSON).
        reference: Whether the set is the in-distribution one.
        selection: Whether the set is the validation set that chooses alpha; it is not counted as
            a shift. A set can be both, although its result is then optimistic.
        data_fingerprint: Fingerprint of the image set.
        n_images: Images scored, without the unreadable ones.
        n_unreadable: Images that could not be decoded.
        n_classes: Classes that competed for each image.
        join: How labels found their classes.
        primary: Name of the metric that represents the set in tables and plots.
        metrics: All metrics by name.
        precision: Precision of the image encoder.
        version: Version of wiseft.
        ensemble: Whether the logits of the two checkpoints were averaged.
        protocol: Digest of everything else that the result depends on: classes and columns,
            preprocessing, model config; empty in lines of version 0.1.0.
        merged_by: The merge; None for a single checkpoint, an output ensemble, and the
            interpolation of two checkpoints.
        extra: Fields that this version does not know; they are kept and written back.
    """

    checkpoints: tuple[CheckpointName, ...]
    alpha: str | None
    set_name: str
    reference: bool
    data_fingerprint: str
    n_images: int
    n_unreadable: int
    n_classes: int
    join: str
    primary: str
    metrics: Mapping[str, Metric]
    precision: str
    version: str
    ensemble: bool = False
    protocol: str = ""
    selection: bool = False
    merged_by: MergedBy | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """Role of the set: `reference`, `shift` or `selection`."""
        return "selection" if self.selection else "reference" if self.reference else "shift"

    @property
    def metric(self) -> Metric:
        """The primary metric."""
        return self.metrics[self.primary]

    @property
    def value(self) -> float:
        """Value of the primary metric, a fraction."""
        return self.metric.value

    @property
    def n_counted(self) -> int:
        """Number of images, or anchor frames, behind the primary metric."""
        n_anchors = self.extra.get(N_ANCHORS) if self.primary in _ANCHOR_METRICS else None
        return n_anchors if isinstance(n_anchors, int) else self.n_images

    @property
    def checkpoints_name(self) -> str:
        """Display name of the checkpoint, the inputs of the merge or the output ensemble."""
        names = [checkpoint.name for checkpoint in self.checkpoints]
        return name_checkpoints(names, is_ensemble=self.ensemble, merged_by=self.merged_by)

    @property
    def weights_name(self) -> str:
        """Display name of the weights: checkpoints, and alpha if there is one."""
        at_alpha = "" if self.alpha is None else f" at alpha {self.alpha}"
        return f"{self.checkpoints_name}{at_alpha}"

    @property
    def weights_key(self) -> WeightsKey:
        """Identity of the weights; an output ensemble has two digests and no alpha."""
        digests = tuple(checkpoint.digest for checkpoint in self.checkpoints)
        return WeightsKey(digests, self.alpha, self.merged_by.key if self.merged_by else "")

    @property
    def key(self) -> MeasurementKey:
        """Identity of the measurement."""
        return MeasurementKey(
            weights=self.weights_key,
            set_name=self.set_name,
            data_fingerprint=self.data_fingerprint,
            join=self.join,
            protocol=self.protocol,
            precision=self.precision,
            metrics=frozenset(self.metrics),
        )


def name_checkpoints(
    names: Sequence[str], *, is_ensemble: bool = False, merged_by: MergedBy | None = None
) -> str:
    """Return the display name of a row, without alpha.

    Args:
        names: Names of the checkpoints.
        is_ensemble: Whether their logits are averaged.
        merged_by: Their merge, if it is not the interpolation of two checkpoints.
    """
    if is_ensemble:
        return f"output ensemble of {' and '.join(names)}"
    joined = join_names(names, merged_by)
    if merged_by is None:
        return joined
    return f"{merged_by} of {joined}" if merged_by.method == SOUP else f"{joined} by {merged_by}"


def join_names(names: Sequence[str], merged_by: MergedBy | None) -> str:
    """Return the names of the checkpoints of a row: `A to B and C`, or `A and B` without a base."""
    n_first = 0 if merged_by is not None and merged_by.method == SOUP else 1
    *most, last = names[n_first:] or names
    others = f"{', '.join(most)} and {last}" if most else last
    return " to ".join([*names[:n_first], others] if len(names) > 1 else names)


def result_document(line: ResultLine) -> dict[str, Any]:
    """Return a line as the JSON object that is written."""
    merge = line.merged_by
    document: dict[str, Any] = {
        **line.extra,
        "schema": METHOD_SCHEMA if merge else SCHEMA,
        "checkpoints": [vars(checkpoint) for checkpoint in line.checkpoints],
        "set": line.set_name,
        "role": line.role,
        "metrics": {name: vars(metric) for name, metric in line.metrics.items()},
    }
    if merge:
        document |= {"method": merge.method, "method_options": dict(merge.options)}
        document |= {"weights": list(merge.weights), "fisher": list(merge.fisher)}
    return document | {name: getattr(line, name) for name in _PLAIN_FIELDS}


_PLAIN_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "alpha": (str, type(None)),
    "reference": bool,
    "data_fingerprint": str,
    "n_images": int,
    "n_unreadable": int,
    "n_classes": int,
    "join": str,
    "primary": str,
    "precision": str,
    "version": str,
    "ensemble": bool,
    "protocol": str,
}
_DEFAULTS: Mapping[str, Any] = {"ensemble": False, "protocol": "", "role": None}
"""Fields that earlier versions did not write."""


def selection_set(lines: Iterable[ResultLine]) -> str | None:
    """Return the name of the validation set of one evaluation, if there is one."""
    return next((line.set_name for line in lines if line.selection), None)


def read_result_lines(path: Path) -> tuple[ResultLine, ...]:
    """Read a file of results lines; empty lines are skipped.

    Raises:
        ResultsError: The file cannot be read, or one of its lines is not a results line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: is not text; expected JSON lines of `wiseft eval`") from None
    except OSError as error:
        raise ResultsError(
            f"{path}: cannot be read: {error.strerror}", hint=did_you_mean_path(path)
        ) from None
    # Not splitlines(): JSON text may hold other characters at which it splits.
    return tuple(
        _parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    )


def add_result_lines(path: Path, lines: Sequence[ResultLine]) -> None:
    """Add lines to a file; each replaces an earlier one with the same key.

    Raises:
        ResultsError: The file holds something else; it is not changed.
        OutputError: The file cannot be written.
    """
    with exclusive_access(path):
        held = read_result_lines(path) if path.exists() else ()
        merged = {line.key: line for line in (*held, *lines)}
        if held == tuple(merged.values()):
            return
        text = "".join(canonical_json(result_document(line)) + "\n" for line in merged.values())
        write_bytes_atomically(path, text.encode("ascii"), force=True)


@contextlib.contextmanager
def exclusive_access(path: Path) -> Iterator[None]:
    """Wait until no other process adds to a file in the same folder."""
    descriptor = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def parse_alpha(text: str) -> Decimal:
    """Return the number that an alpha states.

    Raises:
        ValueError: It is not a finite decimal number.
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(f"alpha is {text!r:.60}, expected a decimal number")
    return number


def _parse_line(text: str, where: str) -> ResultLine:
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("expected a JSON object")
        schema = document.pop("schema", None)
        if isinstance(schema, int) and schema > METHOD_SCHEMA:
            raise ResultsError(
                f"{where}: has schema {schema}, this version reads {METHOD_SCHEMA}",
                hint="update wiseft-cli",
            )
        expected = METHOD_SCHEMA if "method" in document else SCHEMA
        if schema != expected or isinstance(schema, bool):
            raise TypeError(f"schema is {schema!r}, expected {expected}")
        return _parse_document(document)
    except KeyError as error:
        raise ResultsError(f"{where}: field {error} is missing") from None
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ResultsError(
            f"{where}: not a results line: {error}",
            hint="expected the JSON lines that `wiseft eval --results` writes",
        ) from None


def _parse_document(document: dict[str, Any]) -> ResultLine:
    document = {**_DEFAULTS, **document}
    plain = {name: _expect(document.pop(name), kind, name) for name, kind in _PLAIN_FIELDS.items()}
    if plain["alpha"] is not None:
        parse_alpha(plain["alpha"])
    checkpoints = tuple(
        CheckpointName(**{key: _expect(entry[key], str, key) for key in ("name", "role", "digest")})
        for entry in _expect(document.pop("checkpoints"), list, "checkpoints")
    )
    metrics = {
        name: _parse_metric(metric)
        for name, metric in _expect(document.pop("metrics"), dict, "metrics").items()
    }
    if plain["primary"] not in metrics:
        raise ValueError(f"primary is {plain['primary']!r}, expected one of {sorted(metrics)}")
    merged_by = _parse_merge(document)
    if plain["ensemble"] and merged_by:
        raise ValueError(f"an ensemble with method {merged_by.method!r}")
    if plain["ensemble"] and plain["alpha"] is not None:
        raise ValueError(f"an ensemble with alpha {plain['alpha']!r}")
    n_expected = 2 if plain["ensemble"] or plain["alpha"] is not None else 1
    if len(checkpoints) < 2 if merged_by else len(checkpoints) != n_expected:
        raise ValueError(f"{len(checkpoints)} checkpoints with alpha {plain['alpha']!r}")
    set_name = _expect(document.pop("set"), str, "set")
    role = document.pop("role")
    line = ResultLine(
        checkpoints=checkpoints,
        set_name=set_name,
        metrics=metrics,
        selection=role == "selection",
        merged_by=merged_by,
        extra=document,
        **plain,
    )
    if role not in (None, line.role):
        raise ValueError(f"role is {role!r}, expected 'selection' or {line.role!r}")
    return line


def _parse_merge(document: dict[str, Any]) -> MergedBy | None:
    """Take the fields of a merge out of a document."""
    if "method" not in document:
        return None
    weights, fisher = (
        tuple(_expect(item, str, name) for item in _expect(document.pop(name), list, name))
        for name in ("weights", "fisher")
    )
    return MergedBy(
        _expect(document.pop("method"), str, "method"),
        _expect(document.pop("method_options"), dict, "method_options"),
        weights,
        fisher,
    )


def _expect(value: Any, kinds: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise TypeError(f"{name} is {value!r:.60}")
    return value


def _parse_metric(metric: Mapping[str, Any]) -> Metric:
    value = _parse_fraction(metric["value"], "value")
    if metric["low"] is None and metric["high"] is None:
        return Metric(value)
    return Metric(
        value, _parse_fraction(metric["low"], "low"), _parse_fraction(metric["high"], "high")
    )


def _parse_fraction(value: Any, name: str) -> float:
    number = float(_expect(value, (int, float), name))
    if not 0 <= number <= 1:  # false for NaN too
        raise ValueError(f"{name} is {number}, expected a fraction in [0, 1]")
    return number
