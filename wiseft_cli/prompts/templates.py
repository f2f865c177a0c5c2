"""Read prompt templates: texts in which `{}` stands for the class name.

Only `{}` is replaced; every other brace is literal.
Paper: Radford et al. 2021, arXiv:2103.00020, section 3.1.4 (prompt ensembling).
This module knows neither tokens nor models. The texts of the built-in sets come from open_clip, so
`model/zeroshot_prompts.py` holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wiseft_cli.errors import TemplatesError, brief
from wiseft_cli.prompts.documents import (
    YAML_SUFFIXES,
    Listing,
    Text,
    describe,
    read_text,
    read_yaml,
)

BUILTIN_TEMPLATES = ("openai", "simple")
"""Names of the built-in template sets."""
PLACEHOLDER = "{}"
CLIP_BENCHMARK_TEMPLATES = "zeroshot_classification_templates.txt"
"""File of CLIP_benchmark, whose placeholder is `{c}`."""
DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Used when no template is given: the prompt that CLIP was published with."""
_YAML_HINT = "write a list, and quote a template that begins with {}: - '{} in the snow'"


def fill_template(template: str, name: str) -> str:
    """Replace each `{}` of a template by the class name."""
    return template.replace(PLACEHOLDER, name)


def read_templates(
    sources: Sequence[str],
    inline: Sequence[str],
    *,
    load_set: Callable[[str], Sequence[str]],
) -> tuple[str, ...]:
    """Return the templates of all sources in order, then the inline templates.

    Whitespace around a template is stripped.

    Args:
        sources: Names of built-in sets (`BUILTIN_TEMPLATES`), YAML files with a list of templates,
            or text files with one template per line (blank lines are skipped).
        inline: Templates given directly.
        load_set: Returns the templates of a built-in set.
    Returns:
        The templates, or `DEFAULT_TEMPLATES` if `sources` and `inline` are empty.
    Raises:
        TemplatesError: A file is unreadable or empty, or a template has no `{}`.
    """
    found: list[tuple[str, str]] = []
    for source in sources:
        if source in BUILTIN_TEMPLATES:
            found += [(f"set {source}", template) for template in load_set(source)]
        else:
            found += _read_file(Path(source))
    found += [("--template", text.strip()) for text in inline]
    _check_placeholders(found)
    return tuple(template for _, template in found) or DEFAULT_TEMPLATES


def _read_file(path: Path) -> list[tuple[str, str]]:
    is_yaml = path.suffix.lower() in YAML_SUFFIXES
    found = _read_list(path) if is_yaml else _read_lines(path)
    if not found:
        expected = "a list" if is_yaml else "one per line"
        raise TemplatesError(f"{path}: contains no templates, expected {expected}")
    return found


def _read_lines(path: Path) -> list[tuple[str, str]]:
    lines = read_text(path, TemplatesError).split("\n")
    placeholder = "{c}" if path.name == CLIP_BENCHMARK_TEMPLATES else PLACEHOLDER
    return [
        (f"{path}, line {number}", line.strip().replace(placeholder, PLACEHOLDER))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _read_list(path: Path) -> list[tuple[str, str]]:
    root = read_yaml(path, TemplatesError)
    if root is None:
        return []
    if not isinstance(root, Listing):
        raise TemplatesError(
            f"{path}: expected a list of templates, found {describe(root)}", hint=_YAML_HINT
        )
    found = []
    for item in root.items:
        if not isinstance(item, Text):
            raise TemplatesError(
                f"{path}, {item.where}: expected a template, found {describe(item)}",
                hint=_YAML_HINT,
            )
        found.append((f"{path}, {item.where}", item.text))
    return found


def _check_placeholders(found: Sequence[tuple[str, str]]) -> None:
    wrong = [
        f"{where}: {brief(template)!r}" for where, template in found if PLACEHOLDER not in template
    ]
    if wrong:
        raise TemplatesError(
            f"each template must contain {PLACEHOLDER}, which stands for the class name",
            faults=wrong,
            hint="for example: 'a photo of a {}.'",
        )
