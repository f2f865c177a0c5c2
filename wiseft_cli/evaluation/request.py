"""The request for an evaluation: what to evaluate, on what, and its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.compute.precision import require_precision
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.layers import parse_layer_alpha
from wiseft_cli.merging.methods import DEFAULT_METHOD, METHODS
from wiseft_cli.merging.settings import LayerAlpha, MergeSettings, resolve_alphas, resolve_settings

PathLike = str | Path
Item = TypeVar("Item", str, str | float, str | Path)


@dataclass(frozen=True)
class EvalRequest:
    """The options of `wiseft eval`, with the same names.

    Where a list is expected, a single value stands for a list of one.

    Attributes:
        checkpoints: Checkpoints that wiseft wrote, or folders that hold a single one.
        data: Image sets: `[NAME=]SPEC`, with a folder of one subfolder per class, a manifest
            (.csv, .tsv, .jsonl), shards (`data-{000..127}.tar`), or a suite (.yaml) as SPEC. The
            first set is the in-distribution set.
        suite: Several image sets, before those of `data`: the name of a suite that ships with
            wiseft, or a file.
        root: Folder that holds the sets of the suite.
        alpha: Evaluate merges of the checkpoints, zero-shot first, at these weights of the
            fine-tuned ones: numbers, lists `0,0.5,1` or ranges `0:1:0.1`.
        method: How to merge, as in `wiseft merge`; `soup` averages checkpoints without a zero-shot
            one. Without `alpha`, the default of the method is used.
        weights: Weight of each fine-tuned checkpoint; equal weights by default.
        layer_alpha: `PATTERN=ALPHA`: alpha of the tensors whose names match, instead of `alpha`.
        options: Options of the method by name, such as `{"density": 0.2}`.
        fisher: The Fisher file of each checkpoint, for the method fisher.
        output_ensemble: Add a row that averages the logits of the two checkpoints.
        reference: Name of the in-distribution set; by default the first one.
        select_on: Name of the validation set; it is not counted as a shift. With `alpha` it
            chooses alpha.
        merge_best: File for the merge at the chosen alpha, or for the one merge of a method that
            has no alpha.
        fail_under: Gates, such as `val:top1>=0.77` or `shifts:primary>=baseline-0.01`.
        gate_alpha: The alpha that gates judge, if there are several.
        baseline: Checkpoint that gates compare with; it has a row too.
        results: File of results lines to add to; what it holds already is not computed again.
        save_predictions: Folder for files with the prediction for each image.
        summary: File that the results are appended to as Markdown, with the gates.
        columns: Columns of the table: names of sets, `mean shift`, `average`, `SET:METRIC`.
        all_classes: Score over all classes of the head, not only those of each set.
        labels_are_indices: Labels are positions among the head's classes, from 0.
        max_bad: Maximum number of unreadable images per set; they are left out.
        precision: Precision of the image encoder: `fp32`, `bf16` or `fp16`.
        batch_size: Images per forward pass.
        workers: Processes that decode images; 0 decodes in this process. By default one per
            usable CPU, up to 8.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: CPU threads of torch in this process; by default torch's choice.
        force: Compute again what `results` holds, and overwrite outputs that exist.
    """

    checkpoints: PathLike | Sequence[PathLike]
    data: PathLike | Sequence[PathLike] = ()
    suite: str | None = None
    root: PathLike | None = None
    alpha: str | float | Sequence[str | float] = ()
    method: str | None = None
    weights: str | float | Sequence[str | float] = ()
    layer_alpha: str | Sequence[str] = ()
    options: Mapping[str, str | float | None] = field(default_factory=dict)
    fisher: PathLike | Sequence[PathLike] = ()
    output_ensemble: bool = False
    reference: str | None = None
    select_on: str | None = None
    merge_best: PathLike | None = None
    fail_under: str | Sequence[str] = ()
    gate_alpha: str | float | None = None
    baseline: PathLike | None = None
    results: PathLike | None = None
    save_predictions: PathLike | None = None
    summary: PathLike | None = None
    columns: Sequence[str] = ()
    all_classes: bool = False
    labels_are_indices: bool = False
    max_bad: int = 0
    precision: str = "fp32"
    batch_size: int = 64
    workers: int | None = None
    device: str = "auto"
    threads: int | None = None
    force: bool = False

    @property
    def checkpoint_paths(self) -> list[Path]:
        """The paths of the checkpoints, without the baseline."""
        return [Path(item) for item in _as_list(self.checkpoints)]

    @property
    def data_specs(self) -> list[str]:
        """The specs of the image sets."""
        return [str(item) for item in _as_list(self.data)]

    @property
    def settings(self) -> MergeSettings | None:
        """How the checkpoints are merged, apart from alpha; None if they are not merged.

        Raises:
            UsageError: The method does not exist, or does not take these checkpoints and options.
        """
        layer_alphas = [parse_layer_alpha(text) for text in _as_list(self.layer_alpha)]
        weights = [part for item in _as_list(self.weights) for part in str(item).split(",")]
        is_merged = self.method is not None or bool(_as_list(self.alpha))
        if not is_merged:
            self._reject_options_of_merges(weights, layer_alphas)
            return None
        method, n_checkpoints = self.method or DEFAULT_METHOD, len(self.checkpoint_paths)
        if n_checkpoints < 2:
            raise UsageError(
                f"--alpha and --method merge at least two checkpoints, {n_checkpoints} given",
                hint="wiseft eval --alpha 0:1:0.1 ZEROSHOT FINETUNED --data DIR",
            )
        has_base = method not in METHODS or METHODS[method].has_base
        return resolve_settings(
            method,
            n_finetuned=n_checkpoints - 1 if has_base else n_checkpoints,
            weights=weights,
            layer_alphas=layer_alphas,
            options={
                name: None if value is None else str(value) for name, value in self.options.items()
            },
            has_base=has_base,
        )

    def _reject_options_of_merges(
        self, weights: Sequence[str], layer_alphas: Sequence[LayerAlpha]
    ) -> None:
        given = {
            "--weights": weights,
            "--layer-alpha": layer_alphas,
            "--fisher": self.fisher_paths,
            **{f"--{name.replace('_', '-')}": at for name, at in self.options.items()},
        }
        named = [option for option, value in given.items() if value not in (None, [])]
        if named:
            raise UsageError(f"{named[0]} needs --method or --alpha, which merge the checkpoints")

    @property
    def alphas(self) -> tuple[Alpha, ...]:
        """The alphas of the merges; empty if nothing is merged, or if the method has no alpha.

        Raises:
            UsageError: One cannot be parsed, is outside [0, 1], or the method has no alpha.
        """
        settings = self.settings
        if settings is None:
            return ()
        texts = [str(item) for item in _as_list(self.alpha)]
        return tuple(alpha for alpha in resolve_alphas(settings, texts) if alpha is not None)

    @property
    def fisher_paths(self) -> list[Path]:
        """The Fisher files."""
        return [Path(item) for item in _as_list(self.fisher)]

    @property
    def gates(self) -> list[str]:
        """The texts of the gates."""
        return [str(item) for item in _as_list(self.fail_under)]

    @property
    def suite_root(self) -> Path | None:
        """The folder that holds the sets of the suite."""
        return None if self.root is None else Path(self.root)

    @property
    def results_path(self) -> Path | None:
        """The file of results lines."""
        return None if self.results is None else Path(self.results)

    def check_options(self) -> Alpha | None:
        """Reject options that lack another one, and return the alpha that gates judge.

        Raises:
            UsageError: An option needs another one, or no alpha is `gate_alpha`.
        """
        require_precision(self.precision)
        if not self.data_specs and self.suite is None:
            raise UsageError("no image sets are named", hint="name them with --data or --suite")
        has_alphas, settings = bool(self.alphas), self.settings
        has_no_alpha = settings is not None and settings.spec.default_alpha is None
        for value, option, needs, is_there in (
            (self.root, "--root", "--suite", self.suite is not None),
            (
                self.merge_best,
                "--merge-best",
                "--select-on",
                self.select_on is not None or has_no_alpha,
            ),
            (self.merge_best, "--merge-best", "--alpha", has_alphas or has_no_alpha),
            (self.gate_alpha, "--gate-alpha", "--alpha", has_alphas),
            (self.gate_alpha, "--gate-alpha", "--fail-under", bool(self.gates)),
        ):
            if value is not None and not is_there:
                raise UsageError(f"{option} needs {needs}")
        if self.gate_alpha is None:
            return None
        gate_alpha, *others = parse_alphas([str(self.gate_alpha)])
        if others or gate_alpha not in self.alphas:
            raise UsageError(
                f"--gate-alpha {self.gate_alpha} is not among the alphas:"
                f" {', '.join(alpha.text for alpha in self.alphas)}"
            )
        return gate_alpha

    def check_outputs(self) -> None:
        """Reject outputs that cannot be written, before any work.

        Raises:
            UsageError: Two outputs are the same file.
            OutputError: An output exists, is an input, or cannot be written.
        """
        inputs = (
            self.checkpoint_paths
            + self.fisher_paths
            + ([] if self.baseline is None else [Path(self.baseline)])
        )
        if self.results_path is not None:
            _check_output(self.results_path, "--results", force=True, inputs=inputs)
        if self.summary is not None:
            summary = Path(self.summary)
            if self.results_path is not None and _is_same_place(summary, self.results_path):
                raise UsageError(f"--summary and --results both name {self.results_path}")
            _check_output(summary, "--summary", force=True, inputs=inputs)
        if self.merge_best is not None:
            merged = Path(self.merge_best)
            if self.results_path is not None and _is_same_place(merged, self.results_path):
                raise UsageError(f"--merge-best and --results both name {self.results_path}")
            _check_output(merged, "--merge-best", force=self.force, inputs=inputs)


def _as_list(value: Item | Iterable[Item]) -> list[Item]:
    return [value] if isinstance(value, str | Path | float | int) else list(value)


def _is_same_place(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _check_output(path: Path, option: str, *, force: bool, inputs: Sequence[Path]) -> None:
    """Check an output; hints name the option that it was given with."""
    try:
        check_output(path, force=force, inputs=inputs)
    except OutputError as error:
        hint = error.hint.replace("with -o", f"with {option}") if error.hint else None
        raise OutputError(error.message, hint=hint) from None
