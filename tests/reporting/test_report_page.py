"""The page of `wiseft report`, as text and in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.reporting.lines import FINETUNED, ZEROSHOT, digest, line
from tests.reporting.report_inputs import HOSTILE, RIGHT_TO_LEFT, SEPARATORS, write_inputs
from wiseft_cli.checkpoint.card import Card, HistoryEntry, HistoryInput
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import ResultsError, escape_controls
from wiseft_cli.reporting.report import ReportRequest, write_report
from wiseft_cli.reporting.report_analysis import Thumbnails
from wiseft_cli.reporting.results import CheckpointName, add_result_lines

SETS = ("val", HOSTILE, SEPARATORS, RIGHT_TO_LEFT)
CLASSES = ("cat", HOSTILE, "ציפור")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in which every name that a user can choose is hostile."""
    folder = tmp_path_factory.mktemp("page")
    checkpoints = (
        CheckpointName(f"zero {HOSTILE}", "zeroshot", ZEROSHOT.digest),
        CheckpointName("it's fine", "finetuned", FINETUNED.digest),
    )
    lines = write_inputs(
        folder / "predictions",
        alphas=("0", "0.25", "0.5", "0.75", "1"),
        sets=SETS,
        class_names=CLASSES,
        checkpoints=checkpoints,
    )
    add_result_lines(folder / "r.jsonl", lines)
    for at in range(60):
        Image.new("RGB", (200, 100), (4 * at, 100, 50)).save(folder / f"{at}.png")
    write_page(
        folder / "report.html",
        folder,
        title=HOSTILE,
        images={HOSTILE: folder},
        fail_under=("val:top1>=0.5", "shifts:top1>=0.99"),
    )
    return folder / "report.html"


def write_page(output: Path, folder: Path, **options: Any) -> None:
    request = {"results": [folder / "r.jsonl"], "predictions": folder / "predictions"} | options
    write_report(ReportRequest(output=output, **request))


def test_page_is_one_file_below_5_mb_with_equal_bytes_each_time(page: Path, tmp_path: Path) -> None:
    write_page(tmp_path / "two.html", page.parent, title=HOSTILE)
    first = (tmp_path / "two.html").read_bytes()
    write_page(tmp_path / "two.html", page.parent, title=HOSTILE, force=True)
    assert (tmp_path / "two.html").read_bytes() == first
    assert page.stat().st_size < 5e6


def test_every_script_is_listed_and_no_name_is_markup(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == 3
    assert len(re.findall(r"&#39;sha256-[^&]+&#39;", text)) == 2
    assert "<img src=x" not in text
    assert "{{7*7}}" in text
    assert not {"\u2028", "\u2029", "\u202e", "\u200f"} & set(text)
    assert "window.hacked" in text  # as text, escaped
    data = re.search(r'id="report-data">(.*?)</script>', text)
    assert data is not None
    series = {point["series"] for point in json.loads(data[1])["points"]}
    assert series == {"mean shift", *map(escape_controls, SETS[1:])}


def test_history_of_checkpoints_is_a_tree(page: Path, tmp_path: Path) -> None:
    import numpy as np

    history = (
        HistoryEntry("zeroshot-head", "0.1.0", {"model": "ViT <b>"}, (), digest("0")),
        HistoryEntry(
            "finetune", "0.1.0", {"recipe": {"lr": 0.1}}, (HistoryInput("zeroshot", digest("0")),)
        ),
    )
    path = tmp_path / "tuned.safetensors"
    tensors = {"x": np.zeros(2, np.float32)}
    write_checkpoint(path, tensors, Card("finetuned", history=history))
    write_page(tmp_path / "h.html", page.parent, checkpoints=[path])
    text = (tmp_path / "h.html").read_text()
    tree = text[text.index('class="tree"') :]
    assert tree.index("<strong>finetune</strong>") < tree.index("<strong>zeroshot-head</strong>")
    assert ">recipe.lr</th>" in tree
    assert "ViT &lt;b&gt;" in tree
    assert "is not among the checkpoints of the results" in text


def test_images_outside_the_folder_are_not_shown(page: Path, tmp_path: Path) -> None:
    lines = write_inputs(tmp_path / "predictions")
    add_result_lines(tmp_path / "r.jsonl", lines)
    for path in (tmp_path / "predictions").iterdir():
        path.write_text(path.read_text().replace('"path": "', f'"path": "../{page.parent.name}/'))
    (tmp_path / "images").mkdir()
    write_page(tmp_path / "i.html", tmp_path, images={"val": tmp_path / "images"})
    text = (tmp_path / "i.html").read_text()
    assert "data:image/jpeg" not in text
    assert "thumbnails of this report could not be made" in text
    with pytest.raises(ResultsError, match="--images 'vaal': is not a set"):
        write_page(tmp_path / "j.html", tmp_path, images={"vaal": tmp_path})


def test_torch_and_the_charting_library_are_imported_by_pages_only(
    page: Path, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'vl_convert', 'jinja2', 'matplotlib'): sys.modules[name] = None\n"
        "from wiseft_cli.cli.app import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["report", str(page.parent / "r.jsonl"), "-o"]
    codes = {}
    for suffix in ("md", "html"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, *words, str(tmp_path / f"r.{suffix}")],
            capture_output=True,
            text=True,
        )
        codes[suffix] = done.returncode
    assert codes == {"md": 0, "html": 1}
    assert "hint: pip install 'wiseft-cli[report]'" in done.stderr


