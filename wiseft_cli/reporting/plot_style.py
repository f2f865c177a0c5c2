"""Styles of figures: the sizes and colours for a screen, a paper, a slide and a dark page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

StyleName = Literal["default", "paper", "slide", "dark"]

DPI = 200


@dataclass(frozen=True)
class PlotStyle:
    """The look of a figure.

    Attributes:
        width_in: Width of the whole figure, in inches; None for that of its panels.
        panel_in: Width and height of a panel beside others, in inches.
        alone_in: Width and height of a panel that is alone.
        settings: matplotlib's settings, besides the common ones.
    """

    width_in: float | None = None
    panel_in: tuple[float, float] = (3.5, 2.9)
    alone_in: tuple[float, float] = (5.6, 4.4)
    settings: dict[Any, Any] = field(default_factory=dict)

    def size(self, n_panels: int, n_columns: int, n_rows: int, width_in: float | None) -> Any:
        """Return width and height of the figure in inches."""
        width, height = self.alone_in if n_panels == 1 else self.panel_in
        natural = width * n_columns
        wanted = width_in or self.width_in or natural
        return wanted, height * n_rows * wanted / natural


# White behind everything: the figure is read in print and on dark screens.
COMMON: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.color": "#222222",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "wiseft",
    "text.parse_math": False,  # a name may hold any character
}

_DARK = "#15181C"
_LIGHT = "#E6E8EB"

STYLES: dict[StyleName, PlotStyle] = {
    "default": PlotStyle(),
    "paper": PlotStyle(
        width_in=3.3,
        panel_in=(3.3, 2.4),
        alone_in=(3.3, 2.6),
        # Type 42 embeds fonts as text, which publishers ask for.
        settings={
            "font.size": 8,
            "axes.titlesize": 8,
            "legend.fontsize": 8,
            "pdf.fonttype": 42,
            "figure.constrained_layout.w_pad": 0.02,
            "figure.constrained_layout.h_pad": 0.02,
        },
    ),
    "slide": PlotStyle(
        width_in=10.0,
        panel_in=(5.0, 4.4),
        alone_in=(10.0, 5.6),
        settings={
            "font.size": 18,
            "axes.titlesize": 18,
            "legend.fontsize": 16,
            "grid.linewidth": 1.0,
        },
    ),
    "dark": PlotStyle(
        settings={
            "figure.facecolor": _DARK,
            "axes.facecolor": _DARK,
            "savefig.facecolor": _DARK,
            "axes.edgecolor": "#A3ABB8",
            "axes.labelcolor": _LIGHT,
            "text.color": _LIGHT,
            "xtick.color": "#A3ABB8",
            "ytick.color": "#A3ABB8",
            "grid.color": "#2C333B",
        },
    ),
}
