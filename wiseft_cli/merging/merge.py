"""Merge checkpoints into files: theta = (1 - alpha) * theta_0 + alpha * theta_1, or a method.

Wortsman et al., Robust fine-tuning of zero-shot models, arXiv:2109.01903; `methods.py` lists the
other methods. All checks come first and read only headers; then the inputs are read, for all
alphas together; then the complete outputs appear. This module does not parse options and does not
print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.reader import (
    CheckpointReader,
    open_checkpoint,
    require_card_digest,
)
from wiseft_cli.checkpoint.shards import parse_size
from wiseft_cli.errors import CheckpointError, UsageError, counted, list_some
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.compatibility import require_equal_bytes
from wiseft_cli.merging.fisher_file import (
    fisher_info,
    open_fisher,
    require_fisher_digest,
    require_fisher_of,
    require_own_digest,
)
from wiseft_cli.merging.head_rows import head_warnings
from wiseft_cli.merging.inputs import (
    choose_copied,
    doubts,
    require_compatible_inputs,
    require_zeroshot_first,
)
from wiseft_cli.merging.layers import layer_alpha as parse_pattern
from wiseft_cli.merging.methods import DEFAULT_METHOD
from wiseft_cli.merging.outputs import MergeOutputs, require_folder_name
from wiseft_cli.merging.plan import STORED_DTYPES, MergePlan, plan_merge
from wiseft_cli.merging.settings import MergeSettings, resolve_alphas, resolve_settings
from wiseft_cli.merging.stream import StreamResult, default_threads, stream_tensors


@dataclass(frozen=True)
class MergedFile:
    """One output of a merge.

    Attributes:
        alpha: None if the method has no alpha.
        digest: Its content digest.
        not_finite: By tensor, the number of elements that are not finite although those of all
            inputs are.
        warnings: Doubts about the inputs and the result; only `merge` sets them.
    """

    path: Path
    alpha: Alpha | None
    digest: str
    not_finite: Mapping[str, int]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge.

    Attributes:
        files: The outputs, in the order of the alphas.
        discrete: Names of integer and boolean tensors, taken from the fine-tuned inputs.
        missing: Names of tensors copied from the only input that has them.
        not_finite: For every input, theta_0 first, by tensor, the number of infinite or NaN values.
        warnings: Doubts about the inputs and the result, for the user.
        notes: Facts about the tensors that the method found, for the user.
    """

    files: tuple[MergedFile, ...]
    discrete: tuple[str, ...]
    missing: tuple[str, ...]
    not_finite: tuple[Mapping[str, int], ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def merge(
    zeroshot: str | Path,
    finetuned: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    alpha: float | str | None = None,
    method: str = DEFAULT_METHOD,
    weights: Sequence[float | str] | None = None,
    layer_alpha: Mapping[str, float | str] | None = None,
    options: Mapping[str, float | str] | None = None,
    fisher: Sequence[str | Path] = (),
    dtype: str | None = None,
    copy_missing: bool = False,
    strict: bool = False,
    max_shard_size: int | str | None = None,
    threads: int | None = None,
    force: bool = False,
) -> MergedFile:
    """Merge checkpoints into one file: (1 - alpha) * zeroshot + alpha * finetuned, or a method.

    Writes the bytes that `wiseft merge` writes, and imports no torch.

    Args:
        zeroshot: theta_0: a safetensors file, an index of shards, or a folder with one of them.
        finetuned: theta_1, or a list of theta_1, theta_2, ..., each in any of these forms.
        output: File to write, or with `max_shard_size` the folder.
        alpha: Factor on what is added to `zeroshot`, in [0, 1]; a string is an exact decimal. None
            is the default of the method, 0.5 for `linear`.
        method: A method of `wiseft merge --list-methods`.
        weights: One weight per fine-tuned input, with the sum 1; None for equal weights.
        layer_alpha: Alpha by pattern of tensor names, as of `--layer-alpha`; the first match
            counts.
        options: Options of the method by name, such as `{"density": 0.2}`.
        fisher: For the method `fisher`, the Fisher file of every input, that of `zeroshot` first.
        dtype: `float32`, `float16` or `bfloat16` for all floating tensors; None keeps theirs.
        copy_missing: Copy tensors that only one input has, instead of rejecting the inputs.
        strict: Raise an error instead of reporting a warning.
        max_shard_size: Maximum size of the tensors in a file, such as `"5GB"` or a number of
            bytes; writes a folder with shards and their index.
        threads: Number of threads; None uses one per usable CPU, up to 8.
        force: Whether an existing output may be replaced.
    Raises:
        UsageError: alpha, method, weights or options are wrong, or contradict each other.
        CheckpointError: An input is damaged or not a checkpoint, or they cannot be merged.
        OutputError: The output exists, is an input, or cannot be written.
    Paper: Wortsman et al. 2022, arXiv:2109.01903, section 3.
    """
    if dtype is not None and dtype not in STORED_DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(STORED_DTYPES)}")
    tuned = [finetuned] if isinstance(finetuned, str | Path) else list(finetuned)
    settings = resolve_settings(
        method,
        n_finetuned=len(tuned),
        weights=[str(weight) for weight in weights or ()],
        layer_alphas=[parse_pattern(*map(str, row)) for row in (layer_alpha or {}).items()],
        options={name: str(value) for name, value in (options or {}).items()},
    )
    exact = resolve_alphas(settings, [] if alpha is None else [str(alpha)])
    if len(exact) != 1:
        raise UsageError(f"alpha {alpha!r}: {len(exact)} values for one output")
    if max_shard_size is not None:
        require_folder_name(str(output))
    report = merge_checkpoints(
        Path(zeroshot),
        [Path(path) for path in tuned],
        [(exact[0], Path(output))],
        settings=settings,
        fishers=[Path(path) for path in fisher],
        dtype=dtype,
        copies_missing=copy_missing,
        is_strict=strict,
        threads=threads,
        force=force,
        max_shard_bytes=None if max_shard_size is None else parse_size(max_shard_size),
    )
    return replace(report.files[0], warnings=report.warnings)


