"""Merge two checkpoints into files: theta = (1 - alpha) * theta_0 + alpha * theta_1.

Wortsman et al., Robust fine-tuning of zero-shot models, arXiv:2109.01903. All checks come first
and read only headers; then every input is read once, for all alphas together; then the complete
outputs appear. This module does not parse options and does not print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from wiseft_cli.checkpoint.reader import open_checkpoint, require_card_digest
from wiseft_cli.errors import CheckpointError, UsageError, counted, list_some
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.compatibility import (
    descent_warnings,
    require_compatible,
    require_equal_bytes,
    require_roles_in_order,
)
from wiseft_cli.merging.outputs import MergeOutputs
from wiseft_cli.merging.plan import STORED_DTYPES, MergePlan, plan_merge
from wiseft_cli.merging.stream import StreamResult, default_threads, stream_tensors


@dataclass(frozen=True)
class MergedFile:
    """One output of a merge.

    Attributes:
        digest: Its content digest.
        not_finite: By tensor, the number of elements that are not finite although those of all
            inputs are.
        warnings: Doubts about the inputs and the result; only `merge` sets them.
    """

    path: Path
    alpha: Alpha
    digest: str
    not_finite: Mapping[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge.

    Attributes:
        files: The outputs, in the order of the alphas.
        discrete: Names of integer and boolean tensors, taken from the fine-tuned input.
        missing: Names of tensors copied from the only input that has them.
        not_finite: For theta_0 and theta_1, by tensor, the number of infinite or NaN values.
        warnings: Doubts about the inputs and the result, for the user.
    """

    files: tuple[MergedFile, ...]
    discrete: tuple[str, ...]
    missing: tuple[str, ...]
    not_finite: tuple[Mapping[str, int], ...]
    warnings: tuple[str, ...]


def merge(
    zeroshot: str | Path,
    finetuned: str | Path,
    output: str | Path,
    *,
    alpha: float | str = 0.5,
    dtype: str | None = None,
    copy_missing: bool = False,
    strict: bool = False,
    threads: int | None = None,
    force: bool = False,
) -> MergedFile:
    """Merge two checkpoints into one file: (1 - alpha) * zeroshot + alpha * finetuned.

    Writes the bytes that `wiseft merge` writes, and imports no torch.

    Args:
        zeroshot: theta_0: a safetensors file, an index of shards, or a folder with one of them.
        finetuned: theta_1, in any of these forms.
        output: File to write.
        alpha: Weight of `finetuned`, in [0, 1]; a string is an exact decimal.
        dtype: `float32`, `float16` or `bfloat16` for all floating tensors; None keeps theirs.
        copy_missing: Copy tensors that only one input has, instead of rejecting the inputs.
        strict: Raise an error instead of reporting a warning.
        threads: Number of threads; None uses one per usable CPU, up to 8.
        force: Whether an existing output may be replaced.
    Raises:
        UsageError: alpha is not a number in [0, 1].
        CheckpointError: An input is damaged or not a checkpoint, or the two cannot be merged.
        OutputError: The output exists, is an input, or cannot be written.
    Paper: Wortsman et al. 2022, arXiv:2109.01903, section 3.
    """
    if dtype is not None and dtype not in STORED_DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(STORED_DTYPES)}")
    (exact,) = parse_alphas([str(alpha)])
    report = merge_checkpoints(
        Path(zeroshot),
        Path(finetuned),
        [(exact, Path(output))],
        dtype=dtype,
        copies_missing=copy_missing,
        is_strict=strict,
        threads=threads,
        force=force,
    )
    return replace(report.files[0], warnings=report.warnings)


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
    writes_folders: bool = False,
    creates_parents: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge two checkpoints at one or several alphas.

    Args:
        zeroshot: theta_0: a safetensors file, an index of shards, or a folder with one of them.
        finetuned: theta_1, in any of these forms.
        outputs: One path for every alpha.
        dtype: Dtype to store floating tensors in, one of `plan.STORED_DTYPES`; None keeps theirs.
        copies_missing: Copy tensors that only one input has, instead of rejecting the inputs.
        threads: Number of threads; None uses one per usable CPU, up to 8.
        is_strict: Raise an error instead of reporting a warning.
        force: Whether existing outputs may be replaced.
        writes_folders: Write each output as a folder, with the files beside theta_1's weights.
        creates_parents: Create missing folders of the outputs.
        on_progress: Called with the number of bytes of all inputs, and the number of bytes done
            since the last call.
    Raises:
        CheckpointError: An input is damaged or not a checkpoint, or the two cannot be merged.
        OutputError: An output must not or cannot be written.
    """
    with (
        open_checkpoint(zeroshot, allow_shards=True) as theta_0,
        open_checkpoint(finetuned, allow_shards=True) as theta_1,
    ):
        targets = MergeOutputs(
            outputs, [*theta_0.files, *theta_1.files], force, writes_folders, creates_parents
        )
        targets.check()
        require_roles_in_order(theta_0, theta_1)
        require_compatible(
            theta_0, theta_1, converts=dtype is not None, copies_missing=copies_missing
        )
        warnings = list(descent_warnings(theta_0, theta_1))
        _raise_if_strict(is_strict, warnings)
        plan = plan_merge([theta_0, theta_1], dtype=dtype)
        require_equal_bytes(theta_0, theta_1, plan.opaque)
        files, done = _write_outputs(
            plan,
            targets,
            threads=threads or default_threads(),
            is_strict=is_strict,
            on_progress=on_progress,
        )
    warnings += _not_finite_warnings(plan, outputs, done)
    return MergeReport(files, plan.discrete, plan.missing, done.not_finite_inputs, tuple(warnings))


def _write_outputs(
    plan: MergePlan,
    targets: MergeOutputs,
    *,
    threads: int,
    is_strict: bool,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[tuple[MergedFile, ...], StreamResult]:
    outputs = targets.outputs
    with ExitStack() as stack:
        writers = targets.open(stack, plan)
        alphas = [alpha for alpha, _ in outputs]
        done = stream_tensors(plan, alphas, writers, threads=threads, on_progress=on_progress)
        for reader, digest in zip(plan.inputs, done.digests, strict=True):
            require_card_digest(reader, digest)
        _raise_if_strict(is_strict, _not_finite_warnings(plan, outputs, done))
        files = tuple(
            MergedFile(path, alpha, writer.commit(plan.card(alpha, done.digests)), counts)
            for (alpha, path), writer, counts in zip(outputs, writers, done.not_finite, strict=True)
        )
        targets.commit_folders(plan, [file.digest for file in files])
        return files, done


def _not_finite_warnings(
    plan: MergePlan, outputs: Sequence[tuple[Alpha, Path]], done: StreamResult
) -> list[str]:
    found = [
        (f"{reader.path}: values are infinite or NaN", counts)
        for reader, counts in zip(plan.inputs, done.not_finite_inputs, strict=True)
    ]
    found += [
        (
            f"alpha {alpha.text}: merged values are not finite although those of both inputs are",
            counts,
        )
        for (alpha, _), counts in zip(outputs, done.not_finite, strict=True)
    ]
    return [f"{what}: {_list_counts(counts)}" for what, counts in found if counts]


def _list_counts(counts: Mapping[str, int]) -> str:
    lines = [f"{name} ({counted(count, 'value')})" for name, count in sorted(counts.items())]
    return ", ".join(list_some(lines))


def _raise_if_strict(is_strict: bool, warnings: Sequence[str]) -> None:
    if is_strict and warnings:
        raise CheckpointError("--strict makes warnings errors", faults=warnings)
