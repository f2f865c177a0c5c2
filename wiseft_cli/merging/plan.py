"""What becomes of each tensor of a merge, decided from the headers alone.

It reads no tensor and judges no pair of files; `merging/compatibility.py` has done that before.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from wiseft_cli.checkpoint.format import TensorInfo, TensorSpec
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.merging.comparison import DISCRETE_DTYPES, INTERPOLATED_DTYPES


class Action(Enum):
    """Where a merged tensor's numbers come from."""

    INTERPOLATE = "both"
    TAKE_0 = "theta_0"
    TAKE_1 = "theta_1"


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the output: what is done, what is written, and what it is read from."""

    action: Action
    spec: TensorSpec
    info_0: TensorInfo | None
    info_1: TensorInfo | None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.spec.name

    @property
    def input_bytes(self) -> int:
        """Bytes to be read."""
        return sum(info.nbytes for info in (self.info_0, self.info_1) if info)


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of a merge.

    Attributes:
        steps: One a tensor, by name.
        discrete: Names of the integer and boolean tensors that both sides have.
        opaque: Names of the tensors of types that cannot be interpolated, which both have.
        missing: Names of the tensors that only one side has.
    """

    steps: tuple[Step, ...]
    discrete: tuple[str, ...]
    opaque: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def specs(self) -> list[TensorSpec]:
        """The tensors of the output."""
        return [step.spec for step in self.steps]

    @property
    def input_bytes(self) -> int:
        """Bytes to be read from both inputs."""
        return sum(step.input_bytes for step in self.steps)


def plan_merge(
    theta_0: CheckpointReader, theta_1: CheckpointReader, *, dtype: str | None = None
) -> MergePlan:
    """Decide what becomes of each tensor.

    Args:
        dtype: The safetensors dtype in which every floating tensor is stored, those copied
            from one side included; each keeps its own where None.
    """
    names = sorted({*theta_0.tensors, *theta_1.tensors})
    steps = tuple(
        _plan_step(theta_0.tensors.get(name), theta_1.tensors.get(name), dtype) for name in names
    )
    common = [step for step in steps if step.info_0 and step.info_1]
    return MergePlan(
        steps=steps,
        discrete=tuple(step.name for step in common if step.spec.dtype in DISCRETE_DTYPES),
        opaque=tuple(
            step.name
            for step in common
            if step.spec.dtype not in DISCRETE_DTYPES | INTERPOLATED_DTYPES
        ),
        missing=tuple(step.name for step in steps if not (step.info_0 and step.info_1)),
    )


def _plan_step(info_0: TensorInfo | None, info_1: TensorInfo | None, dtype: str | None) -> Step:
    info = info_1 or info_0
    if info is None:
        raise ValueError("a step needs a tensor of at least one side")
    is_floating = info.dtype in INTERPOLATED_DTYPES
    if info_0 and info_1:
        action = Action.INTERPOLATE if is_floating else Action.TAKE_1
    else:
        action = Action.TAKE_1 if info_1 else Action.TAKE_0
    stored = dtype if dtype and is_floating else info.dtype
    return Step(action, TensorSpec(info.name, stored, info.shape), info_0, info_1)
