"""Training images that cannot be read: each named once, and a bound to how many there may be.

Which images these are depends on the data alone, so a run that leaves some out has the same
bytes for any number of workers. Several processes of a run count together. It does not decode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.errors import CommonDatasetError, list_some


class UnreadableImages:
    """Counts the unreadable images of a run, each once, however often it is drawn.

    Args:
        max_bad: How many may be left out.
        on_found: Called with the reason, path included, when an image is first met.
        processes: The processes of the run, which count together.
    """

    def __init__(
        self,
        max_bad: int = 0,
        on_found: Callable[[str], None] = lambda _: None,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._processes = processes
        self._max_bad = max_bad
        self._on_found = on_found
        self._reasons: dict[str, None] = {}
        self._of_this_process: list[str] = []

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each could not be read, in the order in which they were met."""
        return tuple(self._reasons)

    def note(self, reasons: Sequence[str]) -> None:
        """Note the unreadable images of a batch of this process.

        Raises:
            DatasetError: There are more than may be left out; all of them are named. Where
                several processes share the run, that is told by `settle`.
        """
        self._of_this_process += reasons
        if self._processes.is_single:
            self.settle()

    def settle(self) -> None:
        """Count what was noted since, by all processes, each of which calls this.

        Raises:
            DatasetError: There are more than may be left out; in all processes alike.
        """
        reasons = self._processes.gather(self._of_this_process)
        self._of_this_process = []
        new = [reason for reason in dict.fromkeys(reasons) if reason not in self._reasons]
        self._reasons.update(dict.fromkeys(new))
        if len(self._reasons) > self._max_bad:
            raise self._too_many()
        for reason in new:
            self._on_found(reason)

    def _too_many(self) -> CommonDatasetError:
        lines = list_some(list(self._reasons))
        if self._max_bad:
            title = f"{len(self._reasons)} images cannot be read, expected at most {self._max_bad}:"
            lines = [title, *(f"  {line}" for line in lines)]
        return CommonDatasetError(
            "\n".join(lines),
            hint="replace or remove the files, then start again; --max-bad N leaves up to N of"
            " them out",
        )
