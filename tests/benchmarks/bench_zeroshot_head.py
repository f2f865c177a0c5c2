"""Zero-shot heads: this package's encoding against `open_clip.build_zero_shot_classifier`.

    python tests/benchmarks/bench_zeroshot_head.py [--model ViT-B-32] [--classes 20] [--repeats 2]

ImageNet names with OpenAI's 80 templates, random weights, float32, CPU. Each side runs in
processes of its own, the sides in turns, so that load on the machine meets both; the fastest
run of each counts. The seconds are those of tokenizing and encoding alone, the peak is the
largest resident set of the process. The ceiling is what leaving out padding alone can give:
positions that full padding computes over those that were computed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIDES = ("open_clip", "wiseft")
MIB = 2**20
TOLERANCE = 1e-5


def run_side(side: str, *, model_name: str, class_count: int, out: Path) -> None:
    """Build one head, save it, and print what it cost as JSON."""
    import open_clip

    from wiseft_cli.model.full_clip import load_full_clip
    from wiseft_cli.model.model_source import find_model

    full = load_full_clip(find_model(model_name, pretrained=None, random_weights=True))
    model: Any = full.model
    names = list(open_clip.IMAGENET_CLASSNAMES[:class_count])
    positions = 0

    def count(_module: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal positions
        positions += inputs[0].shape[0] * inputs[0].shape[1]

    model.transformer.register_forward_pre_hook(count)
    build = open_clip_head if side == "open_clip" else our_head
    begin = time.perf_counter()
    head = build(full, names)
    seconds = time.perf_counter() - begin
    np.save(out, head)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    prompts = len(names) * len(open_clip.OPENAI_IMAGENET_TEMPLATES)
    print(json.dumps({"seconds": seconds, "peak": peak, "positions": positions / prompts}))


def open_clip_head(full: Any, names: list[str]) -> np.ndarray:
    """The peer's head, scaled; (C, D)."""
    import open_clip
    import torch

    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            full.model, full.tokenizer.tokenize, names, open_clip.OPENAI_IMAGENET_TEMPLATES
        )
        return (weights.T * full.model.logit_scale.exp()).numpy()


def our_head(full: Any, names: list[str]) -> np.ndarray:
    """This package's head; (C, D)."""
    import open_clip

    from wiseft_cli.model.zeroshot_head import build_zeroshot_head, encode_prompts

    prompts = (
        (index, template(name))
        for index, name in enumerate(names)
        for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    features = encode_prompts(full.model, full.tokenizer, prompts, class_count=len(names))
    head = build_zeroshot_head(features, logit_scale=full.model.logit_scale, class_ids=names)
    return head.weight.detach().numpy()


def measure(model_name: str, class_count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Run both sides in turns; return the fastest run of each, after comparing their heads."""
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        heads = {side: Path(scratch) / f"{side}.npy" for side in SIDES}
        for _ in range(repeats):
            for side in SIDES:
                options = ["--model", model_name, "--classes", str(class_count)]
                command = [sys.executable, __file__, "--side", side, "--out", str(heads[side])]
                run = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
                found = json.loads(run.stdout)
                if side not in best or found["seconds"] < best[side]["seconds"]:
                    best[side] = found
        ours, theirs = (np.load(heads[side]) for side in ("wiseft", "open_clip"))
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if difference > TOLERANCE:
        raise SystemExit(f"the heads differ by {difference:.1e}, more than {TOLERANCE:.0e}")
    best["wiseft"]["difference"] = difference
    return best


def report(best: dict[str, dict[str, float]]) -> None:
    """Print the table and the ratios."""
    ours, theirs = best["wiseft"], best["open_clip"]
    print("| side | seconds | peak MiB | positions a prompt |\n|---|---|---|---|")
    for side in SIDES:
        found = best[side]
        print(
            f"| {side} | {found['seconds']:.1f} | {found['peak']:.0f} | {found['positions']:.1f} |"
        )
    print(
        f"{theirs['seconds'] / ours['seconds']:.1f} times as fast; ceiling "
        f"{theirs['positions'] / ours['positions']:.1f}; "
        f"largest relative difference {ours['difference']:.1e}"
    )


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.side:
        run_side(
            options.side, model_name=options.model, class_count=options.classes, out=options.out
        )
    else:
        report(measure(options.model, options.classes, options.repeats))


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_head_equals_open_clips_and_is_reported() -> None:
    report(measure("ViT-B-32", 20, repeats=1))


if __name__ == "__main__":
    main()
