"""Name the likely cause of differences between two checkpoints, and the remedy.

Names and shapes of both files are compared: names first without the prefixes and wrappers that
training programs add, then what remains. Nothing here reads data or rejects a file.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.errors import list_some
from wiseft_cli.merging.factored import find_factored_weights

_SIDES = ("first", "second")
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|_forward_module)\."
)
_MEANINGFUL_PREFIXES = ("visual.", "vision_model.", "text_model.")
"""Prefixes without which a file does not fit its own model class."""

_LIGHTNING_PREFIXES = ("optimizer_states.", "lr_schedulers.", "callbacks.", "loops.")
_HUGGING_FACE = re.compile(r"(?:^|\.)(?:vision_model|text_model|visual_projection)\.|\.self_attn\.")
_OPEN_CLIP = re.compile(r"(?:^|\.)(?:resblocks|visual|trunk)\.|in_proj_weight$")
_TEXT_TOWER = re.compile(
    r"^(?:transformer\.resblocks\.|token_embedding\.|ln_final\.|positional_embedding$|attn_mask$"
    r"|text\.|text_model\.|text_projection)"
)
_BUFFER = re.compile(
    r"(?:^|[._])(?:position_ids|attn_mask|inv_freq|relative_position_index|num_batches_tracked)$"
)
_HEAD = re.compile(
    r"(?:^|\.)(?:classification_head|classifier|head|heads|fc|lm_head|score|probe|linear_probe)"
    r"(?:\.[a-z0-9_]+)*\.(?:weight|bias)$"
)
_POSITIONS = re.compile(r"pos(?:ition(?:al)?)?_embed")
_VOCABULARY = re.compile(r"(?:token_embedding|embed_tokens|word_embeddings)(?:\.weight)?$")
_BLOCK = re.compile(r"^(.*?)\.(\d+)\.")

ZERO_3 = "DeepSpeed ZeRO-3 saves them in each process; gather the weights with its zero_to_fp32.py"
_ARCHITECTURES = "the architectures differ"
_CLASS_LISTS = "the class lists differ; fine-tune from this zero-shot checkpoint"

_MATCH_NAMES = "--match-names matches such names"

Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Renaming:
    """Prefixes and wrappers without which the names of two files match.

    Attributes:
        prefixes: The prefix of each file's names; empty where there is none.
        wrappers: Wrappers within each file's names, such as `_orig_mod.`.
        sides: The tensors of each file by their names without the wrappers.
    """

    prefixes: tuple[str, str]
    wrappers: tuple[Sequence[str], Sequence[str]]
    sides: tuple[Tensors, Tensors]

    def apply(self) -> tuple[Tensors, Tensors]:
        """Return the tensors of both files by names without the prefix, or both with it.

        Names that lack the prefix stay.
        """
        target = next((prefix for prefix in self.prefixes if prefix in _MEANINGFUL_PREFIXES), "")
        first, second = (
            {
                target + n.removeprefix(prefix) if n.startswith(prefix) else n: info
                for n, info in tensors.items()
            }
            for tensors, prefix in zip(self.sides, self.prefixes, strict=True)
        )
        return first, second

    def describe(self) -> str:
        """Return what to change in the names of which file."""
        texts = []
        for side, wrappers in zip(_SIDES, self.wrappers, strict=True):
            if wrappers:
                shown = " and ".join(map(repr, wrappers))
                texts.append(f"the names in the {side} file contain {shown}; save it without them")
        first, second = self.prefixes
        if first and second:
            texts.append(
                f"the names in the first file start with {first!r}, those in the second with "
                f"{second!r}; save both without the prefix"
            )
        elif prefix := first or second:
            side, other = _SIDES if first else _SIDES[::-1]
            remedy = "save it without the prefix"
            if prefix in _MEANINGFUL_PREFIXES:
                remedy = f"add the prefix to those in the {other} file"
            texts.append(f"the names in the {side} file start with {prefix!r}; {remedy}")
        return "; ".join(texts)


def find_cause(tensors_0: Tensors, tensors_1: Tensors) -> str:
    """Return the likely cause of differences in names, shapes or dtypes, and its remedy."""
    sides = (tensors_0, tensors_1)
    if cause := _cause_in_storage(sides) or _cause_in_naming_scheme(sides):
        return cause
    renaming = find_renaming(*sides)
    texts = [renaming.describe()] if renaming else []
    texts += _causes_in_tensors(renaming.apply() if renaming else sides)
    texts += [_MATCH_NAMES] if renaming else []
    return "; ".join(texts) or "choose the dtype to store, for example --dtype float32"


def _cause_in_storage(sides: tuple[Tensors, Tensors]) -> str | None:
    """Return the cause if a file stores weights or anything else in a form of its own."""
    for side, tensors, other in zip(_SIDES, sides, sides[::-1], strict=True):
        if any(name.startswith(_LIGHTNING_PREFIXES) for name in tensors):
            return (
                f"the {side} file is a Lightning checkpoint; save only the state dict of its model"
            )
        for weight in find_factored_weights(tensors):
            infos = [(tensors[name], other.get(name)) for name in weight.names if name in tensors]
            if any(b is None or (a.dtype, a.shape) != (b.dtype, b.shape) for a, b in infos):
                return f"the {side} file has {weight.form.name} ({weight.names[0]}); " + (
                    weight.form.remedy
                )
        if any(info.shape == (0,) and _has_data(other.get(n)) for n, info in tensors.items()):
            return f"the {side} file has empty tensors, as {ZERO_3}"
    return None


def _has_data(info: TensorInfo | None) -> bool:
    return info is not None and info.nbytes > 0


def _cause_in_naming_scheme(sides: tuple[Tensors, Tensors]) -> str | None:
    is_hugging_face = [any(map(_HUGGING_FACE.search, tensors)) for tensors in sides]
    for side, here, there, other in zip(
        _SIDES, is_hugging_face, is_hugging_face[::-1], sides[::-1], strict=True
    ):
        if here and not there and any(map(_OPEN_CLIP.search, other)):
            return (
                f"the {side} file has Hugging Face tensor names (vision_model.*); convert it "
                f"with `wiseft convert`; {_MATCH_NAMES}"
            )
    return None


def find_renaming(tensors_0: Tensors, tensors_1: Tensors) -> Renaming | None:
    """Return the prefixes and wrappers without which more names match, or None.

    A match has the same name and shape. At least half of the smaller file must match.
    """
    wrappers = _inner_wrappers(tensors_0), _inner_wrappers(tensors_1)
    plain = remove_wrappers(tensors_0), remove_wrappers(tensors_1)
    needed = min(len(tensors_0), len(tensors_1)) / 2
    best, best_score = None, max(_count_matches(tensors_0, tensors_1), needed - 0.5)
    for found, sides in ((((), ()), (tensors_0, tensors_1)), (wrappers, plain)):
        for prefixes in _candidate_prefixes(*sides):
            first, second = map(_remove_prefix, sides, prefixes)
            if (score := _count_matches(first, second)) > best_score:
                best, best_score = Renaming(prefixes, found, sides), score
    return best


def remove_wrappers(tensors: Tensors) -> Tensors:
    """Return tensors by names without `module.`, `_orig_mod.` and other wrappers."""
    return {_WRAPPERS.sub("", name): info for name, info in tensors.items()}


def _inner_wrappers(tensors: Tensors) -> tuple[str, ...]:
    return tuple(sorted({wrapper for name in tensors for wrapper in _WRAPPERS.findall(name)}))


def _candidate_prefixes(tensors_0: Tensors, tensors_1: Tensors) -> list[tuple[str, str]]:
    """Return pairs of prefixes whose removal makes names equal, the most frequent first."""
    prefixes_of: dict[str, set[str]] = defaultdict(set)
    for name in tensors_1:
        for prefix, suffix in _splits(name):
            if len(prefixes_of[suffix]) < 8:
                prefixes_of[suffix].add(prefix)
    votes = Counter(
        (prefix, other)
        for name in tensors_0
        for prefix, suffix in _splits(name)
        for other in prefixes_of.get(suffix, ())
    )
    ranked = sorted(votes, key=lambda pair: (-votes[pair], len(pair[0]) + len(pair[1]), pair))
    return ranked[:16]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield every split of a name before a component: "", whole name; "a.", the rest; ..."""
    yield "", name
    for match in re.finditer(r"\.", name):
        yield name[: match.end()], name[match.end() :]


