from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluation.test_merged_weights import make_seeds
from tests.evaluation.tiny import CLASSES, make_images
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.data import loading
from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.evaluation import soup as soup_module
from wiseft_cli.evaluation.evaluate import evaluate
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.evaluation.soup import (
    SoupStep,
    plan_greedy_soup,
    run_greedy_soup,
    select_greedily,
)
from wiseft_cli.merging.soup import write_soup

LABELS = [entry.id for entry in CLASSES]


def brute_force(scores: Sequence[float], means: dict[frozenset[int], float]) -> list[int]:
    """Recipe 1 of the paper, written as the paper does: add to the soup, and compare."""
    ranked = sorted(range(len(scores)), key=lambda at: scores[at], reverse=True)
    ingredients: list[int] = []
    for candidate in ranked:
        accuracy_without = means[frozenset(ingredients)] if ingredients else float("-inf")
        if means[frozenset([*ingredients, candidate])] >= accuracy_without:
            ingredients.append(candidate)
    return ingredients


@pytest.mark.parametrize("seed", range(40))
def test_selection_equals_the_recipe_of_the_paper_on_recorded_accuracies(seed: int) -> None:
    generator = random.Random(seed)
    n = generator.randint(2, 6)
    # Few distinct values, so that candidates and means are often equal.
    n_values = generator.choice([2, 4, 50])
    means = {
        frozenset(at for at in range(n) if bits >> at & 1): generator.randrange(n_values) / 50
        for bits in range(1, 2**n)
    }
    scores = [means[frozenset([at])] for at in range(n)]
    asked: list[tuple[int, ...]] = []

    def score_mean(indices: tuple[int, ...]) -> float:
        asked.append(indices)
        return means[frozenset(indices)]

    steps = list(select_greedily(scores, score_mean))
    assert [step.index for step in steps if step.is_kept] == brute_force(scores, means)
    assert [step.alone for step in steps] == sorted(scores, reverse=True)
    assert len(asked) == n - 1
    for step in steps:
        assert step.alone == scores[step.index]


def test_equal_scores_keep_their_order_and_an_equal_mean_is_kept() -> None:
    steps = list(select_greedily([0.5, 0.7, 0.5, 0.7], lambda indices: 0.7))
    assert steps == [
        SoupStep(1, 0.7, 0.7, True),
        SoupStep(3, 0.7, 0.7, True),
        SoupStep(0, 0.5, 0.7, True),
        SoupStep(2, 0.5, 0.7, True),
    ]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    make_seeds(tmp_path, 4)
    make_images(tmp_path / "val", LABELS, per_class=5, seed=1)
    return tmp_path


def candidates(room: Path) -> list[Path]:
    return [room / f"seed{at}.safetensors" for at in range(4)]


def select(room: Path, **options: Any) -> tuple[SoupStep, ...]:
    plan = plan_greedy_soup(candidates(room), str(room / "val"), **options)
    return run_greedy_soup(plan, workers=0, device="cpu")


def test_scores_are_those_of_the_files_that_soup_writes(room: Path) -> None:
    steps = select(room)
    paths = candidates(room)

    def accuracy(chosen: Sequence[Path]) -> float:
        output = room / "mean.safetensors"
        write_soup(chosen, output, force=True)
        (line,) = evaluate(EvalRequest(output, data=room / "val", workers=0)).lines
        return line.value

    singles = evaluate(EvalRequest(paths, data=room / "val", workers=0)).lines
    kept: list[Path] = []
    for step in steps:
        path = paths[step.index]
        assert step.alone == singles[step.index].value
        assert step.mean == (accuracy([*kept, path]) if kept else step.alone)
        kept += [path] * step.is_kept
    assert len(kept) > 1


