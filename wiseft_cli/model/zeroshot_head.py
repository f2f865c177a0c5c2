"""Build a zero-shot classification head from the prompts of each class.

    weight[c] = exp(logit_scale) * normalize(mean over prompts p of class c of
                                             normalize(encode_text(p)))
    bias[c]   = logit_bias of the model, or 0

Prompts are read in windows of bounded size and sorted by length within a window, so that each
batch holds prompts of one length. Only the sum of each class's features is kept in memory.
Papers: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; Wortsman et al. 2022,
arXiv:2109.01903, section 2; for the bias Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from wiseft_cli.errors import ModelError, counted
from wiseft_cli.model.classifier import build_classification_head
from wiseft_cli.model.text_encoder import TextEncoder
from wiseft_cli.model.tokenizer import PromptTokenizer

WINDOW_BATCHES = 64
"""Number of batches that are sorted together; it bounds memory, and most batches are full."""

MIN_NORM = 1e-6
"""A mean of unit vectors below this norm is the rounding error of features that cancel out."""


@torch.no_grad()
def encode_prompts(
    model: nn.Module,
    tokenizer: PromptTokenizer,
    prompts: Iterable[tuple[int, str]],
    *,
    class_count: int,
    batch_size: int = 256,
    precision: str = "fp32",
    on_progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return the mean normalized text feature of each class.

    Args:
        model: An open_clip model in evaluation mode, on the device to compute on.
        tokenizer: The model's tokenizer.
        prompts: Pairs of class index and prompt, in any order; iterated once.
        class_count: Number of classes C; each needs at least one prompt.
        batch_size: Prompts per forward pass.
        precision: Precision of the text tower, `fp32` or `bf16`.
        on_progress: Called with the number of prompts of each batch.
    Returns:
        Shape (C, D), float64, on the CPU.
    Raises:
        ModelError: A class has no prompt, or features are not finite.
        TemplatesError: Prompts exceed the model's context.
    """
    encode = TextEncoder(model, precision=precision)
    sums: Tensor | None = None
    counts = torch.zeros(class_count, dtype=torch.float64)
    stream = iter(prompts)
    while window := list(islice(stream, WINDOW_BATCHES * batch_size)):
        classes = torch.tensor([index for index, _ in window])
        tokens = tokenizer([text for _, text in window])
        counts += torch.bincount(classes, minlength=class_count)
        for rows, batch in _batches(encode, tokens, batch_size):
            features = encode(batch).to("cpu", torch.float64)
            _check_finite(features, [window[row][1] for row in rows.tolist()])
            if sums is None:
                sums = torch.zeros(class_count, features.shape[1], dtype=torch.float64)
            sums.index_add_(0, classes[rows], features)
            if on_progress is not None:
                on_progress(len(rows))
    empty = int((counts == 0).sum())
    if sums is None or empty:
        raise ModelError(f"{counted(empty, 'class', plural='classes')} without a prompt")
    return sums / counts[:, None]


def build_zeroshot_head(
    class_features: Tensor, *, scale: float, bias: float = 0.0, class_ids: Sequence[str]
) -> nn.Linear:
    """Build a classification head from the mean text feature of each class.

    Args:
        class_features: The result of `encode_prompts`, shape (C, D).
        scale: exp(logit_scale), the factor on cosine similarities.
        bias: logit_bias of the model (SigLIP), used for every class.
        class_ids: Ids of the C classes, for messages.
    Returns:
        Linear layer with weight (C, D) and bias (C,), float32.
    Raises:
        ModelError: The mean feature of a class has zero norm.
    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; Zhai et al. 2023,
        arXiv:2303.15343, section 3.2.
    """
    norms = class_features.norm(dim=1, keepdim=True)
    empty = [class_ids[row] for row in (norms[:, 0] < MIN_NORM).nonzero().flatten().tolist()]
    if empty:
        raise ModelError(
            f"the text features of {counted(len(empty), 'class', plural='classes')} cancel out",
            faults=empty,
            hint="use other templates or names for these classes",
        )
    weight = class_features / norms * scale
    return build_classification_head(
        weight.float(), torch.full((len(class_features),), bias, dtype=torch.float32)
    )


def _batches(
    encode: TextEncoder, tokens: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of a window and their tokens on the device, shortest prompts first."""
    lengths = encode.lengths(tokens)
    order = lengths.argsort(stable=True)
    start = 0
    for length, count in enumerate(torch.bincount(lengths).tolist()):
        for first in range(start, start + count, batch_size):
            rows = order[first : min(first + batch_size, start + count)]
            yield rows, tokens[rows, :length].to(encode.device)
        start += count


def _check_finite(features: Tensor, texts: Sequence[str]) -> None:
    wrong = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise ModelError(
            f"the text feature of {texts[wrong[0]]!r} is not finite",
            hint="the weights contain infinite or NaN values; check the weights file",
        )
