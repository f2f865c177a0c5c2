"""Pretrain the demo's tiny CLIP on synthetic pictures of characters with captions.

    python -m tests.demo.makers.pretrain --fonts DIR... --out DIR [--steps N] [--seed S]

First, the text tower alone learns that two captions of the same character belong together; without
this it limits the loss for most of the run. Then both towers are trained with CLIP's symmetric
contrastive loss (Radford et al. 2021, arXiv:2103.00020, section 2.3) within groups of distinct
characters, so that no caption is a false negative of another picture.

Training is counted in steps and uses seeded generators only: the same command with the same fonts,
torch version and thread count writes the same bytes. No handwritten digit is used.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from tests.clip_merges import write_clip_merges
from tests.demo.makers.glyphs import GlyphBank, render_glyph_bank, split_by_family
from tests.demo.makers.pictures import (
    Attributes,
    render_pictures,
    sample_attributes,
    write_captions,
)
from wiseft_cli.model.full_clip import build_untrained_clip

MERGES = 1536
CONTEXT_LENGTH = 24  # tokens
BPE_NAME = "bpe.txt.gz"
TEXT_CONFIG: dict[str, Any] = {
    "context_length": CONTEXT_LENGTH,
    "vocab_size": 512 + MERGES + 2,  # bytes, bytes at the end of a word, merges, start, end
    "width": 64,
    "heads": 2,
    "layers": 2,
    "tokenizer_kwargs": {"bpe_path": BPE_NAME},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
        "text_cfg": TEXT_CONFIG,
    },
    "vit": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 128,
            "layers": 4,
            "head_width": 32,
        },
        "text_cfg": TEXT_CONFIG,
    },
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}

GROUPS = 6
DIGITS, LETTERS = 10, 26
LETTERS_PER_GROUP = 14
GROUP_SIZE = DIGITS + LETTERS_PER_GROUP
TEXT_STEPS = 120
TEXT_LEARNING_RATE = 2e-3
TEXT_LOGIT_SCALE = 1 / 0.07
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05
LEARNING_RATES = {"resnet": 2e-3, "vit": 1.2e-3}

Tokenize = Callable[[list[str]], Tensor]
OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class CaptionedPictures:
    """An endless, seeded source of training pairs.

    Attributes:
        masks: Glyph coverage in [0, 1], shape (F, 36, 48, 48).
        is_legible: Masks that may be used, shape (F, 36).
        generator: Draws everything about the pictures.
        rng: Chooses the words of the captions.
    """

    masks: Tensor
    is_legible: Tensor
    generator: torch.Generator
    rng: random.Random

    @classmethod
    def from_fonts(cls, fonts: GlyphBank, *, seed: int) -> CaptionedPictures:
        """Create a source from the masks of `fonts`."""
        masks = torch.from_numpy(fonts.masks).float().div(255)
        generator = torch.Generator().manual_seed(seed)
        return cls(masks, torch.from_numpy(fonts.is_legible), generator, random.Random(seed))

    def draw_attributes(self) -> Attributes:
        """Draw GROUPS x GROUP_SIZE appearances.

        Each group contains every digit, and no character twice.
        """
        groups = []
        for _ in range(GROUPS):
            letters = torch.randperm(LETTERS, generator=self.generator)[:LETTERS_PER_GROUP]
            groups.append(torch.cat([torch.arange(DIGITS), DIGITS + letters]))
        return sample_attributes(torch.cat(groups), self.generator)

    def draw_pictures(self, attributes: Attributes) -> Tensor:
        """Render the attributes in random fonts, shape (B, 3, 32, 32)."""
        legible = self.is_legible.T[attributes.characters].float()
        fonts = torch.multinomial(legible, 1, generator=self.generator)[:, 0]
        masks = self.masks[fonts, attributes.characters][:, None]
        return render_pictures(masks, attributes, self.generator)

    def draw_captions(self, attributes: Attributes, *, bare_share: float) -> list[str]:
        """Write one true caption per picture."""
        return write_captions(attributes, self.rng, bare_share=bare_share)


def normalize(pictures: Tensor) -> Tensor:
    """Apply the model's preprocessing to pictures in [0, 1] that have the input size."""
    return (pictures - 0.5) / 0.5


def grouped_contrastive_loss(
    left_features: Tensor, right_features: Tensor, scale: Tensor | float
) -> Tensor:
    """Compute CLIP's symmetric cross-entropy within groups of GROUP_SIZE consecutive rows.

    Args:
        left_features: L2-normalised, shape (B, D), B a multiple of GROUP_SIZE.
        right_features: L2-normalised, shape (B, D); row i matches row i of `left_features`.
        scale: Factor of the cosine similarities, exp(logit_scale).
    """
    left = left_features.view(-1, GROUP_SIZE, left_features.shape[1])
    right = right_features.view(-1, GROUP_SIZE, right_features.shape[1])
    logits = scale * left @ right.transpose(1, 2)
    targets = torch.arange(GROUP_SIZE).repeat(len(logits))
    rows = F.cross_entropy(logits.reshape(-1, GROUP_SIZE), targets)
    columns = F.cross_entropy(logits.transpose(1, 2).reshape(-1, GROUP_SIZE), targets)
    return (rows + columns) / 2


