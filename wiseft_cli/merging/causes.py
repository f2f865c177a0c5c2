"""The usual causes for which two checkpoints do not fit, recognised from their tensors' names.

It compares nothing itself; `merging/comparison.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.merging.comparison import Comparison, both_interpolated

_PREFIXES = ("module.", "_orig_mod.", "model.", "state_dict.", "visual.", "base_model.model.")
_LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora_a.", ".lora_b.")
_LIGHTNING_MARKS = ("optimizer_states.", "lr_schedulers.", "callbacks.", "loops.")
_HUGGING_FACE_MARKS = ("vision_model.", "visual_projection.", "text_model.")
_TEXT_TOWER_MARKS = ("transformer.resblocks.", "token_embedding.", "text.", "text_projection")


def cause_of(
    found: Comparison, tensors_0: Mapping[str, TensorInfo], tensors_1: Mapping[str, TensorInfo]
) -> str | None:
    """Return the likely cause of the differences and its remedy, or None where none is known."""
    if found.only_0 or found.only_1:
        return _cause_in_names(found, tensors_0, tensors_1)
    if found.shapes:
        if all(name.startswith("classification_head.") for name in found.shapes):
            return "the two have different class lists; fine-tune from this zero-shot checkpoint"
        return "the two are of different architectures; compare them with `wiseft diff`"
    if found.dtypes:
        pairs = [(tensors_0[name], tensors_1[name]) for name in found.dtypes]
        if all(both_interpolated(a, b) for a, b in pairs):
            return "name the dtype to store, for example --dtype float32"
    return None


def _cause_in_names(
    found: Comparison, tensors_0: Mapping[str, TensorInfo], tensors_1: Mapping[str, TensorInfo]
) -> str | None:
    sides = (("the first file", found.only_0), ("the second file", found.only_1))
    for side, names in sides:
        if _any_contains(names, _LORA_MARKS):
            return f"{side} is a LoRA adapter; merge it into its base model first"
        if _any_starts(names, _LIGHTNING_MARKS):
            return f"{side} is a Lightning checkpoint; save its model's state dict alone"
    for side, names in sides:
        if _any_starts(names, _HUGGING_FACE_MARKS):
            return (
                f"{side} has Hugging Face's names (vision_model.*); convert it to open_clip's "
                "(visual.*), or merge two files that both have Hugging Face's"
            )
    for prefix in _PREFIXES:
        for (side, names), others in zip(sides, (tensors_1, tensors_0), strict=True):
            if _would_match(names, others, prefix):
                return f"the names in {side} begin with {prefix!r}; save it without that prefix"
    for (side, names), other_side in zip(sides, ("second", "first"), strict=True):
        if _any_starts(names, _TEXT_TOWER_MARKS) and found.n_common:
            return (
                f"{side} is a full CLIP with its text tower, the {other_side} an image encoder "
                "only; --missing copy keeps what only one side has"
            )
    if found.shapes or not found.n_common:
        return "the two are of different architectures; compare them with `wiseft diff`"
    return "--missing copy keeps what only one side has"


def _would_match(names: Iterable[str], others: Mapping[str, TensorInfo], prefix: str) -> bool:
    stripped = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return bool(stripped) and 2 * sum(name in others for name in stripped) > len(stripped)


def _any_starts(names: Iterable[str], marks: tuple[str, ...]) -> bool:
    return any(name.startswith(marks) for name in names)


def _any_contains(names: Iterable[str], marks: tuple[str, ...]) -> bool:
    return any(mark in name for name in names for mark in marks)
