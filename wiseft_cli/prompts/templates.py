"""Prompt templates: lines of text in which `{}` stands for the class name.

They are data: `{}` is replaced literally, and every other brace stays as it is.
Paper: Radford et al. 2021, arXiv:2103.00020, section 3.1.4 (prompt ensembling).
It does not know tokens or models, and it does not hold the built-in sets: they come from
open_clip, which is the model room's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wiseft_cli.errors import TemplatesError, brief, list_some
from wiseft_cli.prompts.text_file import read_text

BUILTIN_TEMPLATES = ("openai", "simple")
"""Names that stand for a set of the model room's `builtin_sets.py`."""
PLACEHOLDER = "{}"
DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""What is used when no template is given: the prompt CLIP was published with."""
_YAML_FORM = "write a list, and quote a template that begins with {}: - '{} in the snow'"


def fill_template(template: str, name: str) -> str:
    """Return the template with each `{}` replaced by the class name, and nothing else changed."""
    return template.replace(PLACEHOLDER, name)


def read_templates(
    sources: Sequence[str],
    inline: Sequence[str],
    *,
    load_set: Callable[[str], Sequence[str]],
) -> tuple[str, ...]:
    """Return the templates of all sources, then those given directly, in order.

    Blanks around a template are dropped. Without sources and inline templates,
    `DEFAULT_TEMPLATES` are returned.

    Args:
        sources: Each a name of `BUILTIN_TEMPLATES`, a `.yaml` or `.yml` file with a list, or
            any other file with one template a line (blank lines are skipped).
        inline: Templates themselves.
        load_set: Returns the templates of a built-in set.
    Raises:
        TemplatesError: A file cannot be read or holds no template, or a template has no `{}`.
    """
    found: list[tuple[str, str]] = []
    for source in sources:
        if source in BUILTIN_TEMPLATES:
            found += [(f"set {source}", template) for template in load_set(source)]
        else:
            found += _read_file(Path(source))
    found += [(f"--template {text!r}", text.strip()) for text in inline]
    _check_placeholders(found)
    return tuple(template for _, template in found) or DEFAULT_TEMPLATES


def _read_file(path: Path) -> list[tuple[str, str]]:
    # lazy: yaml costs a while, and --help of the command that imports this needs none of it
    from wiseft_cli.prompts.documents import YAML_SUFFIXES

    is_yaml = path.suffix.lower() in YAML_SUFFIXES
    found = _read_list(path) if is_yaml else _read_lines(path)
    if not found:
        raise TemplatesError(
            f"{path}: holds no template, expected {'a list' if is_yaml else 'one a line'}"
        )
    return found


def _read_lines(path: Path) -> list[tuple[str, str]]:
    lines = read_text(path, TemplatesError).split("\n")
    return [
        (f"{path}, line {number}", line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _read_list(path: Path) -> list[tuple[str, str]]:
    from wiseft_cli.prompts.documents import Listing, Text, describe, read_yaml  # lazy: as above

    root = read_yaml(path, TemplatesError)
    if root is None:
        return []
    if not isinstance(root, Listing):
        raise TemplatesError(
            f"{path}: is {describe(root)}, expected a list of templates", hint=_YAML_FORM
        )
    found = []
    for item in root.items:
        if not isinstance(item, Text):
            raise TemplatesError(
                f"{path}, {item.where}: {describe(item)} stands where a template is expected",
                hint=_YAML_FORM,
            )
        found.append((f"{path}, {item.where}", item.text))
    return found


def _check_placeholders(found: Sequence[tuple[str, str]]) -> None:
    wrong = [
        brief(where) if where.startswith("--") else f"{where}: {brief(template)!r}"
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
