"""The layers of a model, by the names of its tensors: patterns of names, and the blocks in order.

Names are those of open_clip, timm and transformers. No tensor is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from wiseft_cli.errors import CheckpointError, UsageError, counted
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.settings import LayerAlpha

_MAX_RANGE = 1000
_TOKEN = re.compile(r"\*|\?|\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)-(\d+)")

_CONTAINERS = frozenset({"resblocks", "blocks", "layers", "layer", "stages", "h"})
"""Modules whose children are numbered blocks, or numbered stages of blocks."""

_LEAVES = frozenset(
    {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "gamma"}
)
"""Last parts of the names of tensors that are shown together as their module."""

_RESNET_STAGE = re.compile(r"layer(\d+)")
_STEM = re.compile(
    r"(?:^|(?<!attnpool)\.)(?:conv[123]|bn[123]|class_embedding|positional_embedding|ln_pre|patchnorm_pre_ln"
    r"|patch_embed|pos_embed|cls_token|reg_token|register_tokens|mask_token|stem|norm_pre"
    r"|embeddings|pre_layr?norm|token_embedding|embed_tokens)(?:\.|$)"
)
"""Tensors before the first block; all others outside the blocks come after the last one."""


def parse_layer_alpha(text: str) -> LayerAlpha:
    """Parse `GLOB=A`.

    Raises:
        UsageError: The pattern is empty or has a wrong range, or A is not a number in [0, 1].
    """
    pattern, separator, alpha = text.rpartition("=")
    if not separator or not pattern:
        raise UsageError(
            f"--layer-alpha {text!r}: expected PATTERN=ALPHA",
            hint="for example --layer-alpha 'visual.transformer.resblocks.{0-5}.*=0.2'",
        )
    return layer_alpha(pattern, alpha)


def layer_alpha(pattern: str, alpha: str) -> LayerAlpha:
    """Return the alpha of a pattern.

    Raises:
        UsageError: The pattern has a wrong range, or `alpha` is not one number in [0, 1].
    """
    _compile(pattern)
    try:
        values = parse_alphas([alpha])
    except UsageError as error:
        raise UsageError(f"--layer-alpha {pattern}: {error.message}", hint=error.hint) from None
    if len(values) != 1:
        raise UsageError(f"--layer-alpha {pattern}: {alpha!r} has {len(values)} values, expected 1")
    return LayerAlpha(pattern, values[0])


def _compile(pattern: str) -> re.Pattern[str]:
    """Translate a pattern: `*` any text, `?` one character, `{0-5}` a range, `{a,b}` a choice."""
    parts, end = [], 0
    for token in _TOKEN.finditer(pattern):
        parts.append(re.escape(pattern[end : token.start()]))
        wild = {"*": ".*", "?": "."}.get(token[0])
        parts.append(wild or f"(?:{'|'.join(_alternatives(token[1], pattern))})")
        end = token.end()
    parts.append(re.escape(pattern[end:]))
    if re.search(r"[{}]", _TOKEN.sub("", pattern)):
        raise UsageError(f"--layer-alpha {pattern}: a brace is not closed")
    return re.compile("".join(parts), re.DOTALL)


def _alternatives(text: str, pattern: str) -> list[str]:
    found: list[str] = []
    for item in text.split(","):
        bounds = _RANGE.fullmatch(item.strip())
        if bounds is None:
            found.append(re.escape(item.strip()))
            continue
        first, last = int(bounds[1]), int(bounds[2])
        if not first <= last < first + _MAX_RANGE:
            raise UsageError(
                f"--layer-alpha {pattern}: {{{item}}} is not a range from a smaller to a larger "
                "number"
            )
        found += map(str, range(first, last + 1))
    return found


def match_layer_alphas(rows: Sequence[LayerAlpha], names: Iterable[str]) -> Mapping[str, Alpha]:
    """Return the alpha of every tensor that a pattern matches; the first match counts.

    Args:
        names: The tensors that are merged.
    Raises:
        UsageError: A pattern matches no tensor, or only tensors that earlier ones match.
    """
    patterns = [_compile(row.pattern) for row in rows]
    used, shadowed = set(), set()
    alphas: dict[str, Alpha] = {}
    names = list(names) if rows else []
    for name in names:
        matching = [i for i, pattern in enumerate(patterns) if pattern.fullmatch(name)]
        if matching:
            used.add(matching[0])
            shadowed.update(matching[1:])
            alphas[name] = rows[matching[0]].alpha
    faults = [
        f"{row.pattern}: every tensor that it matches is matched by an earlier pattern"
        if index in shadowed
        else f"{row.pattern}: matches none of {counted(len(names), 'tensor')}"
        for index, row in enumerate(rows)
        if index not in used
    ]
    if faults:
        raise UsageError(
            "--layer-alpha: a pattern is not used",
            faults=faults,
            hint="`wiseft inspect --tensors` lists the names; a pattern must match a whole name",
        )
    return alphas


@dataclass(frozen=True, order=True)
class Block:
    """One block of a model.

    Attributes:
        tower: Common beginning of the names of the tower's blocks.
        path: Its numbers, from the outermost stage to the block.
        label: Beginning of the names of its tensors.
    """

    tower: str
    path: tuple[int, ...]
    label: str


def find_block(name: str) -> Block | None:
    """Return the block that a tensor belongs to, or None if it is outside the blocks.

    Tensors of a stage that are not in one of its blocks have the stage's number as path.
    """
    parts = name.split(".")
    for start in range(len(parts) - 1):
        end, path = _read_path(parts, start)
        if path:
            prefix = ".".join(parts[:start])
            tower, is_embedding, _ = prefix.partition(".patch_embed")
            # A convolutional trunk that embeds the patches comes before the blocks.
            return Block(tower, (0 if is_embedding else 1, *path), ".".join(parts[:end]))
    return None


def _read_path(parts: Sequence[str], start: int) -> tuple[int, tuple[int, ...]]:
    """Read the numbers of nested blocks from a place in a name; return its end and the numbers."""
    path: list[int] = []
    position = start
    while position < len(parts) - 1:
        stage = _RESNET_STAGE.fullmatch(parts[position])
        if parts[position] in _CONTAINERS and parts[position + 1].isdecimal():
            path.append(int(parts[position + 1]))
            position += 2
        elif stage and parts[position + 1].isdecimal():
            path += [int(stage[1]), int(parts[position + 1])]
            position += 2
        elif path and parts[position].isdecimal():
            path.append(int(parts[position]))
            position += 1
        else:
            break
    return position, tuple(path)


def group_label(name: str) -> str:
    """Return the block of a tensor, or its module if it is outside the blocks."""
    block = find_block(name)
    module, _, leaf = name.rpartition(".")
    return block.label if block else module if module and leaf in _LEAVES else name


def block_position(name: str) -> tuple[int, str, tuple[int, ...]]:
    """Return a key that sorts tensors from the stem through the blocks to the head."""
    block = find_block(name)
    if block:
        return 1, block.tower, block.path
    return (0 if _STEM.search(name) else 2), "", ()


def relative_depths(names: Iterable[str], *, by_place: bool) -> Mapping[str, Fraction]:
    """Return the depth of every tensor: 0 in the first block of its tower, 1 in the last.

    Args:
        by_place: Give tensors after the blocks the depth 1; otherwise all tensors outside the
            blocks have the depth 0.
    Raises:
        CheckpointError: No tensor is in a block.
    """
    names = list(names)
    blocks = {name: find_block(name) for name in names}
    paths: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for block in filter(None, blocks.values()):
        paths[block.tower].add(block.path)
    if not paths:
        raise CheckpointError(
            "method lines: no tensor is in a numbered block, so the model has no depth",
            faults=[f"for example {name}" for name in names[:3]],
            hint="give alphas by name with --layer-alpha and the method linear",
        )
    depths = {tower: _depth_of_paths(found) for tower, found in paths.items()}
    return {
        name: depths[block.tower][block.path]
        if block
        else Fraction(by_place and _STEM.search(name) is None)
        for name, block in blocks.items()
    }


def _depth_of_paths(paths: set[tuple[int, ...]]) -> Mapping[tuple[int, ...], Fraction]:
    """Number the blocks of a tower; a stage's own tensors belong to its first block."""
    stages = {path for path in paths if any(_is_within(other, path) for other in paths)}
    blocks = sorted(paths - stages)
    depth = {path: Fraction(index, max(1, len(blocks) - 1)) for index, path in enumerate(blocks)}
    if len(blocks) == 1:
        depth = {blocks[0]: Fraction(1)}
    for stage in stages:
        depth[stage] = depth[next(path for path in blocks if _is_within(path, stage))]
    return depth


def _is_within(path: tuple[int, ...], stage: tuple[int, ...]) -> bool:
    return len(path) > len(stage) and path[: len(stage)] == stage
