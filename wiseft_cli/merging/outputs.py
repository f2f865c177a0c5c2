"""The outputs of a merge: files, or folders with the small files that FINETUNED's folder has.

transformers and open_clip load a model from a folder with a config and tokenizer files.
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
from wiseft_cli.checkpoint.shards import INDEX_NAME, whole_name
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.disk import require_space
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.plan import MergePlan

MANIFEST = "wiseft_merge.json"
"""File in the folder that lists its files, so that --force replaces nothing else."""

_FILES_PER_OUTPUT = 2
"""The file and its folder."""

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
    if not folder.is_dir():
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
        UsageError: It is a single file.
    """
    if finetuned.is_file() and not INDEX_NAME.search(finetuned.name):
        raise UsageError(
            f"{finetuned}: is a file, and an output folder takes config and tokenizer from the "
            "folder of FINETUNED",
            hint="name that folder as FINETUNED, or an output file with -o",
        )


def _allow_open_files(n_outputs: int, n_others: int) -> None:
    """Raise this process's limit on open files if outputs need more; the system sets the bound."""
    needed = n_outputs * _FILES_PER_OUTPUT + n_others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            most = max(1, (hard - n_others) // _FILES_PER_OUTPUT)
            raise OutputError(
                f"{n_outputs:,} outputs need {needed:,} open files, and the limit is {hard:,}",
                hint=f"merge at most {most:,} values of --alpha at a time, or raise the hard limit "
                "(ulimit -Hn)",
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
    """

    outputs: Sequence[tuple[Alpha | None, Path]]
    inputs: Sequence[Path]
    force: bool
    are_folders: bool
    creates_parents: bool
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

    def open(self, stack: ExitStack, plan: MergePlan) -> list[CheckpointWriter]:
        """Return an open writer for every output; leaving `stack` closes them.

        Raises:
            OutputError: The outputs are too many to be open at once, do not fit on the disk, or
                cannot be written.
        """
        _allow_open_files(len(self.outputs), _OTHER_FILES + len(self.inputs))
        if self.creates_parents:
            for _, path in self.outputs:
                stack.enter_context(created_parents(path))
        size_bytes = sum(spec.nbytes for spec in plan.specs)
        require_space([(path, size_bytes) for _, path in self.outputs])
        return [self._open_one(stack, plan, alpha, path) for alpha, path in self.outputs]

    def _open_one(
        self, stack: ExitStack, plan: MergePlan, alpha: Alpha | None, path: Path
    ) -> CheckpointWriter:
        if self.are_folders:
            folder = AtomicFolder(path, manifest=MANIFEST, force=self.force, inputs=self.inputs)
            self._folders.append(stack.enter_context(folder))
            path = folder.temporary / whole_name(plan.inputs[-1].files)
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
