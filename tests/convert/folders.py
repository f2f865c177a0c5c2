"""Model folders of transformers with tiny random models, as `save_pretrained` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from tests.clip_merges import write_clip_merges
from tests.convert.tiny import CLIP_CONFIG, SIDE, SIGLIP_CONFIG, randomized
from wiseft_cli.convert.clip_vocabulary import write_clip_tokenizer

MERGES = 100
CLIP_VOCABULARY = 512 + MERGES + 2
SIGLIP_WORDS = ("</s>", "<unk>", "a", "photo", "of", "the", "cat", "dog", "owl", ".")
CONTEXT = 20
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def clip_folder(folder: Path, *, seed: int = 0, **text: Any) -> Path:
    """A CLIP with a byte-pair tokenizer; images are cropped after resizing."""
    tokens = {
        "vocab_size": CLIP_VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": CLIP_VOCABULARY - 2,
        "eos_token_id": CLIP_VOCABULARY - 1,
        **text,
    }
    config = CLIPConfig(
        **{**CLIP_CONFIG, "text_config": {**CLIP_CONFIG["text_config"], **tokens}}  # type: ignore[dict-item]
    )
    model = randomized(CLIPModel(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(folder)
    merges = write_clip_merges(folder / "bpe.txt.gz", MERGES)
    write_clip_tokenizer(folder, merges, context_length=CONTEXT)
    merges.unlink()
    return folder


def siglip_folder(folder: Path, *, seed: int = 0) -> Path:
    """A SigLIP with a small word tokenizer; images are squashed."""
    tokens = {"vocab_size": len(SIGLIP_WORDS), "max_position_embeddings": CONTEXT}
    config = SiglipConfig(
        **{**SIGLIP_CONFIG, "text_config": {**SIGLIP_CONFIG["text_config"], **tokens}}  # type: ignore[dict-item]
    )
    model = randomized(SiglipModel(config), seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    SiglipImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(SIGLIP_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change top-level fields of a JSON file; None removes one."""
    document = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({key: value for key, value in document.items() if value is not None})
    )
