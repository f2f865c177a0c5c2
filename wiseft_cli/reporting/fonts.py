"""Find installed fonts for characters that matplotlib's own font does not have."""

from __future__ import annotations

import functools

DEFAULT_FONT = "DejaVu Sans"
"""The font that matplotlib ships and uses; it has no Chinese, Japanese or Korean characters."""

_PLACEHOLDER_FONT = "Last Resort"
"""A font that ships with matplotlib and draws a box for every character."""


@functools.cache
def find_fonts(text: str) -> tuple[tuple[str, ...], str]:
    """Return fonts that together draw a text, and the characters that none of them has.

    Args:
        text: Any text; most characters are those of names in the figure.
    Returns:
        Font families, the default one first, and the missing characters, sorted.
    """
    # lazy: matplotlib takes half a second
    from matplotlib.font_manager import findfont, fontManager

    missing = {char for char in text if not char.isspace()} - _characters(findfont(DEFAULT_FONT))
    families = [DEFAULT_FONT]
    if missing:
        # Sorted: the order in which the system lists its fonts must not matter.
        paths = {font.name: font.fname for font in reversed(fontManager.ttflist)}
        installed = {
            name: missing & _characters(paths[name])
            for name in sorted(paths)
            if not name.startswith(_PLACEHOLDER_FONT)
        }
        while missing and installed:
            best = max(installed, key=lambda name: len(installed[name] & missing))
            found = installed.pop(best) & missing
            if not found:
                break
            families.append(best)
            missing -= found
    return tuple(families), "".join(sorted(missing))


def _characters(path: str) -> set[str]:
    from matplotlib.ft2font import FT2Font  # lazy: as above

    try:
        return set(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font that was removed, or that FreeType cannot read
        return set()


def missing_characters_note(text: str) -> list[str]:
    """Return a sentence about the characters that no installed font has, or an empty list."""
    _, missing = find_fonts(text)
    if not missing:
        return []
    return [
        f"no installed font has the characters {missing}, which are drawn as boxes; install a font"
        " that has them, such as Noto Sans CJK"
    ]
