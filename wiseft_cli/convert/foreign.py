"""Recognize files that are not CLIP or SigLIP models, and say what they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import CheckpointError
from wiseft_cli.merging.factored import find_factored_weights

_SUPPORTED = (
    "supported are CLIP, SigLIP and SigLIP 2 with ViT image encoders, with the names of open_clip, "
    "transformers or timm"
)
_KINDS = (
    # (what the names match, what the file is, remedy)
    (
        r"(?:^|\.)(?:down_blocks|up_blocks|mid_block)\.|^model\.diffusion_model\.|^first_stage_model"
        r"|(?:^|\.)(?:transformer_blocks|double_blocks|single_transformer_blocks)\.\d",
        "a diffusion model",
        "its text encoder may be a CLIP, but it has no image encoder",
    ),
    (
        r"(?:^|\.)(?:lm_head\.|(?:model|transformer)\.(?:layers|h)\.\d+\.|decoder\.block\.\d"
        r"|bert\.|roberta\.|embeddings\.word_embeddings)",
        "a language model",
        _SUPPORTED,
    ),
    (
        r"(?:^|\.)(?:qformer|language_model|multi_modal_projector|visual_encoder)\.",
        "a multimodal language model",
        f"save its image encoder alone; {_SUPPORTED}",
    ),
    (
        r"^(?:text_model\.)?encoder\.layers\.\d|^(?:text\.)?transformer\.resblocks\.\d",
        "a text encoder without an image encoder",
        "convert the file of the whole model",
    ),
    (r"^visual\.(?:layer\d|attnpool)\b", "CLIP with a ResNet image encoder", _SUPPORTED),
    (r"^(?:layer[1-4]\.\d+\.|stages\.\d)", "a convolutional network", _SUPPORTED),
    (r"(?:^|\.)(?:blocks|encoder\.layers?)\.\d", "another kind of transformer", _SUPPORTED),
)


def reject_foreign(reader: CheckpointReader) -> CheckpointError:
    """Return the error for a file whose naming is unknown."""
    what, remedy = describe_foreign(reader.tensors)
    some = sorted(reader.tensors)
    return CheckpointError(
        f"{reader.path}: is {what}, expected CLIP or SigLIP with a ViT image encoder; its tensors",
        faults=some,
        hint=remedy,
    )


def reject_quantized(reader: CheckpointReader) -> None:
    """Reject a file that stores weights as several tensors: quantized or unmerged adapters.

    Raises:
        CheckpointError: The file does; the hint says what to store instead.
    """
    found = find_factored_weights(reader.tensors)
    if found:
        raise CheckpointError(
            f"{reader.path}: stores weights as several tensors, which cannot be renamed",
            faults=[weight.describe() for weight in found],
            hint="save the plain weights first: for quantized weights, transformers' "
            "model.dequantize(); for adapters, peft's merge_and_unload()",
        )


def describe_foreign(tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """Return what a file with an unknown naming probably is, and the remedy."""
    for pattern, what, remedy in _KINDS:
        if _any_matches(pattern, tensors):
            return what, remedy
    return "an unknown model", _SUPPORTED


def _any_matches(pattern: str, names: Iterable[str]) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.search(name) for name in names)