def curve_lines(alphas: Sequence[str], sets: Sequence[str], counts: Sequence[int]) -> list[Any]:
    return [
        line(name, counts[(row + at) % len(counts)], alpha=alpha, reference=at == 0)
        for row, alpha in enumerate(alphas)
        for at, name in enumerate(sets)
    ]


@pytest.mark.parametrize(
    ("alphas", "n_sets", "counts", "wanted"),
    [
        (["0.5"], 3, (500, 600), ["The merge at alpha 0.5", 'id="curve"']),
        (["0", "0.5", "1"], 1, (500, 600), ["Fine-tuning did not change"]),
        (["0", "0.5", "1"], 2, (0, 1000), ["0.00 %", "100.00 %", '"lx":-', 'id="curve"']),
        (
            [f"{at / 300:.4f}" for at in range(301)],
            40,
            (500, 600, 700),
            ["226 of 301 rows are not drawn", "111 of 301 rows are left out"],
        ),
    ],
)
def test_unusual_results_make_a_page_that_says_what_it_leaves_out(
    alphas: list[str], n_sets: int, counts: tuple[int, ...], wanted: list[str], tmp_path: Path
) -> None:
    names = [f"set {at}" for at in range(n_sets)]
    add_result_lines(tmp_path / "r.jsonl", curve_lines(alphas, names, counts))
    write_page(tmp_path / "r.html", tmp_path, predictions=None)
    text = (tmp_path / "r.html").read_text()
    for part in wanted:
        assert part in text
    assert ('id="curve"' in text) == (n_sets > 1)
    # Without permission to copy, the command is shown in a field that can be seen.
    assert text.count('<input id="command" type="text" readonly') == 1
    assert "No predictions were given" in text
    assert len(text) < 5e6


@pytest.mark.parametrize("path", ["a\0b.png", "\ud800.png", "x" * 5000])
def test_path_that_no_file_can_have_has_no_thumbnail(path: str, tmp_path: Path) -> None:
    thumbnails = Thumbnails()
    assert thumbnails.of(tmp_path, path) is None
    assert thumbnails.n_missing == 1


def test_calibration_has_the_rows_of_every_set(tmp_path: Path) -> None:
    lines = write_inputs(tmp_path / "predictions")
    bare = [
        replace(at, extra={}) if (at.set_name, at.alpha) == ("val", "0.5") else at for at in lines
    ]
    add_result_lines(tmp_path / "r.jsonl", bare)
    write_page(tmp_path / "r.html", tmp_path)
    table = (tmp_path / "r.html").read_text().partition("Expected calibration error in points")[2]
    rows = table.partition("</table>")[0].split("<tr>")[1:]
    assert re.findall(r'<th scope="col">([^<]*)', rows[0]) == ["zero-shot", "fine-tuned", "merge"]
    cells = [re.findall("<td>([^<]*)", row) for row in rows[1:]]
    assert cells[0][2] == "-"
    assert all(len(of_set) == 3 and "-" not in of_set for of_set in cells[1:])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium without network, driven by the chromedriver beside it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tempfile.mkdtemp(prefix="wiseft-chromium-")
    for switch in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "window-size=1300,1000",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def loaded(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    wait_for(browser, "return document.querySelector('#curve').dataset.drawn === 'linear:4'")
    wait_for(browser, "return !!document.querySelector('#reliability svg')")
    return browser


def wait_for(browser: Any, script: str) -> None:
    deadline = time.monotonic() + 30
    while not browser.execute_script(script):
        assert time.monotonic() < deadline, script
        time.sleep(0.05)


def count(browser: Any, selector: str) -> int:
    return int(browser.execute_script(f"return document.querySelectorAll({selector!r}).length"))


def column(browser: Any, at: int) -> list[str]:
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll('#results tbody tr')]"
            f".map(row => row.children[{at}].dataset.value)"
        )
    )