def warm_up_text_tower(
    model: nn.Module, source: CaptionedPictures, tokenize: Tokenize, *, steps: int
) -> float:
    """Train the text tower alone to match two captions of a character; return the last loss."""
    parameters = [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]
    optimizer = torch.optim.AdamW(parameters, lr=TEXT_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss = torch.zeros(())
    for step in range(steps):
        _set_learning_rate(
            optimizer, TEXT_LEARNING_RATE * min(1, (step + 1) / 50) * (1 - 0.8 * step / steps)
        )
        bare_share = max(0.1, 1 - 1.5 * step / steps)
        attributes = source.draw_attributes()
        features = [
            model.encode_text(  # type: ignore[operator]
                tokenize(source.draw_captions(other, bare_share=bare_share)), normalize=True
            )
            for other in (attributes, sample_attributes(attributes.characters, source.generator))
        ]
        loss = grouped_contrastive_loss(features[0], features[1], TEXT_LOGIT_SCALE)
        _update(optimizer, parameters, loss)
    return loss.item()


def train_both_towers(
    model: nn.Module,
    source: CaptionedPictures,
    tokenize: Tokenize,
    *,
    steps: int,
    learning_rate: float,
    on_progress: OnProgress,
) -> None:
    """Train the whole model contrastively, with linear warm-up and cosine decay to zero."""
    named = list(model.named_parameters())
    parameters = [parameter for _, parameter in named]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    logit_scale = dict(named)["logit_scale"]
    recent: list[float] = []
    for step in range(steps):
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        _set_learning_rate(optimizer, learning_rate * warmup * cosine)
        attributes = source.draw_attributes()
        pictures = source.draw_pictures(attributes)
        captions = source.draw_captions(attributes, bare_share=max(0.1, 0.6 - step / steps))
        image_features, text_features, scale = model(normalize(pictures), tokenize(captions))
        loss = grouped_contrastive_loss(image_features, text_features, scale)
        _update(optimizer, parameters, loss)
        with torch.no_grad():
            logit_scale.clamp_(0, math.log(100))
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            mean = sum(recent[-100:]) / len(recent[-100:])
            on_progress(f"step {step + 1}/{steps}: loss {mean:.4f}, scale {scale.item():.1f}")


def pretrain(
    fonts: GlyphBank,
    out: Path,
    *,
    architecture: str = "resnet",
    steps: int = 1600,
    text_steps: int = TEXT_STEPS,
    seed: int = 0,
    on_progress: OnProgress = lambda line: None,
) -> None:
    """Pretrain a model on `fonts` and write it as an open_clip `local-dir:` folder.

    Args:
        fonts: Masks of the training fonts.
        out: Created if missing; existing files are overwritten.
        architecture: "resnet" (shipped) or "vit".
        steps: Steps of both towers, with 144 pictures each.
        text_steps: Preceding steps of the text tower alone.
        seed: Seed of weights, pictures and captions.
        on_progress: Called with one line of text from time to time.
    """
    out.mkdir(parents=True, exist_ok=True)
    bpe_path = out / BPE_NAME
    write_clip_merges(bpe_path, MERGES)
    tokenize = open_clip.SimpleTokenizer(bpe_path=str(bpe_path), context_length=CONTEXT_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_untrained_clip(CONFIGS[architecture])
    source = CaptionedPictures.from_fonts(fonts, seed=seed)
    loss = warm_up_text_tower(model, source, tokenize, steps=text_steps)
    on_progress(f"text tower: {text_steps} steps, loss {loss:.4f}")
    train_both_towers(
        model,
        source,
        tokenize,
        steps=steps,
        learning_rate=LEARNING_RATES[architecture],
        on_progress=on_progress,
    )
    _write_model(out, model, CONFIGS[architecture])


def _write_model(folder: Path, model: nn.Module, model_config: dict[str, Any]) -> None:
    """Write the configuration and the weights, in float16, as open_clip reads them."""
    config = {"model_cfg": model_config, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    # One metadata key only: safetensors writes several in random order.
    (folder / "open_clip_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))


def _update(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], loss: Tensor
) -> None:
    """Do one optimizer step with the global gradient norm clipped to 1."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def main() -> None:
    """Parse the command line and pretrain."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.makers.pretrain")
    parser.add_argument("--fonts", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--architecture", choices=sorted(CONFIGS), default="resnet")
    parser.add_argument("--steps", type=int, default=1600, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    training, held_out = split_by_family(render_glyph_bank(options.fonts, on_progress=log))
    log(f"{len(training.names)} training fonts, {len(held_out.names)} held out")
    pretrain(
        training,
        options.out,
        architecture=options.architecture,
        steps=options.steps,
        seed=options.seed,
        on_progress=log,
    )


if __name__ == "__main__":
    main()
