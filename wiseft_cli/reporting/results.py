"""Results lines: one JSON document for one weight set on one image set, in a file of lines.

`wiseft eval` writes them, `wiseft plot` and other programs read them. The file is replaced as
a whole at each addition, so that a killed run leaves it as it was before or after, and two runs
may write to the same file. It does not evaluate anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.atomic import write_bytes_atomically
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.errors import ResultsError

SCHEMA = 1

N_ANCHORS = "n_anchors"
"""The field for the readable anchor frames of a set of video frames."""

_OF_ANCHORS = ("pm0", "pm10")
"""Metrics that are shares of the anchor frames."""


@dataclass(frozen=True)
class CheckpointName:
    """A checkpoint as a results line names it."""

    name: str
    role: str
    digest: str


@dataclass(frozen=True)
class Metric:
    """A fraction in [0, 1] with the ends of its 95 % interval; None for one that has no interval.

    An interval's ends are both given, or neither.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The interval; the value twice where there is none."""
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high


@dataclass(frozen=True)
class ResultLine:
    """What one weight set reached on one image set.

    Attributes:
        checkpoints: One; or two, theta_0 and theta_1, where weights are interpolated or outputs
            averaged.
        alpha: Exact decimal, the weight of theta_1; None where no weights are interpolated.
        set_name: Name of the image set (`set` in JSON).
        reference: Whether the set is the in-distribution one.
        n_images: Images scored; the unreadable ones are not among them.
        n_classes: Classes that competed for each image.
        primary: The metric that stands for the set in tables and plots.
        ensemble: Whether the logits of the two checkpoints were averaged.
        protocol: Digest of what the result depends on beside weights and data: classes and
            columns, preprocessing, model config; empty in lines of version 0.1.0.
        extra: Fields this version does not know, kept and written back.
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
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The primary metric, a fraction."""
        return self.metrics[self.primary].value

    @property
    def n_counted(self) -> int:
        """How many images, or anchor frames, the primary metric is a share of."""
        n_anchors = self.extra.get(N_ANCHORS) if self.primary in _OF_ANCHORS else None
        return n_anchors if isinstance(n_anchors, int) else self.n_images

    @property
    def weights_key(self) -> tuple[tuple[str, ...], str | None]:
        """What tells one weight set from another; an ensemble is the one of two without alpha."""
        return tuple(checkpoint.digest for checkpoint in self.checkpoints), self.alpha

    @property
    def key(self) -> tuple[object, ...]:
        """See `measurement_key`."""
        return measurement_key(
            digests=[checkpoint.digest for checkpoint in self.checkpoints],
            alpha=self.alpha,
            set_name=self.set_name,
            data_fingerprint=self.data_fingerprint,
            precision=self.precision,
            join=self.join,
            metrics=self.metrics,
            protocol=self.protocol,
        )


def measurement_key(
    *,
    digests: Iterable[str],
    alpha: str | None,
    set_name: str,
    data_fingerprint: str,
    precision: str,
    join: str,
    metrics: Iterable[str],
    protocol: str,
) -> tuple[object, ...]:
    """Return what makes two lines the same measurement; a later one replaces the earlier.

    The set's name takes part since the fingerprint does not see pixels: a folder and its
    recoloured copy in an uncompressed format have the same one; the protocol, since a digest
    covers no card: one file's tensors may lie in another with a reversed list of classes.
    """
    return (
        (tuple(digests), alpha),
        (set_name, data_fingerprint, join, protocol),
        (precision, tuple(sorted(metrics))),
    )


def result_document(line: ResultLine) -> dict[str, Any]:
    """Return a line as the JSON object that is written."""
    document: dict[str, Any] = {
        **line.extra,
        "schema": SCHEMA,
        "checkpoints": [vars(checkpoint) for checkpoint in line.checkpoints],
        "set": line.set_name,
        "metrics": {name: vars(metric) for name, metric in line.metrics.items()},
    }
    for name in _PLAIN_FIELDS:
        document[name] = getattr(line, name)
    return document


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
_DEFAULTS: Mapping[str, Any] = {"ensemble": False, "protocol": ""}
"""Fields that earlier versions did not write."""


def read_result_lines(path: Path) -> tuple[ResultLine, ...]:
    """Read a file of results lines; empty lines are skipped.

    Raises:
        ResultsError: The file cannot be read, or a line is no results line; it is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: is not text; expected JSON lines of `wiseft eval`") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None
    # Only "\n" ends a line: JSON text may hold other characters that splitlines() cuts at.
    return tuple(
        _parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    )


def add_result_lines(path: Path, lines: Sequence[ResultLine]) -> None:
    """Add lines to a file, each in place of an earlier one of the same key, or at the end.

    Raises:
        ResultsError: What stands in the file is no results lines; nothing is changed.
        OutputError: The file cannot be written.
    """
    with _only_writer(path):
        held = read_result_lines(path) if path.exists() else ()
        merged = {line.key: line for line in (*held, *lines)}
        text = "".join(canonical_json(result_document(line)) + "\n" for line in merged.values())
        write_bytes_atomically(path, text.encode("ascii"), force=True)


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Wait until no other process adds to a file of this folder."""
    descriptor = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parse_line(text: str, where: str) -> ResultLine:
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise TypeError("expected a JSON object")
        schema = document.pop("schema", None)
        if isinstance(schema, int) and schema > SCHEMA:
            raise ResultsError(
                f"{where}: has schema {schema}, this version reads {SCHEMA}",
                hint="update wiseft-cli",
            )
        if schema != SCHEMA:
            raise TypeError(f"schema is {schema!r}, expected {SCHEMA}")
        return _parse_document(document)
    except KeyError as error:
        raise ResultsError(f"{where}: field {error} is missing") from None
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ResultsError(
            f"{where}: no results line: {error}",
            hint="expected the JSON lines that `wiseft eval --results` writes",
        ) from None


def _parse_document(document: dict[str, Any]) -> ResultLine:
    document = {**_DEFAULTS, **document}
    plain = {name: _expect(document.pop(name), kind, name) for name, kind in _PLAIN_FIELDS.items()}
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
    if plain["ensemble"] and plain["alpha"] is not None:
        raise ValueError(f"an ensemble with alpha {plain['alpha']!r}")
    if len(checkpoints) != (2 if plain["ensemble"] or plain["alpha"] is not None else 1):
        raise ValueError(f"{len(checkpoints)} checkpoints with alpha {plain['alpha']!r}")
    set_name = _expect(document.pop("set"), str, "set")
    return ResultLine(
        checkpoints=checkpoints, set_name=set_name, metrics=metrics, extra=document, **plain
    )


def _expect(value: Any, kinds: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise TypeError(f"{what} is {value!r:.60}")
    return value


def _parse_metric(metric: Mapping[str, Any]) -> Metric:
    value = _fraction(metric["value"], "value")
    if metric["low"] is None and metric["high"] is None:
        return Metric(value)
    return Metric(value, _fraction(metric["low"], "low"), _fraction(metric["high"], "high"))


def _fraction(value: Any, what: str) -> float:
    number = float(_expect(value, (int, float), what))
    if not 0 <= number <= 1:  # false for NaN too
        raise ValueError(f"{what} is {number}, expected a fraction in [0, 1]")
    return number
