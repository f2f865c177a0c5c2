"""Prompt templates: lines of text in which `{}` stands for the class name.

They are data: `{}` is replaced literally, and every other brace stays as it is.
Paper: Radford et al. 2021, arXiv:2103.00020, section 3.1.4 (prompt ensembling).
It does not know tokens or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from wiseft_cli.errors import TemplatesError, list_some
from wiseft_cli.prompts.text_file import read_text

PLACEHOLDER = "{}"
DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""What is used when no template is given: the prompt CLIP was published with."""


def fill_template(template: str, name: str) -> str:
    """Return the template with each `{}` replaced by the class name, and nothing else changed."""
    return template.replace(PLACEHOLDER, name)


def class_prompts(names: Sequence[str], templates: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each class's index with each of its prompts, class after class."""
    for index, name in enumerate(names):
        for template in templates:
            yield index, fill_template(template, name)


def read_templates(files: Sequence[Path], inline: Sequence[str]) -> tuple[str, ...]:
    """Return the templates of all files, one a line, then those given directly, in order.

    Blank lines are skipped, and blanks around a line are dropped. Without files and inline
    templates, `DEFAULT_TEMPLATES` are returned.

    Raises:
        TemplatesError: A file cannot be read or holds no template, or a template has no `{}`.
    """
    found: list[tuple[str, str]] = []
    for path in files:
        lines = [
            (f"{path}, line {number}", line.strip())
            for number, line in enumerate(read_text(path, TemplatesError).split("\n"), start=1)
            if line.strip()
        ]
        if not lines:
            raise TemplatesError(f"{path}: holds no template, expected one a line")
        found += lines
    found += [(f"--template {text!r}", text.strip()) for text in inline]
    _check_placeholders(found)
    return tuple(template for _, template in found) or DEFAULT_TEMPLATES


def _check_placeholders(found: Sequence[tuple[str, str]]) -> None:
    wrong = [
        where if where.startswith("--") else f"{where}: {template!r}"
        for where, template in found
        if PLACEHOLDER not in template
    ]
    if wrong:
        count = "1 template has" if len(wrong) == 1 else f"{len(wrong)} templates have"
        lines = "".join(f"\n  {line}" for line in list_some(wrong))
        raise TemplatesError(
            f"{count} no {PLACEHOLDER}, where the class name goes{lines}",
            hint="write each as in 'a photo of a {}.'",
        )