OpenInputs = Callable[[Sequence[Path]], AbstractContextManager[Sequence[CheckpointReader]]]
"""Opens the inputs of a merge, theta_0 first."""


@contextmanager
def open_inputs(paths: Sequence[Path]) -> Iterator[Sequence[CheckpointReader]]:
    """Open checkpoints, each a file, an index of shards, or a folder with one of them."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_checkpoint(path, allow_shards=True)) for path in paths]


def merge_checkpoints(
    zeroshot: Path,
    finetuned: Path | Sequence[Path],
    outputs: Sequence[tuple[Alpha | None, Path]],
    *,
    settings: MergeSettings | None = None,
    fishers: Sequence[Path] = (),
    dtype: str | None = None,
    copies_missing: bool = False,
    threads: int | None = None,
    is_strict: bool = False,
    force: bool = False,
    writes_folders: bool = False,
    max_shard_bytes: int | None = None,
    creates_parents: bool = False,
    opens: OpenInputs = open_inputs,
    selection: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge checkpoints at one or several alphas.

    Args:
        zeroshot: theta_0: a safetensors file, an index of shards, or a folder with one of them.
        finetuned: theta_1, or theta_1, theta_2, ..., each in any of these forms.
        outputs: One path for every alpha; the alpha is None if the method has none.
        settings: From `resolve_settings`; None for (1 - alpha) * theta_0 + alpha * theta_1.
        fishers: Fisher file of every input, theta_0 first, for the method `fisher`.
        dtype: Dtype to store floating tensors in, one of `plan.STORED_DTYPES`; None keeps theirs.
        copies_missing: Copy tensors that only one input has, instead of rejecting the inputs.
        threads: Number of threads; None uses one per usable CPU, up to 8.
        is_strict: Raise an error instead of reporting a warning.
        force: Whether existing outputs may be replaced.
        writes_folders: Write each output as a folder, with the files beside the weights of the
            last fine-tuned input.
        max_shard_bytes: Write each output as a folder of shards, with at most so many bytes of
            tensors in a file; a larger tensor has a file of its own.
        creates_parents: Create missing folders of the outputs.
        opens: Opens the inputs, for example under other names.
        selection: For the history, the image set that chose the inputs.
        on_progress: Called with the number of bytes of all inputs, and the number of bytes done
            since the last call.
    Raises:
        UsageError: A pattern of the settings is not used, or Fisher files are missing.
        CheckpointError: An input is damaged or not a checkpoint, or they cannot be merged.
        OutputError: An output must not or cannot be written.
    """
    tuned = [finetuned] if isinstance(finetuned, Path) else list(finetuned)
    return _merge_inputs(
        [zeroshot, *tuned],
        outputs,
        settings=settings or resolve_settings(n_finetuned=len(tuned)),
        fishers=fishers,
        dtype=dtype,
        copies_missing=copies_missing,
        threads=threads,
        is_strict=is_strict,
        force=force,
        writes_folders=writes_folders or max_shard_bytes is not None,
        max_shard_bytes=max_shard_bytes,
        creates_parents=creates_parents,
        opens=opens,
        selection=selection,
        on_progress=on_progress,
    )