def _remove_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names have a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _count_matches(tensors_0: Tensors, tensors_1: Tensors) -> int:
    return sum(
        name in tensors_1 and tensors_1[name].shape == info.shape
        for name, info in tensors_0.items()
    )


def _causes_in_tensors(sides: tuple[Tensors, Tensors]) -> list[str]:
    first, second = sides
    common = first.keys() & second.keys()
    only = sorted(first.keys() - common), sorted(second.keys() - common)
    different = sorted(name for name in common if first[name].shape != second[name].shape)
    if not common:
        return [_cause_of_nothing_in_common(first, second)]
    texts = _causes_in_shapes(first, second, different)
    if any(only) and not any(text.startswith(_ARCHITECTURES) for text in texts):
        texts.append(_cause_in_missing(sides, only))
    return texts


def _causes_in_shapes(first: Tensors, second: Tensors, names: list[str]) -> list[str]:
    """Return one cause per kind of difference; only that of weights if some of these differ."""
    examples: dict[str, str] = {}
    for name in names:
        examples.setdefault(_kind_of_shapes(name, first[name].shape, second[name].shape), name)
    if _ARCHITECTURES in examples:
        examples = {_ARCHITECTURES: examples[_ARCHITECTURES]}
    return [
        kind
        if kind == _CLASS_LISTS
        else f"{kind}: {name} has shape {first[name].shape} in the first file and "
        f"{second[name].shape} in the second"
        for kind, name in examples.items()
    ]


