"""The settings of a LoRA adapter: read `adapter_config.json` of PEFT, and reject what is not LoRA.

Source: `peft/tuners/lora/config.py` and `model.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.errors import CheckpointError, brief

_MAX_CONFIG_BYTES = 16 << 20
_MAX_PATTERN = 300
_CHANGES_BASE = re.compile(r"pissa|olora|corda|lora_ga|loftq")
"""Ways to initialize an adapter that change the base model's weights too."""

_SETTINGS = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "bias",
        "peft_type",
        # These do not change what the weights mean.
        "alora_invocation_tokens",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Settings that are read or have no effect here; any other one must have its off value."""


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter that its weights depend on.

    Attributes:
        base: Name of the model it was trained on, as the adapter states it.
        ranks: Rank by pattern of module names.
        alphas: lora_alpha by pattern of module names.
        is_transposed: Whether square weights are stored as (in, out).
        saved_modules: Names of modules that are replaced as a whole, or ends of such names.
    """

    base: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilized: bool
    is_transposed: bool
    saved_modules: tuple[str, ...] = ()

    def scale_of(self, module: str, rank: int, where: str) -> float:
        """Return the factor of B A for a module whose factors have a rank.

        Raises:
            CheckpointError: The settings give the module another rank.
        """
        expected = _by_pattern(self.ranks, module, self.rank)
        if rank != expected:
            raise CheckpointError(
                f"{where}: {module}: its factors have rank {rank}, expected {expected}"
            )
        alpha: float = _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def saves(self, tensor: str) -> bool:
        """Return whether a tensor is in a module that is replaced as a whole."""
        return any(f".{module}." in f".{tensor}" for module in self.saved_modules)


def _by_pattern(values: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in values.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read and check `adapter_config.json`.

    Raises:
        CheckpointError: The adapter is not a plain LoRA, or the file is damaged.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too long")
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise TypeError("expected a JSON object")
        _require_plain_lora(document, path)
        return AdapterConfig(
            base=_checked(document, "base_model_name_or_path", str, None),
            rank=_positive(document.get("r", 8), "r"),
            alpha=_number(document.get("lora_alpha", 8), "lora_alpha"),
            ranks=_patterns(document, "rank_pattern", _positive),
            alphas=_patterns(document, "alpha_pattern", _number),
            is_rank_stabilized=bool(_checked(document, "use_rslora", bool, False)),
            is_transposed=bool(_checked(document, "fan_in_fan_out", bool, False)),
            saved_modules=tuple(map(str, _checked(document, "modules_to_save", list, []))),
        )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError, re.error) as error:
        raise CheckpointError(f"{path}: is not the config of a LoRA adapter: {error}") from None


def _require_plain_lora(document: Mapping[str, Any], path: Path) -> None:
    kind = document.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: the adapter is of the type {brief(str(kind))}, expected LORA",
            hint="merge it with PEFT (merge_and_unload), and give the saved model",
        )
    faults = []
    if document.get("bias", "none") != "none":
        faults.append(f"bias: {brief(str(document['bias']))}")
    start = document.get("init_lora_weights", True)
    if isinstance(start, str) and _CHANGES_BASE.match(start.lower()):
        faults.append(f"init_lora_weights: {brief(start)}, which changes the base model too")
    for name, value in document.items():
        if name not in _SETTINGS and value not in (None, False, 0, "", [], {}):
            faults.append(f"{name}: {brief(json.dumps(value), limit=60)}")
    if faults:
        raise CheckpointError(
            f"{path}: the adapter has settings beyond W_0 + scale * B A",
            faults=faults,
            hint="merge it with PEFT (merge_and_unload), and give the saved model",
        )


def _checked(document: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {brief(repr(value))}")
    return value


def _positive(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError(f"{name} is {brief(repr(value))}, expected a number from 1")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{name} is {brief(repr(value))}, expected a number")
    return float(value)


def _patterns(
    document: Mapping[str, Any], name: str, check: Callable[[Any, str], Any]
) -> dict[str, Any]:
    patterns = _checked(document, name, dict, {})
    for pattern in patterns:
        # A repeated group, or many repetitions, can take forever to match.
        n_repeated = len(re.findall(r"[+*{]", pattern))
        if len(pattern) > _MAX_PATTERN or n_repeated > 3 or re.search(r"[)+*}][+*{]", pattern):
            raise ValueError(f"{name}: the pattern {brief(pattern)} is too complex")
        re.compile(pattern)
    return {pattern: check(value, name) for pattern, value in patterns.items()}