def test_page_loads_without_an_error_and_without_a_request(loaded: Any, page: Path) -> None:
    assert loaded.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in loaded.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [at["request"]["url"] for at in sent if at["documentURL"] == page.as_uri()]
    assert page.as_uri() in urls
    assert [url for url in urls if not url.startswith(("data:", page.as_uri()))] == []
    assert loaded.execute_script("return window.hacked") is None
    assert loaded.title.startswith("</script><script>window.hacked")


def test_curve_responds_to_shifts_and_scale(loaded: Any) -> None:
    points = "#curve .mark-symbol path"
    assert count(loaded, points) == 20
    loaded.execute_script("document.querySelectorAll('#series input')[1].click()")
    wait_for(loaded, "return document.querySelector('#curve').dataset.drawn === 'linear:3'")
    assert count(loaded, points) == 15
    loaded.execute_script("document.querySelectorAll('#series input')[1].click()")
    heights = (
        f"return [...document.querySelectorAll({points!r})].map(p => p.getBoundingClientRect().y)"
    )
    before = loaded.execute_script(heights)
    loaded.execute_script("document.querySelector('input[value=logit]').click()")
    wait_for(loaded, "return document.querySelector('#curve').dataset.drawn === 'logit:4'")
    after = loaded.execute_script(heights)
    assert len(before) == len(after) == 20
    assert before != after
    labels = "document.querySelectorAll('#curve .role-axis-label text')"
    ticks = loaded.execute_script(f"return [...{labels}].map(at => at.textContent)")
    assert {"60", "70"} <= set(ticks)
    assert loaded.get_log("browser") == []


