"""Small versions of the hub's text towers and tokenizers, with 300 tokens.

A tokenizer has the 256 bytes and the special tokens of the real one, with the same ids and at the
same positions. A tower has the real architecture with small sizes; its config is written into the
cache of the hub's client, where open_clip finds it by name without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

VOCABULARY = 300
REVISION = "0" * 40


@dataclass(frozen=True)
class Kind:
    """Special tokens of a tokenizer, in the order of their ids, and their positions."""

    specials: tuple[str, ...]
    template: str
    roles: Mapping[str, str]


_ROBERTA = Kind(
    ("<s>", "<pad>", "</s>", "<unk>"),
    "<s> $A </s>",
    {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "cls": "<s>"},
)
KINDS: dict[str, Kind] = {
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "bert": Kind(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
        "[CLS] $A [SEP]",
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"},
    ),
    # SigLIP pads with the end of text.
    "siglip": Kind(("<pad>", "</s>", "<unk>"), "$A </s>", {"pad": "</s>", "eos": "</s>"}),
    "mt5": Kind(("<pad>", "</s>", "<unk>"), "$A </s>", {"pad": "<pad>", "eos": "</s>"}),
    "gemma": Kind(("<pad>", "<eos>", "<bos>"), "$A <eos>", {"pad": "<pad>", "eos": "<eos>"}),
    "nllb": Kind(
        ("<s>", "<pad>", "</s>", "<unk>", "eng_Latn"),
        "eng_Latn $A </s>",
        {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    ),
}
_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2}
_ENCODER = {**_SMALL, "num_hidden_layers": 2, "intermediate_size": 64, "pad_token_id": 1}
TOWERS: dict[str, Any] = {
    "roberta": lambda: transformers.RobertaConfig(**_ENCODER, max_position_embeddings=90),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**_ENCODER, max_position_embeddings=90),
    "mt5": lambda: transformers.MT5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    ),
    "m2m_100": lambda: transformers.M2M100Config(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    ),
}


def write_small_tokenizer(folder: Path, kind: str) -> None:
    """Write the files of a tokenizer into a folder."""
    described = KINDS[kind]
    names = [*described.specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: index for index, name in enumerate(names)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single=described.template,
        special_tokens=[(name, vocabulary[name]) for name in described.specials],
    )
    roles = {f"{role}_token": token for role, token in described.roles.items()}
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, **roles
    )
    made.save_pretrained(str(folder))


def put_small_tower_on_the_hub(name: str) -> None:
    """Write the config of a text tower into the hub's cache as `tiny/NAME`."""
    put_on_the_hub(f"tiny/{name}", lambda folder: TOWERS[name]().save_pretrained(str(folder)))


def put_on_the_hub(repository: str, fill: Any) -> None:
    """Create a repository in the hub's cache and fill its folder."""
    home = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    folder = home / "snapshots" / REVISION
    folder.mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(REVISION)
    fill(folder)
