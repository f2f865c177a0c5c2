"""The history of a checkpoint as a shell script that makes it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wiseft_cli.checkpoint.card import Card, HistoryEntry, closed_history
from wiseft_cli.checkpoint.digest import shorten

_RESOLVED = ("steps", "warmup_steps", "micro_batch_size")
"""Entries of a card's recipe that are not keys of a recipe file, or are written in another way."""


def history_script(card: Card) -> Iterator[str]:
    """Yield the lines of a script that makes a checkpoint from its first inputs.

    Every intermediate file is named by the first digits of its digest. What the history does not
    hold is a variable at the start of the script: image sets, model weights, and checkpoints
    without a history. Each has its digest or fingerprint beside it. No text of the card is a part
    of the script unless it is quoted.
    """
    entries = closed_history(card)
    made = {entry.output for entry in entries}
    needed: dict[str, str] = {}
    commands: list[str] = []
    for entry in entries:
        for item in entry.inputs:
            if item.digest not in made:
                needed.setdefault(_variable(item.role, item.digest), item.digest)
        names = [_file(item.digest, item.role, made) for item in entry.inputs]
        try:
            lines = _COMMANDS.get(entry.command, _unknown)(entry, names, needed)
        except (AttributeError, KeyError, TypeError, ValueError):  # options of another form
            lines = _unknown(entry, names, needed)
        commands += ["", f"# wiseft {entry.version}: {entry.output or card.digest}", *lines]
    yield "set -eu"
    for name, digest in needed.items():
        yield f"{name}=  # {digest}"
    yield from commands


def _zeroshot_head(entry: HistoryEntry, inputs: list[str], needed: dict[str, str]) -> list[str]:
    options, note = dict(entry.options), []
    words = ["wiseft zeroshot-head", "--model", shlex.quote(str(options.pop("model", None)))]
    pretrained = options.pop("pretrained", None)
    weights = options.pop("weights", None)
    if isinstance(pretrained, str) and ":" not in pretrained:
        words += ["--pretrained", shlex.quote(pretrained)]
    elif pretrained is not None:
        words += ["--pretrained", _need(needed, "WEIGHTS", str(weights or pretrained))]
        note = ["# a model from a folder: --model local-dir:DIR, without --pretrained"]
    for name in ("classes", "templates"):
        words += [f"--{name}", _need(needed, name.upper(), str(options.pop(name, None)))]
    if inputs:
        words += ["--image-encoder", *inputs]
    return [*note, " ".join([*words, *_remaining(options), "-o", _output(entry)])]


def _finetune(entry: HistoryEntry, inputs: list[str], needed: dict[str, str]) -> list[str]:
    options, notes = dict(entry.options), []
    train = options.pop("train", {})
    images = _need(needed, "TRAIN", f"{train.get('fingerprint')}, {train.get('n_images')} images")
    recipe = {**options.pop("recipe", {}), "seed": options.pop("seed", 0)}
    recipe["warmup"] = recipe.get("warmup_steps")
    if (size := recipe.get("micro_batch_size")) != recipe.get("batch_size"):
        recipe["micro"] = size
    # The linear classifier of LP-FT is a step of its own in the history.
    omitted = (*_RESOLVED, "lp_ft", "lp_lr")
    keys = {key: value for key, value in recipe.items() if key not in omitted}
    if keys.get("optimizer") == "adamw":  # the default, which older versions had no key for
        del keys["optimizer"]
    if "micro" in keys:
        keys["micro_batch_size"] = keys.pop("micro")
    file = f"{_name(entry.output)}.yaml"
    words = ["wiseft finetune", *inputs, "--train", images, "--recipe", file]
    if (split := train.get("split")) is not None:
        words += ["--val-fraction", shlex.quote(str(split["val_fraction"]))]
    if (few := train.get("selection")) is not None:
        words += ["--shots", shlex.quote(str(few["shots"]))]
    if split or few:
        notes.append("# the fingerprint is that of the images that were selected from the set")
    # The kind of weights that a run wrote beside its last ones: OUT-ema, OUT-epoch-N.
    for name in ("weights", "epoch"):
        if (kind := options.pop(name, None)) is not None:
            notes.append(f"# the file with the weights of {name} {json.dumps(kind)} of this run")
    selection = options.pop("selection", None)
    if selection is not None and split is not None:
        words += ["--keep", "best"]
    elif selection is not None:
        facts = f"{selection.get('fingerprint')}, {selection.get('n_images')} images"
        val = _need(needed, "VAL", facts)
        name = shlex.quote(str(selection.get("set")))
        words += ["--val", f"{name}={val}", "--keep", f"best:{name}"]
    return [
        *notes,
        f"cat > {file} <<'END'",
        *(f"{key}: {json.dumps(value)}" for key, value in sorted(keys.items())),
        "END",
        " ".join([*words, *_remaining(options), "-o", _output(entry)]),
    ]