def test_points_describe_themselves_and_copy_their_merge_command(loaded: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    points = loaded.find_elements(By.CSS_SELECTOR, "#curve .mark-symbol path[role=button]")
    assert len(points) == 20
    middle = next(at for at in points if "at alpha 0.5:" in at.get_attribute("aria-label"))
    ActionChains(loaded).move_to_element(middle).perform()
    wait_for(loaded, "return !!document.querySelector('#vg-tooltip-element.visible')")
    tooltip = loaded.find_element(By.ID, "vg-tooltip-element").text
    assert re.search(r"alpha:?\s0\.5", tooltip)
    assert re.search(r"\d+\.\d\d %( \[\d+\.\d\d, \d+\.\d\d\])?, \d+ images", tooltip)
    ActionChains(loaded).click(middle).perform()
    read = "return document.getElementById('command').value"
    wait_for(loaded, f"{read.replace('return ', 'return !!')}")
    command = loaded.execute_script(read)
    assert command.startswith("wiseft merge --alpha 0.5 ")
    assert command.endswith(""" 'it'"'"'s fine.safetensors'""")
    last = next(at for at in points if "at alpha 1:" in at.get_attribute("aria-label"))
    last.send_keys(Keys.ENTER)
    wait_for(loaded, f"{read}.startsWith('wiseft merge --alpha 1 ')")
    wait_for(loaded, "return document.getElementById('status').textContent.includes('alpha 1 ')")
    button = loaded.find_elements(By.CSS_SELECTOR, "button.copy")[1]
    loaded.execute_script("arguments[0].click()", button)
    wait_for(loaded, f"{read}.startsWith('wiseft merge --alpha 0.25 ')")


def test_table_sorts_by_each_column_and_says_so(loaded: Any) -> None:
    headings = loaded.execute_script("return document.querySelectorAll('#results th[aria-sort]')")
    for at, heading in enumerate(headings):
        for direction in ("descending", "ascending"):
            loaded.execute_script("arguments[0].querySelector('button').click()", heading)
            assert heading.get_attribute("aria-sort") == direction
            values = column(loaded, at)
            keys = [float(value) for value in values] if at else values
            assert keys == sorted(keys, reverse=direction == "descending")
    assert count(loaded, "#results th[aria-sort]:not([aria-sort=none])") == 1


def test_differences_are_shown_against_the_chosen_row(loaded: Any) -> None:
    visible = (
        "return [...document.querySelectorAll('#results .delta')].filter("
        "at => getComputedStyle(at).display !== 'none').map(at => at.dataset.against)"
    )
    for name in ("fine-tuned", "", "zero-shot"):
        loaded.execute_script(
            "const at = document.getElementById('against'); at.value = arguments[0];"
            "at.dispatchEvent(new Event('change'))",
            name,
        )
        assert set(loaded.execute_script(visible)) == ({name} if name else set())


CONTRAST = """
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parse = (text) => {
  const numbers = text.match(/[\\d.]+/g).map(Number);
  return { rgb: numbers.slice(0, 3), a: numbers[3] ?? 1 };
};
const background = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.a > 0) return colour.rgb;
  }
};
for (const details of document.querySelectorAll("main details")) details.open = true;
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim()) continue;
  if (element.closest("script, .hidden, option")) continue;
  const style = getComputedStyle(element);
  if (style.display === "none" || !element.getClientRects().length) continue;
  const isSvg = element instanceof SVGElement;
  const text = parse(isSvg ? style.fill : style.color);
  const [a, b] = [luminance(text.rgb), luminance(background(element))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), walker.currentNode.textContent.trim().slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_every_text_passes_wcag_aa(loaded: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    loaded.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    found = loaded.execute_script(CONTRAST)
    assert len(found) > 300
    assert [entry for entry in found if entry[0] < 4.5] == []
    page_colour = loaded.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert page_colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")


def test_page_fits_a_phone_and_prints_without_its_controls(loaded: Any) -> None:
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    loaded.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide = """const outside = ".scroll > *, #curve, #reliability, #vg-tooltip-element";
      return [...document.querySelectorAll("body *")].filter((at) =>
      at.getBoundingClientRect().right > 360 && !at.closest(outside))
      .map((at) => at.outerHTML.slice(0, 80))"""
    assert "\n".join(loaded.execute_script(wide)) == ""
    # The charts are drawn again for the new width.
    wait_for(loaded, "return document.documentElement.scrollWidth <= 360")
    loaded.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    loaded.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert loaded.execute_script(shown, ".controls") == "none"
    assert loaded.execute_script(shown, "#results") == "table"
    assert len(loaded.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 10_000
    loaded.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_parts_have_names_for_screen_readers(loaded: Any) -> None:
    unnamed = """
    const wanted = "button, input:not([type=hidden]), select, img, [role=region], section";
    return [...document.querySelectorAll(wanted)].filter((at) =>
      !(at.getAttribute("aria-label") || at.getAttribute("alt") || at.labels?.length ||
        at.getAttribute("aria-labelledby") || at.textContent.trim())).map((at) => at.outerHTML)
    """
    assert loaded.execute_script(unnamed) == []
    repeated = (
        "const ids = [...document.querySelectorAll('[id]')].map(at => at.id);"
        "return ids.filter((id, at) => ids.indexOf(id) !== at && !id.startsWith('gradient'))"
    )
    assert loaded.execute_script(repeated) == []
    assert count(loaded, "#curve svg [role='graphics-symbol'], #curve svg [role='button']") > 0


def test_no_error_was_logged_by_any_of_this(loaded: Any) -> None:
    assert [entry for entry in loaded.get_log("browser") if entry["level"] != "INFO"] == []
    assert loaded.execute_script("return window.hacked") is None


def test_command_that_cannot_be_copied_is_selected_in_a_visible_field(
    browser: Any, tmp_path: Path
) -> None:
    add_result_lines(tmp_path / "r.jsonl", curve_lines(["0", "0.5", "1"], ["val"], (500, 600)))
    write_page(tmp_path / "r.html", tmp_path, predictions=None)
    browser.get((tmp_path / "r.html").as_uri())
    browser.execute_script(
        "Object.defineProperty(navigator, 'clipboard',"
        " {value: {writeText: () => Promise.reject(new Error('denied'))}});"
        "document.querySelectorAll('button.copy')[1].click()"
    )
    wait_for(browser, "return document.activeElement.id === 'command'")
    field = browser.switch_to.active_element
    assert field.is_displayed()
    assert field.get_attribute("value").startswith("wiseft merge --alpha 0.5 ")
