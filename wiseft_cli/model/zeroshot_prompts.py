"""Find the classes and templates that a zero-shot head is built from.

Sources are lists, files (read in `prompts/`), built-in sets and data set cards. ImageNet's class
names and the built-in templates are those of open_clip, its WordNet ids those of timm; nothing is
copied, so corrections there take effect here. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.clip_benchmark import class_names_file, templates_file
from wiseft_cli.data.dataset_card import (
    TORCHVISION_PREFIX,
    dataset_card_names,
    is_dataset_card,
    is_dataset_card_name,
    read_dataset_card,
    torchvision_classes,
)
from wiseft_cli.errors import (
    ClassNamesError,
    TemplatesError,
    UsageError,
    counted,
    did_you_mean,
    did_you_mean_path,
)
from wiseft_cli.prompts.class_names import (
    BUILTIN_CLASSES,
    ClassList,
    make_class_list,
    read_class_names,
)
from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES, PLACEHOLDER, read_templates


@dataclass(frozen=True)
class ClassPrompts:
    """The prompts of all classes; iterating yields (class index, prompt) pairs.

    Attributes:
        classes: The classes, in the order of the head's rows.
        templates: Templates for the classes without prompts of their own.
    """

    classes: ClassList
    templates: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self.classes.prompts(self.templates)

    def first_prompts(self) -> Iterator[tuple[int, str]]:
        """Yield the prompts that differ if the classes do: only one for each name."""
        return self.classes.prompts(self.templates[:1])

    @cached_property
    def count(self) -> int:
        """Number of prompts of all classes."""
        return sum(1 for _ in self)

    def templates_or_digest(self) -> tuple[str, ...] | dict[str, Any]:
        """Return the entry for the card: templates, or digest and number of prompts.

        The digest is used if any class has synonyms or prompts of its own. It covers one line of
        canonical JSON per prompt, `[class id, prompt]`, in the order of the classes.
        """
        if not self.classes.has_own_wording:
            return self.templates
        digest = hashlib.sha256()
        for index, prompt in self:
            line = canonical_json([self.classes.entries[index].id, prompt])
            digest.update(f"{line}\n".encode())
        return {"digest": f"sha256:{digest.hexdigest()}", "count": self.count}


def resolve_prompts(
    classes: str | Path | Sequence[str] | Mapping[str, str],
    templates: str | Path | Sequence[str] = (),
    template_sources: Sequence[str | Path] = (),
) -> tuple[ClassPrompts, list[str]]:
    """Return the prompts of the classes and templates that the arguments name or list.

    Args:
        classes: Class names, as a list or as a mapping of ids to names; or a file or folder, a
            built-in set (`imagenet`), or a data set card.
        templates: Templates with `{}` for the class name; or a file, a built-in set (`openai`,
            `simple`), or a data set card. Default: `a photo of a {}.`
        template_sources: More files, sets or cards, whose templates precede `templates`.
    Returns:
        The prompts, and lines that describe them to the user.
    Raises:
        ClassNamesError: The classes are not valid.
        TemplatesError: A template source does not exist, or a template has no `{}`.
        UsageError: Templates are given, but every class has prompts of its own.
    """
    if isinstance(templates, (str, Path)):
        template_sources, templates = [*template_sources, templates], ()
    class_list = _resolve_classes(classes)
    own_templates = None
    if isinstance(classes, (str, Path)) and not template_sources and not templates:
        own_templates = templates_file(Path(classes)) if class_list.needs_templates else None
        template_sources = [own_templates] if own_templates else ()
    texts: tuple[str, ...] = ()
    if class_list.needs_templates:
        sources = [_resolve_template_source(str(source)) for source in template_sources]
        texts = read_templates(sources, templates, load_set=builtin_templates)
    elif template_sources or templates:
        raise UsageError(
            "templates are given, but every class has prompts of its own",
            hint="omit --templates and --template, or remove the prompts from the class file",
        )
    prompts = ClassPrompts(class_list, texts)
    is_named = isinstance(classes, (str, Path))
    origin = f" from {classes} ({class_list.source_kind})" if is_named else ""
    how = ", as given" if template_sources or templates else ", the default"
    how = f", of the image set ({own_templates.name})" if own_templates else how
    own = len(class_list.own_prompts)
    own_note = f", {own} of {len(class_list.entries)} classes have their own" if own else ""
    return prompts, [
        f"classes: {len(class_list.entries)}{origin}",
        f"templates: {len(texts)}{how if texts else ''}; "
        f"{counted(prompts.count, 'prompt')}{own_note}",
        *(f"note: {note}" for note in class_list.notes),
    ]


def imagenet_classes() -> ClassList:
    """Return the WordNet ids and names of ImageNet's 1000 classes, in label order.

    The names missile and sunglasses occur twice, with different ids.
    """
    # lazy: open_clip and timm cost seconds
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo("imagenet-1k")
    entries = zip(info.label_names(), IMAGENET_CLASSNAMES, strict=True)
    return ClassList(tuple(ClassEntry(*entry) for entry in entries), "built-in")


def builtin_templates(name: str) -> tuple[str, ...]:
    """Return the templates of a built-in set: `openai` (80) or `simple` (7)."""
    import open_clip  # lazy: it costs seconds

    templates = {
        "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
        "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    }[name]
    return tuple(template(PLACEHOLDER) for template in templates)


def _resolve_classes(source: str | Path | Sequence[str] | Mapping[str, str]) -> ClassList:
    if isinstance(source, Path):
        return read_class_names(class_names_file(source) or source)
    if not isinstance(source, str):
        return make_class_list(source)
    is_builtin = source in BUILTIN_CLASSES
    if not is_builtin and not is_dataset_card(source):
        if not Path(source).exists():
            raise ClassNamesError(
                f"{source}: neither a file or folder nor a built-in class list",
                hint=_builtin_sets(source, BUILTIN_CLASSES),
            )
        return _resolve_classes(Path(source))
    classes = _read_class_list(source) if is_builtin else _classes_of_card(source)
    if Path(source).exists() and (is_builtin or is_dataset_card_name(source)):
        note = f"{source} is the built-in set; for the file or folder of that name use ./{source}"
        return replace(classes, notes=(note,))
    return classes


def _classes_of_card(source: str) -> ClassList:
    card = read_dataset_card(source)
    classes = _read_class_list(card.classes)
    used = set(card.class_ids)
    return replace(classes, entries=tuple(entry for entry in classes.entries if entry.id in used))


def _read_class_list(source: str) -> ClassList:
    if source.startswith(TORCHVISION_PREFIX):
        return torchvision_classes(source)
    return imagenet_classes() if source in BUILTIN_CLASSES else read_class_names(Path(source))


def _resolve_template_source(source: str) -> str:
    if source in BUILTIN_TEMPLATES:
        return source
    if is_dataset_card(source):
        return read_dataset_card(source).templates
    if not Path(source).exists():
        raise TemplatesError(
            f"{source}: neither a file nor a built-in template set",
            hint=f"{_builtin_sets(source, BUILTIN_TEMPLATES)}; give a template itself with "
            "--template",
        )
    return str(templates_file(Path(source)) or source)


def _builtin_sets(source: str, names: Sequence[str]) -> str:
    sets = tuple(dict.fromkeys((*names, *dataset_card_names())))
    questions = (did_you_mean(source, sets), did_you_mean_path(source))
    asked = "".join(f"{question} " for question in questions if question)
    return f"{asked}built-in sets: {', '.join(sets)}"
