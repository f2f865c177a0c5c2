"""The built-in class list and template sets, as the libraries below publish them.

ImageNet's class names and OpenAI's prompts are open_clip's; the WordNet ids in the order of
the names are timm's. Nothing is copied, so that a correction there arrives here.
It does not read files; `prompts/` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from open_clip import (
    IMAGENET_CLASSNAMES,
    OPENAI_IMAGENET_TEMPLATES,
    SIMPLE_IMAGENET_TEMPLATES,
)
from timm.data.imagenet_info import ImageNetInfo

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.prompts.class_names import ClassList
from wiseft_cli.prompts.templates import PLACEHOLDER

_TEMPLATES: dict[str, Sequence[Callable[[str], str]]] = {
    "openai": OPENAI_IMAGENET_TEMPLATES,
    "simple": SIMPLE_IMAGENET_TEMPLATES,
}


def imagenet_classes() -> ClassList:
    """Return ImageNet's 1000 classes: WordNet id and name, in the order of the labels 0 to 999.

    Two names stand twice, under different ids (missile, sunglasses).
    """
    info: Any = ImageNetInfo("imagenet-1k")
    entries = zip(info.label_names(), IMAGENET_CLASSNAMES, strict=True)
    return ClassList(tuple(ClassEntry(*entry) for entry in entries), "built-in")


def template_set(name: str) -> tuple[str, ...]:
    """Return the templates of a set of `BUILTIN_TEMPLATES`: `openai` (80) or `simple` (7)."""
    return tuple(template(PLACEHOLDER) for template in _TEMPLATES[name])