@pytest.mark.parametrize("limit", [2**30, 1000])
def test_each_image_is_decoded_once_or_once_for_each_mean(
    room: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    expected = select(room)
    decoded: list[int] = []
    load_image_of = loading.load_image_of
    monkeypatch.setattr(
        loading,
        "load_image_of",
        lambda image_set, index: (decoded.append(index), load_image_of(image_set, index))[1],
    )
    monkeypatch.setattr(soup_module, "CACHE_BYTES", limit)
    assert select(room) == expected
    # The four candidates share one pass; then there is one mean for each of three.
    n_passes = 1 if limit > 1000 else 4
    assert sorted(decoded) == sorted(list(range(40)) * n_passes)


def test_threads_of_torch_are_restored(room: Path) -> None:
    before = torch.get_num_threads()
    plan = plan_greedy_soup(candidates(room), str(room / "val"))
    run_greedy_soup(plan, workers=0, device="cpu", threads=before + 1)
    assert torch.get_num_threads() == before


def test_unreadable_images_are_counted_once_per_mean(room: Path) -> None:
    (room / "val" / LABELS[0] / "0.png").write_bytes(b"x")
    plan = plan_greedy_soup(candidates(room), str(room / "val"))
    with pytest.raises(DatasetError, match="unreadable images"):
        run_greedy_soup(plan, workers=0, device="cpu")
    steps = run_greedy_soup(plan, workers=0, device="cpu", max_unreadable=1)
    assert all(round(39 * step.mean, 9).is_integer() for step in steps)


def test_interrupted_selection_continues_with_what_is_measured(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = select(room)
    results = room / "r.jsonl"
    calls = 0
    add = soup_module.add_result_lines

    def stop_at_the_third(*words: Any) -> None:
        nonlocal calls
        calls += 1
        add(*words)
        if calls == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(soup_module, "add_result_lines", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            select(room, results=results)
    measured: list[int] = []
    monkeypatch.setattr(
        soup_module,
        "add_result_lines",
        lambda path, lines: (measured.append(len(lines)), add(path, lines)),
    )
    assert select(room, results=results) == expected
    assert measured == [1]  # four candidates and two of three means were held
    measured.clear()
    for path in (room / "val").rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    assert select(room, results=results) == expected
    assert measured == []
    with pytest.raises(DatasetError):
        select(room, results=results, force=True)


def test_measurements_of_a_selection_are_not_test_results(room: Path) -> None:
    from wiseft_cli.reporting.results import read_result_lines

    select(room, results=room / "r.jsonl")
    lines = read_result_lines(room / "r.jsonl")
    assert len(lines) == 7
    assert {line.role for line in lines} == {"selection"}
    assert {line.reference for line in lines} == {False}


def test_soup_records_the_set_that_selected_it(room: Path) -> None:
    plan = plan_greedy_soup(candidates(room), str(room / "val"))
    steps = run_greedy_soup(plan, workers=0, device="cpu")
    kept = [candidates(room)[step.index] for step in steps if step.is_kept]
    for base in (None, room / "zeroshot.safetensors"):
        output, plain = room / f"s{bool(base)}.safetensors", room / f"p{bool(base)}.safetensors"
        alpha = None if base is None else soup_module.parse_alphas(["0.3"])[0]
        write_soup(kept, output, base=base, alpha=alpha, selection=plan.record(steps))
        write_soup(kept, plain, base=base, alpha=alpha)
        assert read_card(output).digest == read_card(plain).digest
        selection = read_card(output).history[-1].options["selection"]
        assert selection == {
            "fingerprint": plan.jobs[0].line.data_fingerprint,
            "metric": "top1",
            "candidates": [read_card(candidates(room)[step.index]).digest for step in steps],
        }
        test = make_images(room / f"test{bool(base)}", LABELS, per_class=2, seed=9)
        found = evaluate(EvalRequest(output, data=[test, room / "val"], workers=0))
        assert [line.role for line in found.lines] == ["reference", "selection"]
        assert any("chose the weights of" in text for text in found.warnings)
        alone = evaluate(EvalRequest(output, data=room / "val", workers=0))
        assert any("chose the weights of" in text for text in alone.warnings)


def test_a_single_kept_checkpoint_is_copied(room: Path) -> None:
    path = candidates(room)[0]
    write_soup([path], room / "one.safetensors")
    assert read_card(room / "one.safetensors").digest == read_card(path).digest
    with open_checkpoint(room / "one.safetensors") as one, open_checkpoint(path) as own:
        for name in own.tensors:
            assert one.read_array(name).tobytes() == own.read_array(name).tobytes()


def test_too_few_or_repeated_checkpoints_are_rejected(room: Path) -> None:
    path = candidates(room)[0]
    with pytest.raises(UsageError, match="at least two checkpoints, 1 given"):
        plan_greedy_soup([path], str(room / "val"))
    with pytest.raises(UsageError, match="given more than once"):
        plan_greedy_soup([path, path], str(room / "val"))
    with pytest.raises(UsageError, match="given more than once"):
        plan_greedy_soup(candidates(room), str(room / "val"), base=path)
