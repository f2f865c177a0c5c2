"""Write docs/models.md from what the commands do: `python -m tests.families.models_page`.

Each row is found by taking the family's small model through the commands, as the tests do; a
test of each family compares its row with the page.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import tests.conftest  # keeps the hub's cache of this machine out  # noqa: F401  # isort: skip

import open_clip  # isort: skip

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """\
# Models

Made from the tests by `python -m tests.families.models_page`; a test of each family keeps its row
true, and another that every name of open_clip {version} stands in exactly one row.

A small variant of the family's own config, with random weights, goes through `zeroshot-head`,
`finetune`, `merge`, `eval` and `export`. Tested for each: the head equals
`open_clip.build_zero_shot_classifier` times the scale within 1e-5 relative; the file's `visual.*`
are the tensors open_clip loads; the encoder rebuilt from the card gives the very bits of the full
model's; accuracies and exported features are open_clip's. Real weights were not run.

*Padding*: "left out" where the text tower provably ignores what stands behind the end of the text,
so that short prompts cost less; "kept" elsewhere. *hf*: the tokenizer, or the text tower, comes
from the Hugging Face hub, and `zeroshot-head` and `export` need `pip install 'wiseft-cli[hf]'`; the
other commands never need it.

| family | open_clip names | works | padding | head's bias | needs |
|---|---|---|---|---|---|
"""
TAIL = """
Other models of `hf-hub:` and `local-dir:` work where their towers are of one of these kinds.

## Which activation

QuickGELU belongs to the weights, not to the name. A tag that was trained with it selects it, also
under a name without `-quickgelu`; a local file that carries OpenAI's marks (`input_resolution`,
`context_length`, `vocab_size`) selects it too. Both are said. Any other local file, under a name
that exists with and without `-quickgelu`, is built as the name says, and a warning names both
choices. `--quick-gelu` and `--no-quick-gelu` overrule all of this. The card keeps what was built,
and every later command builds that.
"""


def render_row(title: str, names: str, works: str, padding: str, bias: str, needs: str) -> str:
    """One line of the table."""
    return f"| {title} | {names} | {works} | {padding} | {bias} | {needs} |"


def names_of(pattern: str) -> str:
    """The open_clip names of a family."""
    return ", ".join(name for name in open_clip.list_models() if re.fullmatch(pattern, name))


def main() -> None:
    """Run every family and write the page."""
    from tests.families.catalog import FAMILIES
    from tests.families.findings import find_row

    rows = []
    with tempfile.TemporaryDirectory() as place:
        for index, family in enumerate(FAMILIES):
            rows.append(find_row(family, Path(place) / str(index)))
            print(rows[-1], file=sys.stderr)
    version = ".".join(open_clip.__version__.split(".")[:2])
    PAGE.write_text(HEAD.format(version=version) + "\n".join(rows) + "\n" + TAIL)


if __name__ == "__main__":
    main()
