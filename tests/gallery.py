"""Draw the pictures of docs/gallery.md: `python -m tests.gallery DEMO` in the repository's root.

DEMO is a folder that `wiseft demo --out` wrote. Each command is the one that the page shows.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from wiseft_cli.cli.app import main

PAGE = Path(__file__).parents[1] / "docs" / "gallery.md"
PICTURES = PAGE.parent / "gallery"
MAX_BYTES = 100_000


def commands() -> dict[str, list[str]]:
    """Return the words of each command of the page that draws a picture, by the picture's name."""
    texts = re.findall(r"^wiseft (plot .*)$", PAGE.read_text(), re.M)
    found = [shlex.split(text) for text in texts]
    return {words[words.index("-o") + 1]: words for words in found}


def draw(demo: Path, folder: Path) -> None:
    """Draw the pictures from the results of the demo into a folder."""
    folder = folder.resolve()
    os.chdir(demo)
    (demo / "models.csv").write_text(BASELINES)
    for name, words in commands().items():
        out = ["-o", str(folder / name), "--force"]
        at = words.index("-o")
        assert main([*words[:at], *out, *words[at + 2 :]]) == 0


BASELINES = """model,mnist,optdigits,fonts
small,0.71,0.60,0.66
middle,0.84,0.72,0.78
large,0.93,0.83,0.86
"""
"""Made-up models, as an example of the format."""

if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    draw(Path(sys.argv[1]).resolve(), PICTURES)
