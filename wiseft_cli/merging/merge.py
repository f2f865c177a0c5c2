"""Merge two checkpoints into files: theta = (1 - alpha) * theta_0 + alpha * theta_1.

Wortsman et al., Robust fine-tuning of zero-shot models, arXiv:2109.01903. The checks come
first, from headers alone; then every input is read once, for all alphas together; then the
outputs appear, whole. It does not parse options and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import (
    CheckpointReader,
    open_checkpoint,
    require_card_digest,
)
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.disk import require_space
from wiseft_cli.errors import CheckpointError, list_some
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.compatibility import (
    doubts_about_descent,
    require_compatible,
    require_roles_in_order,
)
from wiseft_cli.merging.opaque import require_equal_bytes
from wiseft_cli.merging.plan import MergePlan, plan_merge
from wiseft_cli.merging.provenance import (
    build_merged_card,
    shared_metadata,
)
from wiseft_cli.merging.stream import default_threads, stream_tensors

STORED_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The dtypes a merge can be asked to store, by the name a person gives."""


@dataclass(frozen=True)
class MergedFile:
    """One output.

    Attributes:
        digest: Its content digest.
        not_finite: By tensor, how many numbers are not finite although both inputs' are.
    """

    path: Path
    alpha: Alpha
    digest: str
    not_finite: Mapping[str, int]


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        files: The outputs, in the order of the alphas.
        discrete: Names of the integer and boolean tensors, taken from the fine-tuned side.
        missing: Names of the tensors copied from the one side that has them.
        warnings: What a person should know; none of it made the merge impossible.
    """

    files: tuple[MergedFile, ...]
    discrete: tuple[str, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]


def merge_checkpoints(
    zeroshot: Path,
    finetuned: Path,
    outputs: Sequence[tuple[Alpha, Path]],
    *,
    dtype: str | None = None,
    copies_missing: bool = False,
    threads: int | None = None,
    is_strict: bool = False,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge two checkpoints at one or several alphas.

    Args:
        zeroshot: theta_0: a safetensors file, an index of shards, or a folder with one of them.
        finetuned: theta_1, likewise.
        outputs: One path for each alpha.
        dtype: Store floating tensors in this type of `STORED_DTYPES`; as they are where None.
        copies_missing: Copy tensors that only one side has, instead of refusing.
        threads: How many threads to use; one for each processor, up to 8, where None.
        is_strict: Make every warning an error.
        force: Whether existing outputs may be replaced.
        on_progress: Called with all bytes of the inputs, and those done since the last call.
    Raises:
        CheckpointError: An input is no checkpoint or damaged, or the two do not belong together.
        OutputError: An output must not or cannot be written.
    """
    with (
        open_checkpoint(zeroshot, allow_shards=True) as theta_0,
        open_checkpoint(finetuned, allow_shards=True) as theta_1,
    ):
        inputs = [*theta_0.files, *theta_1.files]
        for _, path in outputs:
            check_output(path, force=force, inputs=inputs)
        require_roles_in_order(theta_0, theta_1)
        require_compatible(
            theta_0, theta_1, converts=dtype is not None, copies_missing=copies_missing
        )
        warnings = list(doubts_about_descent(theta_0, theta_1))
        _refuse_if(is_strict, warnings)
        plan = plan_merge(theta_0, theta_1, dtype=STORED_DTYPES[dtype] if dtype else None)
        require_equal_bytes(theta_0, theta_1, plan.opaque)
        files = _write_outputs(
            _Merge(theta_0, theta_1, plan, _options(plan, dtype)),
            outputs,
            threads=threads or default_threads(),
            is_strict=is_strict,
            force=force,
            on_progress=on_progress,
        )
    for file in files:
        warnings += _tell_not_finite(file.alpha, file.not_finite)
    return MergeReport(files, plan.discrete, plan.missing, tuple(warnings))


@dataclass(frozen=True)
class _Merge:
    """Two open inputs and what is to be made of them."""

    theta_0: CheckpointReader
    theta_1: CheckpointReader
    plan: MergePlan
    options: Mapping[str, Any]

    def card(self, alpha: Alpha, digest_0: str | None, digest_1: str | None) -> Card:
        return build_merged_card(
            self.theta_0,
            self.theta_1,
            alpha,
            options=self.options,
            digests=(digest_0, digest_1),
        )


def _write_outputs(
    merge: _Merge,
    outputs: Sequence[tuple[Alpha, Path]],
    *,
    threads: int,
    is_strict: bool,
    force: bool,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[MergedFile, ...]:
    theta_0, theta_1, plan = merge.theta_0, merge.theta_1, merge.plan
    require_space([(path, sum(spec.nbytes for spec in plan.specs)) for _, path in outputs])
    with ExitStack() as opened:
        writers = [
            opened.enter_context(
                CheckpointWriter(
                    path,
                    plan.specs,
                    merge.card(alpha, None, None),
                    force=force,
                    inputs=[*theta_0.files, *theta_1.files],
                    metadata=shared_metadata(theta_0, theta_1),
                    bypass_page_cache=True,
                )
            )
            for alpha, path in outputs
        ]
        alphas = [alpha for alpha, _ in outputs]
        done = stream_tensors(
            plan,
            theta_0,
            theta_1,
            list(zip(alphas, writers, strict=True)),
            threads=threads,
            on_progress=partial(on_progress, plan.input_bytes) if on_progress else None,
        )
        require_card_digest(theta_0, done.digest_0)
        require_card_digest(theta_1, done.digest_1)
        for alpha, counts in zip(alphas, done.not_finite, strict=True):
            _refuse_if(is_strict, _tell_not_finite(alpha, counts))
        return tuple(
            MergedFile(path, alpha, writer.commit(card), counts)
            for (alpha, path), writer, counts, card in zip(
                outputs,
                writers,
                done.not_finite,
                [merge.card(alpha, done.digest_0, done.digest_1) for alpha in alphas],
                strict=True,
            )
        )


def _options(plan: MergePlan, dtype: str | None) -> dict[str, Any]:
    """Return the options, beside alpha, that made a difference to the result."""
    options: dict[str, Any] = {}
    if dtype:
        options["dtype"] = dtype
    if plan.missing:
        options["missing"] = "copy"
    return options


def _tell_not_finite(alpha: Alpha, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    lines = [f"{name}: {count} numbers" for name, count in sorted(counts.items())]
    return [
        "\n  ".join(
            [f"alpha {alpha.text}: not finite although both inputs are:", *list_some(lines)]
        )
    ]


def _refuse_if(is_strict: bool, warnings: Sequence[str]) -> None:
    if is_strict and warnings:
        raise CheckpointError("\n  ".join(["--strict refuses what would be a warning:", *warnings]))
