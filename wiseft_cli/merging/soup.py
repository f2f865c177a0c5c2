"""Write a soup: the mean of checkpoints, or its merge with their zero-shot checkpoint.

Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wiseft_cli.errors import UsageError
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.merge import MergeReport, merge_checkpoints, soup_checkpoints


def require_several(checkpoints: Sequence[Path]) -> None:
    """Reject a soup of fewer than two checkpoints."""
    if len(checkpoints) < 2:
        raise UsageError(
            f"a soup needs at least two checkpoints, {len(checkpoints)} given",
            hint="wiseft soup seed0.safetensors seed1.safetensors -o soup.safetensors",
        )


def write_soup(
    checkpoints: Sequence[Path],
    output: Path,
    *,
    base: Path | None = None,
    alpha: Alpha | None = None,
    selection: Mapping[str, Any] | None = None,
    **options: Any,
) -> MergeReport:
    """Write the mean of checkpoints, or its merge with their zero-shot checkpoint.

    Both are computed in float64 and rounded once: base + alpha * mean of (checkpoint - base).

    Args:
        checkpoints: The checkpoints of the mean.
        output: File to write.
        base: The zero-shot checkpoint, or None.
        alpha: Weight of the mean, if there is a base.
        selection: Record of the held-out set that chose the checkpoints.
        options: Of `merge_checkpoints`: `dtype`, `threads`, `is_strict`, `force`, `on_progress`.
    Raises:
        CheckpointError: An input is damaged, or they cannot be averaged.
        OutputError: The output cannot be written.
    """
    if base is None:
        return soup_checkpoints(checkpoints, output, selection=selection, **options)
    return merge_checkpoints(base, checkpoints, [(alpha, output)], selection=selection, **options)


def parse_soup_alpha(text: str | None, *, has_base: bool) -> Alpha | None:
    """Return the alpha of the merge with the zero-shot checkpoint, 0.5 unless given.

    Raises:
        UsageError: The text is not one number in [0, 1], or there is no zero-shot checkpoint.
    """
    if not has_base:
        if text is not None:
            raise UsageError(
                "--alpha needs --base, the zero-shot checkpoint to merge the soup with"
            )
        return None
    alphas = parse_alphas(["0.5" if text is None else text])
    if len(alphas) != 1:
        raise UsageError(f"--alpha {text}: {len(alphas)} values, expected one")
    return alphas[0]