def _merge(entry: HistoryEntry, inputs: list[str], _needed: dict[str, str]) -> list[str]:
    options = dict(entry.options)
    own = dict(options.pop("method_options", {}))
    layers = own.pop("layer_alpha", ())
    weights = [text for text in options.pop("weights", ()) if "/" not in text]
    fishers = [f for f, item in zip(inputs, entry.inputs, strict=True) if item.role == "fisher"]
    words = [f"wiseft {entry.command}"]
    words += [file for file in inputs if file not in fishers]
    # In JSON, so that no text of a card becomes a line of the script.
    selection = options.pop("selection", None)
    notes = [f"# an image set selected the inputs: {json.dumps(selection)}"] if selection else []
    if (adapters := options.pop("adapters", None)) is not None:
        notes.append(f"# inputs that are LoRA adapters merged in memory: {json.dumps(adapters)}")
    if options.get("match_names"):
        notes.append("# the digest of a renamed input is that of its renamed tensors")
    words += _remaining({**options, **own})
    for pattern, alpha in layers:
        words += ["--layer-alpha", shlex.quote(f"{pattern}={alpha}")]
    if weights:
        words += ["--weights", shlex.quote(",".join(weights))]
    for file in fishers:
        words += ["--fisher", file]
    return [*notes, " ".join([*words, "-o", _output(entry)])]


def _unknown(entry: HistoryEntry, inputs: list[str], _needed: dict[str, str]) -> list[str]:
    words = [f"wiseft {shlex.quote(entry.command)}", *inputs, *_remaining(entry.options)]
    return [" ".join([*words, "-o", _output(entry)])]


_COMMANDS: Mapping[str, Callable[[HistoryEntry, list[str], dict[str, str]], list[str]]] = {
    "zeroshot-head": _zeroshot_head,
    "finetune": _finetune,
    "merge": _merge,
    "soup": _merge,
}


def _remaining(options: Mapping[str, Any]) -> list[str]:
    """Return options whose name and value on the command line are those of the history."""
    words = []
    for name, value in sorted(options.items()):
        option = shlex.quote(f"--{name.replace('_', '-')}")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            text = value if isinstance(value, str) else json.dumps(value)
            words += [option, shlex.quote(text)]
    return words


def _need(needed: dict[str, str], name: str, value: str) -> str:
    """Return a variable for something that the history does not hold; equal ones share it."""
    variable, number = name, 1
    while needed.setdefault(variable, value) != value:
        number += 1
        variable = f"{name}_{number}"
    return f'"${variable}"'


def _file(digest: str, role: str, made: set[str | None]) -> str:
    return f"{_name(digest)}.safetensors" if digest in made else f'"${_variable(role, digest)}"'


def _variable(role: str, digest: str) -> str:
    letters = (letter if letter.isalnum() else "_" for letter in role.upper() if letter.isascii())
    return f"INPUT_{''.join(letters)}_{_name(digest)}"


def _name(digest: str | None) -> str:
    """Return the first digits of a digest; of another text only letters and digits."""
    return re.sub(r"[^0-9A-Za-z]", "_", shorten(digest))


def _output(entry: HistoryEntry) -> str:
    return f"{_name(entry.output)}.safetensors"
