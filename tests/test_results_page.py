"""docs/results.md: its averages are correct, and its rows name valid commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import open_clip
import pytest
from typer.main import get_command

from wiseft_cli.cli.app import build_app
from wiseft_cli.data.dataset_card import dataset_card_names, read_dataset_card
from wiseft_cli.data.spec import parse_spec
from wiseft_cli.data.suite import suite_names
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.training.recipe_file import builtin_names

PAGE = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
SHIFTS = ("v2", "r", "sketch", "objectnet", "a")
Row = Mapping[str, str]


def tables() -> dict[str, list[Row]]:
    """Return the tables of the page by their headings, with rows by column names."""
    found: dict[str, list[Row]] = {}
    for section in re.split(r"^## ", PAGE, flags=re.M):
        title = section.splitlines()[0]
        for block in re.findall(r"(?:^\|.*\n)+", section, re.M):
            header, _, *rows = [
                [cell.strip() for cell in line.strip("|\n").split("|")]
                for line in block.splitlines()
            ]
            found[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


TABLES = tables()
ROWS = [(title, row) for title, table in TABLES.items() for row in table if "avg shifts" in row]
MEASURED = [(title, row) for title, row in ROWS if "v2" in row]


def numbers(row: Row, names: Sequence[str] = SHIFTS) -> list[float]:
    return [float(row[name]) for name in names]


def row_of(title: str, name: str) -> Row:
    (row,) = [row for row in TABLES[title] if next(iter(row.values())) == name]
    return row


def test_page_has_the_tables_of_the_paper() -> None:
    counts = {title: len(table) for title, table in TABLES.items()}
    assert list(counts.values()) == [7, 5, 7, 3, 9, 3, 6, 4, 3, 6, 8, 6], counts
    for number in (1, 2, 4, 5, 6):
        assert sum(f"Table {number}:" in title for title in counts) == 1
    for title, table in TABLES.items():
        for row in table:
            for name, cell in row.items():
                if re.fullmatch(r"[\d.]+", cell) and name != "alpha":
                    assert 0 < float(cell) < 100, (title, name, cell)


@pytest.mark.parametrize(("title", "row"), MEASURED)
def test_averages_are_the_means_of_their_columns(title: str, row: Row) -> None:
    average = float(row["avg shifts"])
    both = float(row["avg ref., shifts"])
    assert both == pytest.approx((float(row["imagenet"]) + average) / 2, abs=0.005001)
    mean = fmean(numbers(row))
    if "optimal" in row["row"]:  # of each column by itself, so not below any one alpha's
        assert average <= mean + 0.1
        others = [other for other in TABLES[title] if other["command"][:6] == row["command"][:6]]
        for name in ("imagenet", *SHIFTS, "avg shifts"):
            assert float(row[name]) >= max(float(other[name]) for other in others)
    else:
        assert average == pytest.approx(mean, abs=0.1001)
        assert "mean" in row["checked"]


def test_rows_that_claim_a_second_source_agree_with_it() -> None:
    title = next(title for title in TABLES if title.startswith("First: "))
    models = {
        "Table 1:": "ViT-L-14-336",
        "Table 5:": "ViT-B-16",
        "VRF, table 1:": "ViT-B-32",
        "ViT-L/14 at": "ViT-L-14",
    }
    said = [
        of for of, table in TABLES.items() for row in table if "open_clip" in row.get("checked", "")
    ]
    assert len(said) == len(models) + 1  # and what it means
    for name, model in models.items():
        table = next(table for of, table in TABLES.items() if of.startswith(name))
        (row,) = [row for row in table if "open_clip" in row["checked"]]
        other = row_of(title, model)
        for column in {"imagenet", "v2", "r", "sketch", "a"} & row.keys():
            assert float(row[column]) == pytest.approx(float(other[column]), abs=0.4)
    by_others = next(table for title, table in TABLES.items() if title.startswith("VRF, table 2"))
    pairs = {"`B16-E2E`, alpha 0.7": "selected", "`B16-E2E`, alpha 1": "alpha 1"}
    rows = [row for _, row in MEASURED if "VRF" in row["checked"]]
    assert {row["command"] for row in rows} == set(pairs)
    for row in rows:
        (other,) = [
            other
            for other in by_others
            if other["command"] == f"`B16-E2E`, {pairs[row['command']]}"
        ]
        columns = ("imagenet", *SHIFTS)
        assert numbers(row, columns) == pytest.approx(numbers(other, columns), abs=1.2001)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each command's label and arguments; loops are unrolled."""
    text = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S))
    label, values = "", [("", "")]
    for line in text.splitlines():
        loop = re.fullmatch(r"for (\w+) in (.*); do", line)
        if loop:
            values = [(f"${loop[1]}", value) for value in loop[2].split()]
        elif line == "done":
            values = [("", "")]
        elif line.strip().startswith("# "):
            label = line.strip("# ")
        else:
            for variable, value in values:
                words = shlex.split(line.replace(variable, value) if variable else line)
                if words[0] == "torchrun":
                    words = words[words.index("wiseft_cli") :]
                yield label, words[1:]
            label = ""


COMMANDS = list(commands())
PARSER: Any = get_command(build_app())


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command without running it."""
    name, *rest = words
    with PARSER.make_context("wiseft", [name]) as parent:
        return dict(PARSER.commands[name].make_context(name, rest, parent=parent).params)


def test_commands_are_valid_and_read_files_that_earlier_commands_write() -> None:
    written: set[str] = set()
    for _, words in COMMANDS:
        given = parse(words)
        needed = {
            "zeroshot-head": (),
            "finetune": (given.get("zeroshot"),),
            "merge": (given.get("zeroshot"), *given.get("finetuned", ())),
            "eval": given.get("checkpoints"),
        }[words[0]]
        assert {str(path) for path in needed} <= written, words
        if words[0] != "eval":
            written.add(str(given["output"]))
    assert [words[0] for _, words in COMMANDS].count("eval") == 18
    with pytest.raises(Exception, match="No such option: --recipes"):
        parse(["finetune", "a.safetensors", "--recipes", "wise-ft"])


def test_names_in_commands_exist() -> None:
    cards = set(dataset_card_names())
    for _, words in COMMANDS:
        given = parse(words)
        if words[0] == "zeroshot-head":
            assert given["classes"] in cards
            assert given["templates"] == [given["classes"]]
            assert given["pretrained"] in open_clip.list_pretrained_tags_by_model(given["model"])
        if words[0] == "finetune":
            assert given["recipe_name"] in builtin_names()
        if given.get("suite") is not None:
            assert given["suite"] in suite_names()
        for text in [*given.get("data", []), *filter(None, [given.get("train")])]:
            spec = parse_spec(text)
            assert spec.name in cards
            if spec.name in cards - {"imagenet"}:
                assert read_dataset_card(spec.name).split(spec.options.split)


def test_rows_name_the_commands_that_compute_them() -> None:
    evals = {label: parse(words) for label, words in COMMANDS if label}
    used = set()
    for table in TABLES.values():
        for row in table:
            label = re.match(r"`([\w-]+)`(.*)", row.get("command", ""))
            if label is None:
                assert row.get("command", "none") == "none"
                continue
            given = evals[label[1]]
            used.add(label[1])
            alphas = {alpha.text for alpha in parse_alphas(given["alpha"] or ["0"])}
            alpha = re.search(r"alpha ([\d.]+)", label[2])
            assert alpha is None or alpha[1] in alphas
            assert "selected" not in label[2] or given["select_on"]
            assert "ensemble" not in label[2] or given["output_ensemble"]
    assert used == set(evals)