def soup_checkpoints(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    weights: Sequence[str] = (),
    dtype: str | None = None,
    copies_missing: bool = False,
    threads: int | None = None,
    is_strict: bool = False,
    force: bool = False,
    writes_folders: bool = False,
    selection: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Write the mean of checkpoints, without a zero-shot one (arXiv:2203.05482).

    Args:
        checkpoints: One or more, in any of the forms of `merge_checkpoints`.
        output: File, or folder, to write.
        weights: One exact decimal per checkpoint, with the sum 1; empty for equal weights.
        selection: For the history, the image set that chose the checkpoints.
    Raises:
        UsageError: There is no checkpoint, or the weights are wrong.
        CheckpointError: An input is damaged or not a checkpoint, or they cannot be averaged.
        OutputError: The output must not or cannot be written.
    """
    return _merge_inputs(
        checkpoints,
        [(None, output)],
        settings=resolve_settings(
            "soup", n_finetuned=len(checkpoints), weights=weights, has_base=False
        ),
        dtype=dtype,
        copies_missing=copies_missing,
        threads=threads,
        is_strict=is_strict,
        force=force,
        writes_folders=writes_folders,
        selection=selection,
        on_progress=on_progress,
    )


def _merge_inputs(
    paths: Sequence[Path],
    outputs: Sequence[tuple[Alpha | None, Path]],
    *,
    settings: MergeSettings,
    fishers: Sequence[Path] = (),
    dtype: str | None,
    copies_missing: bool,
    threads: int | None,
    is_strict: bool,
    force: bool,
    writes_folders: bool,
    max_shard_bytes: int | None = None,
    creates_parents: bool = False,
    opens: OpenInputs = open_inputs,
    selection: Mapping[str, Any] | None,
    on_progress: Callable[[int, int], None] | None,
) -> MergeReport:
    has_base = settings.spec.has_base
    _require_fishers(settings, fishers, len(paths))
    with ExitStack() as stack:
        inputs = list(stack.enter_context(opens(paths)))
        of_fisher = [stack.enter_context(open_fisher(path)) for path in fishers]
        targets = MergeOutputs(
            outputs,
            [file for reader in (*inputs, *of_fisher) for file in reader.files],
            force,
            writes_folders,
            creates_parents,
            max_shard_bytes,
        )
        targets.check()
        if has_base:
            require_zeroshot_first(inputs)
        require_compatible_inputs(inputs, converts=dtype is not None, copies_missing=copies_missing)
        for fisher, reader in zip(of_fisher, inputs, strict=False):
            require_fisher_of(fisher, reader)
        warnings = [
            *doubts(inputs, has_base=has_base),
            *(text for other in inputs[1:] for text in head_warnings(inputs[0], other)),
        ]
        _raise_if_strict(is_strict, warnings)
        plan = plan_merge(
            inputs,
            settings=settings,
            fishers=of_fisher,
            dtype=dtype,
            copied=choose_copied(inputs, has_base=has_base),
            selection=selection,
        )
        for other in inputs[1:]:
            require_equal_bytes(inputs[0], other, plan.opaque)
        files, done = _write_outputs(
            plan,
            targets,
            threads=threads or default_threads(plan),
            is_strict=is_strict,
            on_progress=on_progress,
        )
    warnings += _not_finite_warnings(plan, outputs, done)
    return MergeReport(
        files,
        plan.discrete,
        plan.missing,
        done.not_finite_inputs[: len(inputs)],
        tuple(warnings),
        tuple(plan.merge.notes()),
    )


def _require_fishers(settings: MergeSettings, fishers: Sequence[Path], n_inputs: int) -> None:
    expected = n_inputs if settings.spec.takes_fisher else 0
    if len(fishers) != expected:
        raise UsageError(
            f"method {settings.method}: {counted(len(fishers), 'Fisher file')} given, expected "
            + (f"{expected}, one per input, that of ZEROSHOT first" if expected else "none"),
            hint="give --fisher FILE once per input; wiseft fisher computes the files"
            if expected
            else "only the method fisher takes --fisher",
        )


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
        _require_digests(plan, done.digests)
        _raise_if_strict(is_strict, _not_finite_warnings(plan, outputs, done))
        files = tuple(
            MergedFile(path, alpha, writer.commit(plan.card(alpha, done.digests)), counts)
            for (alpha, path), writer, counts in zip(outputs, writers, done.not_finite, strict=True)
        )
        targets.commit_folders(plan, [file.digest for file in files])
        return files, done


def _require_digests(plan: MergePlan, digests: Sequence[str]) -> None:
    """Reject inputs that do not have the content that their cards or descriptions state."""
    n_inputs = len(plan.inputs)
    for reader, digest in zip(plan.inputs, digests, strict=False):
        require_card_digest(reader, digest)
    for fisher, reader, digest, own in zip(
        plan.fishers, plan.inputs, digests, digests[n_inputs:], strict=False
    ):
        info = fisher_info(fisher)
        require_fisher_digest(fisher, info, reader, digest)
        require_own_digest(fisher, info, own)


def _not_finite_warnings(
    plan: MergePlan, outputs: Sequence[tuple[Alpha | None, Path]], done: StreamResult
) -> list[str]:
    found = [
        (f"{reader.path}: values are infinite or NaN", counts)
        for reader, counts in zip(plan.sources, done.not_finite_inputs, strict=True)
    ]
    inputs = "both" if len(plan.inputs) == 2 else "all"
    found += [
        (
            (f"alpha {alpha.text}: " if alpha else f"{path}: ")
            + f"merged values are not finite although those of {inputs} inputs are",
            counts,
        )
        for (alpha, path), counts in zip(outputs, done.not_finite, strict=True)
    ]
    return [f"{what}: {_list_counts(counts)}" for what, counts in found if counts]


def _list_counts(counts: Mapping[str, int]) -> str:
    lines = [f"{name} ({counted(count, 'value')})" for name, count in sorted(counts.items())]
    return ", ".join(list_some(lines))


def _raise_if_strict(is_strict: bool, warnings: Sequence[str]) -> None:
    if is_strict and warnings:
        raise CheckpointError("--strict makes warnings errors", faults=warnings)
