"""Build a zero-shot classification head from class names in prompts.

    weight[c] = exp(logit_scale) * normalize(mean over prompts p of class c of
                                             normalize(encode_text(p)))
    bias[c]   = logit_bias of the model, or 0

Prompts are taken in windows of bounded size; within a window they are sorted by length, and a
batch holds prompts of one length, so that nothing is padded where padding can be left out.
Only the sum of each class's features is kept.
Papers: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; Wortsman et al. 2022,
arXiv:2109.01903, section 2; for the bias Zhai et al. 2023, arXiv:2303.15343.
It does not read files and does not know where a model comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from wiseft_cli.errors import ModelError, list_some
from wiseft_cli.model.classifier import build_classification_head
from wiseft_cli.model.text_encoder import Precision, TextEncoder
from wiseft_cli.model.tokenizer import PromptTokenizer

WINDOW_BATCHES = 64
"""Batches sorted together: enough that most are full, few enough to bound memory."""

SMALLEST_NORM = 1e-6
"""Below this a mean of unit vectors is what rounding left of features that cancel."""

Prompt = tuple[int, str]
"""Index of the class, and the text."""


@torch.no_grad()
def encode_prompts(
    model: nn.Module,
    tokenizer: PromptTokenizer,
    prompts: Iterable[Prompt],
    *,
    class_count: int,
    batch_size: int = 256,
    precision: Precision = "fp32",
    on_progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Return the mean normalised text feature of each class.

    Args:
        model: An open_clip model in evaluation mode, on the device to compute on.
        tokenizer: The model's.
        prompts: In any order; read once, never held at once.
        class_count: C; every class needs one prompt at least.
        batch_size: Prompts a forward pass.
        precision: What the text tower computes in.
        on_progress: Told the number of prompts after each batch.
    Returns:
        Shape (C, D), float64, on the CPU.
    Raises:
        ModelError: A class without prompts, or features that are not finite.
        TemplatesError: Prompts longer than the model's context.
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
    without = int((counts == 0).sum())
    if sums is None or without:
        raise ModelError(f"{without} {'class has' if without == 1 else 'classes have'} no prompt")
    return sums / counts[:, None]


def build_zeroshot_head(
    class_features: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    class_ids: Sequence[str],
) -> nn.Linear:
    """Build a classification head from the mean text feature of each class.

    Args:
        class_features: What `encode_prompts` returned, shape (C, D).
        logit_scale: Log of the scale, as the model stores it; one element.
        logit_bias: The model's bias (SigLIP), one element; it becomes every class's bias.
        class_ids: For messages, C of them.
    Returns:
        Linear layer with weight (C, D) and bias (C,), float32.
    Raises:
        ModelError: A class's mean feature has zero norm.
    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; Zhai et al. 2023,
        arXiv:2303.15343, section 3.2.
    """
    norms = class_features.norm(dim=1, keepdim=True)
    empty = [class_ids[row] for row in (norms[:, 0] < SMALLEST_NORM).nonzero().flatten().tolist()]
    if empty:
        count = "1 class" if len(empty) == 1 else f"{len(empty)} classes"
        raise ModelError(
            f"the text features of {count} cancel out: {', '.join(list_some(empty))}",
            hint="use other templates or names for these classes",
        )
    weight = class_features / norms * logit_scale_of(logit_scale)
    bias = 0.0 if logit_bias is None else float(logit_bias.detach().reshape(()))
    return build_classification_head(
        weight.float(), torch.full((len(class_features),), bias, dtype=torch.float32)
    )


def logit_scale_of(logit_scale: Tensor) -> float:
    """Return the factor on cosine similarities: exp of the stored log value, in float32."""
    return float(logit_scale.detach().float().exp().reshape(()))


def _batches(
    encode: TextEncoder, tokens: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of the window and their tokens on the encoder's device, shortest first.

    Rows of a batch are equally long, so that where the encoder trims nothing is padded.
    """
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
            hint="the weights hold infinities or NaN; check the weights file",
        )
