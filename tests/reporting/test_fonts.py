from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib import font_manager

from tests.reporting.lines import line
from wiseft_cli.reporting import fonts
from wiseft_cli.reporting.figure import FORMATS, plot_results
from wiseft_cli.reporting.fonts import DEFAULT_FONT, find_fonts


@pytest.mark.parametrize("text", ["", "imagenet-r", "naïve Ω", "a\nb"])
def test_text_of_the_default_font_needs_no_other(text: str) -> None:
    assert find_fonts(text) == ((DEFAULT_FONT,), "")


def test_installed_font_is_found_for_missing_characters() -> None:
    families, missing = find_fonts("a \U0001d49c")  # mathematical script A
    assert (len(families), families[0], missing) == (2, DEFAULT_FONT, "")
    path = font_manager.findfont(families[1])
    assert "\U0001d49c" in fonts._characters(path)


def test_fewest_fonts_are_chosen_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"one": "数", "two": "数据한", "three": "한국", DEFAULT_FONT: "abc"}
    for names in (list(installed), list(installed)[::-1]):
        entries = [font_manager.FontEntry(fname=name, name=name) for name in names]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
        monkeypatch.setattr(font_manager, "findfont", lambda name: name)
        monkeypatch.setattr(fonts, "_characters", lambda path: set(installed[path]))
        found = find_fonts.__wrapped__("abc 数据 한국 本")
        assert found == ((DEFAULT_FONT, "two", "three"), "本")


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    default = [font for font in font_manager.fontManager.ttflist if font.name == DEFAULT_FONT]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", default)
    find_fonts.cache_clear()
    yield
    find_fonts.cache_clear()


@pytest.mark.usefixtures("no_other_fonts")
@pytest.mark.parametrize("name", ["数据", "テスト", "한국"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_characters_without_a_font_are_listed_once(
    tmp_path: Path, name: str, file_format: str
) -> None:
    # A warning of matplotlib would be an error here.
    lines = [line("val", 600, reference=True), line(name, 500), line("other", 400)]
    plot = plot_results(lines, tmp_path / f"c.{file_format}")
    (warning,) = plot.warnings
    assert warning.startswith(f"no installed font has the characters {''.join(sorted(name))},")


def test_figure_with_an_additional_font_has_the_same_bytes_each_time() -> None:
    lines = [line("val", 600, reference=True), line("\U0001d49c", 500)]
    first = plot_results(lines)
    assert (first.warnings, plot_results(lines).picture) == ((), first.picture)
