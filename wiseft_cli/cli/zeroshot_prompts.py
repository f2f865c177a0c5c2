"""The classes and templates that `wiseft zeroshot-head` is given: files, built in, or a card's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_cli.errors import ClassNamesError, TemplatesError, UsageError
from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES, read_templates

if TYPE_CHECKING:
    from wiseft_cli.prompts.class_names import ClassList


def read_classes(source: str) -> ClassList:
    """Return the classes of a file or folder, of a built-in set, or of a data set card.

    Raises:
        WiseftError: Nothing there, or no class list.
    """
    # lazy: yaml costs a while, and --help needs none of it
    from wiseft_cli.data.dataset_card import (
        dataset_card_names,
        is_dataset_card,
        is_dataset_card_name,
        read_dataset_card,
    )
    from wiseft_cli.prompts.class_names import BUILTIN_CLASSES, read_class_names

    is_builtin = source in BUILTIN_CLASSES
    if not is_builtin and not is_dataset_card(source):
        if not Path(source).exists():
            known = tuple(dict.fromkeys((*BUILTIN_CLASSES, *dataset_card_names())))
            raise ClassNamesError(
                f"--classes {source}: no such file or folder, and no built-in set",
                hint=f"{_did_you_mean(source)}built-in sets: {', '.join(known)}",
            )
        return read_class_names(Path(source))
    if is_builtin:
        classes = _class_list(source)
    else:
        card = read_dataset_card(source)
        wanted = set(card.class_ids)
        classes = _class_list(card.classes)
        entries = tuple(entry for entry in classes.entries if entry.id in wanted)
        classes = replace(classes, entries=entries)
    if not Path(source).exists() or not (is_builtin or is_dataset_card_name(source)):
        return classes
    note = f"{source} is the built-in set; the file or folder of that name would be ./{source}"
    return replace(classes, notes=(note,))


def _did_you_mean(source: str) -> str:
    from wiseft_cli.data.dataset_card import similar_card_names  # lazy: as above

    near = similar_card_names(source)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _class_list(source: str) -> ClassList:
    from wiseft_cli.data.dataset_card import TORCHVISION_PREFIX, torchvision_classes
    from wiseft_cli.prompts.class_names import BUILTIN_CLASSES, read_class_names

    if source.startswith(TORCHVISION_PREFIX):
        return torchvision_classes(source)
    if source not in BUILTIN_CLASSES:
        return read_class_names(Path(source))
    from wiseft_cli.model.builtin_sets import imagenet_classes  # lazy: open_clip costs seconds

    return imagenet_classes()


def template_files(sources: Sequence[str]) -> list[Path]:
    """Return the sources of templates that are files."""
    from wiseft_cli.data.dataset_card import is_dataset_card_name  # lazy: as above

    return [
        Path(source)
        for source in sources
        if source not in BUILTIN_TEMPLATES and not is_dataset_card_name(source)
    ]


def read_prompt_templates(
    class_list: ClassList, sources: Sequence[str], inline: Sequence[str]
) -> tuple[str, ...]:
    """Return the templates of the classes that bring no prompts of their own.

    Args:
        class_list: The classes.
        sources: Files, built-in sets, or data set cards by name or path.
        inline: Templates as they were written on the command line.
    Raises:
        WiseftError: No templates, or none that are needed.
    """
    # lazy: as above
    from wiseft_cli.data.dataset_card import (
        dataset_card_names,
        is_dataset_card,
        read_dataset_card,
    )

    def load_set(name: str) -> tuple[str, ...]:
        from wiseft_cli.model.builtin_sets import template_set  # lazy: open_clip costs seconds

        return template_set(name)

    if class_list.needs_templates:
        known = tuple(dict.fromkeys((*BUILTIN_TEMPLATES, *dataset_card_names())))
        for source in sources:
            is_known = source in known or is_dataset_card(source)
            if not is_known and not Path(source).exists():
                raise TemplatesError(
                    f"--templates {source}: no such file, and no built-in set",
                    hint=f"{_did_you_mean(source)}built-in sets: {', '.join(known)}; a template"
                    " itself goes after --template",
                )
        resolved = [
            read_dataset_card(source).templates
            if source not in BUILTIN_TEMPLATES and is_dataset_card(source)
            else source
            for source in sources
        ]
        return read_templates(resolved, inline, load_set=load_set)
    if sources or inline:
        raise UsageError(
            "templates were given, but every class brings its own prompts",
            hint="leave --templates and --template out, or the prompts of the class file",
        )
    return ()