def _kind_of_shapes(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> str:
    """Return what a difference between the shapes of one tensor says about the files."""
    if [extent for extent in a if extent != 1] == [extent for extent in b if extent != 1]:
        return "the same values are stored in other shapes, so reshape them in one file"
    if name.startswith("classification_head."):
        return _CLASS_LISTS
    if _HEAD.search(name):
        return "the heads are for different numbers of classes"
    if _POSITIONS.search(name):
        return "the models are for different image sizes or text lengths"
    if _VOCABULARY.search(name):
        return "the vocabularies differ"
    return _ARCHITECTURES


def _cause_of_nothing_in_common(first: Tensors, second: Tensors) -> str:
    shapes = [
        Counter(t.shape for t in side.values() if prod(t.shape) > 1) for side in (first, second)
    ]
    n_equal = (shapes[0] & shapes[1]).total()
    if n_equal and 2 * n_equal >= min(counts.total() for counts in shapes):
        return (
            "no name is in both files, although most shapes are; convert the names of one file to "
            "those of the other"
        )
    return "no name is in both files, and the shapes differ: they hold different models"


def _cause_in_missing(sides: tuple[Tensors, Tensors], only: tuple[list[str], list[str]]) -> str:
    keeps = "--missing copy keeps tensors that only one file has"
    names = [*only[0], *only[1]]
    if all(map(_BUFFER.search, names)):
        kinds = sorted({name.rpartition(".")[2] for name in names})
        return f"only one file has the buffers {', '.join(kinds)}, which are not weights; {keeps}"
    for side, other, mine, others in zip(_SIDES, _SIDES[::-1], only, sides[::-1], strict=True):
        if any(map(_TEXT_TOWER.search, mine)) and not any(map(_TEXT_TOWER.search, others)):
            return (
                f"the {side} file is a full CLIP model with its text tower, the {other} only an "
                f"image encoder; {keeps}"
            )
    if all(map(_HEAD.search, names)):
        if only[0] and only[1]:
            return f"the heads have different names ({only[0][0]} and {only[1][0]})"
        side, other = _SIDES if only[0] else _SIDES[::-1]
        shown = ", ".join(list_some(names, limit=3))
        return f"the {side} file has a classification head ({shown}), the {other} has none; {keeps}"
    depths = tuple(map(_count_blocks, sides))
    for blocks in sorted(depths[0].keys() & depths[1].keys()):
        if depths[0][blocks] != depths[1][blocks]:
            return (
                f"{_ARCHITECTURES}, or a file is incomplete: {blocks} has {depths[0][blocks]} "
                f"blocks in the first file and {depths[1][blocks]} in the second"
            )
    for side, other, mine, tensors in zip(_SIDES, _SIDES[::-1], only, sides, strict=True):
        if len(names) == len(mine):
            return (
                f"the {other} file has only {len(tensors) - len(mine)} of the {len(tensors)} "
                f"tensors of the {side}; {keeps}"
            )
    return keeps


def _count_blocks(tensors: Tensors) -> dict[str, int]:
    """Return the number of blocks of each numbered sequence of modules."""
    depths: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.match, tensors)):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths
