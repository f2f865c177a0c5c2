"""The outputs of a merge: files, or folders with the small files that FINETUNED's folder has.

transformers and open_clip load a model from a folder with a config and tokenizer files. Weights
in shards are always a folder.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from wiseft_cli.checkpoint.atomic import check_output, created_parents
from wiseft_cli.checkpoint.atomic_folder import AtomicFolder, check_output_folder
from wiseft_cli.checkpoint.format import TensorSpec
from wiseft_cli.checkpoint.sharded_writer import ShardedWriter
from wiseft_cli.checkpoint.shards import (
    ADAPTER_CONFIG,
    FILE_SUFFIX,
    INDEX_NAME,
    WHOLE_NAME,
    plan_shards,
    whole_name,
)
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.disk import require_space
from wiseft_cli.errors import OutputError, UsageError, counted
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.plan import MergePlan

MANIFEST = "wiseft_merge.json"
"""File in the folder that lists its files, so that --force replaces nothing else."""

_OTHER_FILES = 32
"""Libraries and standard streams."""

_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".txt.gz")
_MAX_BYTES = 64 << 20
_RESULTS = frozenset(
    {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json"}
)
"""Files about the training of FINETUNED, not about the merge."""


def list_companions(checkpoint: Path) -> list[Path]:
    """Return the config, tokenizer and other small files beside the weights of a folder, sorted.

    Args:
        checkpoint: A folder, or an index of shards in it; a single file has no companions.
    """
    folder = checkpoint.parent if INDEX_NAME.search(checkpoint.name) else checkpoint
    if not folder.is_dir() or (folder / ADAPTER_CONFIG).is_file():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(_SUFFIXES)
        and not INDEX_NAME.search(path.name)
        and not path.name.startswith("wiseft_")
        and path.name not in _RESULTS
        and path.is_file()
        and path.stat().st_size <= _MAX_BYTES
    )


def require_model_folder(finetuned: Path) -> None:
    """Reject a fine-tuned checkpoint whose companions are unknown.

    Raises:
        UsageError: It is a single file, or an adapter.
    """
    if (finetuned / ADAPTER_CONFIG).is_file():
        raise UsageError(
            f"{finetuned}: is an adapter, whose folder has no config and tokenizer of a model",
            hint="name an output file with -o",
        )
    if _is_single_file(finetuned):
        raise UsageError(
            f"{finetuned}: is a file, and an output folder takes config and tokenizer from the "
            "folder of FINETUNED",
            hint="name that folder as FINETUNED, or an output file with -o",
        )


def _is_single_file(checkpoint: Path) -> bool:
    return checkpoint.is_file() and not INDEX_NAME.search(checkpoint.name)


def require_folder_name(output: str) -> None:
    """Reject the name of a file for weights in shards.

    Raises:
        UsageError: It ends like a file's name.
    """
    if output.endswith(FILE_SUFFIX):
        raise UsageError(
            f"-o {output}: is the name of a file, and --max-shard-size writes a folder",
            hint=f"-o {output.removesuffix(FILE_SUFFIX)}",
        )


def _allow_open_files(n_outputs: int, n_shards: int, n_others: int) -> None:
    """Raise this process's limit on open files if outputs need more; the system sets the bound."""
    files_per_output = n_shards + 1  # and the folder
    needed = n_outputs * files_per_output + n_others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            most = max(1, (hard - n_others) // files_per_output)
            remedy = (
                f"merge at most {most:,} values of --alpha at a time"
                if n_shards == 1
                else "use a larger --max-shard-size or fewer values of --alpha at a time"
            )
            of_shards = "" if n_shards == 1 else f" of {n_shards:,} shards"
            raise OutputError(
                f"{counted(n_outputs, 'output')}{of_shards} "
                f"{'needs' if n_outputs == 1 else 'need'} {needed:,} open files, and the limit is "
                f"{hard:,}",
                hint=f"{remedy}, or raise the hard limit (ulimit -Hn)",
            )
        with suppress(ValueError, OSError):  # a system may have another bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@dataclass
class MergeOutputs:
    """Where a merge writes.

    Attributes:
        outputs: The path of each alpha: a file, or a folder.
        inputs: Files that must not be overwritten.
        force: Whether existing outputs may be replaced.
        are_folders: Whether every output is a folder.
        creates_parents: Whether missing folders of the outputs are created.
        max_shard_bytes: Maximum size of the tensors in a file, for folders; None for one file.
    """

    outputs: Sequence[tuple[Alpha | None, Path]]
    inputs: Sequence[Path]
    force: bool
    are_folders: bool
    creates_parents: bool
    max_shard_bytes: int | None = None
    _folders: list[AtomicFolder] = field(default_factory=list)

    def check(self) -> None:
        """Reject outputs that must not be written.

        Raises:
            OutputError: See `check_output` and `check_output_folder`.
        """
        for _, path in self.outputs:
            if self.are_folders:
                check_output_folder(
                    path,
                    manifest=MANIFEST,
                    force=self.force,
                    inputs=self.inputs,
                    creates_parents=self.creates_parents,
                )
            else:
                check_output(
                    path,
                    force=self.force,
                    inputs=self.inputs,
                    creates_parents=self.creates_parents,
                )

    def open(self, stack: ExitStack, plan: MergePlan) -> list[CheckpointWriter | ShardedWriter]:
        """Return an open writer for every output; leaving `stack` closes them.

        Raises:
            OutputError: The outputs are too many to be open at once, do not fit on the disk, or
                cannot be written.
        """
        shards = plan_shards(plan.specs, self.max_shard_bytes) if self.max_shard_bytes else []
        n_shards = max(1, len(shards))
        _allow_open_files(len(self.outputs), n_shards, _OTHER_FILES + len(self.inputs))
        if self.creates_parents:
            for _, path in self.outputs:
                stack.enter_context(created_parents(path))
        size_bytes = sum(spec.nbytes for spec in plan.specs)
        require_space([(path, size_bytes) for _, path in self.outputs])
        return [self._open_one(stack, plan, alpha, path, shards) for alpha, path in self.outputs]

    def _open_one(
        self,
        stack: ExitStack,
        plan: MergePlan,
        alpha: Alpha | None,
        path: Path,
        shards: Sequence[Sequence[TensorSpec]],
    ) -> CheckpointWriter | ShardedWriter:
        if self.are_folders:
            folder = AtomicFolder(path, manifest=MANIFEST, force=self.force, inputs=self.inputs)
            self._folders.append(stack.enter_context(folder))
            last = plan.inputs[-1]
            name = WHOLE_NAME if _is_single_file(last.path) else whole_name(last.files)
            path = folder.temporary / name
        if len(shards) > 1:
            stem = path.name.removesuffix(FILE_SUFFIX)
            writer = ShardedWriter(
                path.parent, stem, shards, plan.card(alpha), metadata=plan.metadata
            )
            return stack.enter_context(writer)
        return stack.enter_context(
            CheckpointWriter(
                path,
                plan.specs,
                plan.card(alpha),
                force=self.force,
                inputs=self.inputs,
                metadata=plan.metadata,
            )
        )

    def commit_folders(self, plan: MergePlan, digests: Sequence[str]) -> None:
        """Copy the files beside FINETUNED's weights into the folders, and name the folders.

        Args:
            digests: Content digest of the weights of every output, whose writer is committed.
        """
        for folder, (alpha, _), digest in zip(self._folders, self.outputs, digests, strict=False):
            for companion in list_companions(plan.inputs[-1].path):
                shutil.copyfile(companion, folder.temporary / companion.name)
            folder.commit({"schema": 1, "alpha": alpha.text if alpha else None, "digest": digest})
