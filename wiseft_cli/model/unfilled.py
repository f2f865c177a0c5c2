"""Build modules whose weights follow without drawing weights that would be thrown away.

Drawing the initial weights of a large model takes longer than reading its file.
It does not load weights; who builds so must load every parameter, strictly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

_DEVICE_OF: Any = Tensor.device.__get__
_FILLING = frozenset(
    [
        "uniform_",
        "normal_",
        "trunc_normal_",
        "fill_",
        "zero_",
        "zeros_",
        "ones_",
        "constant_",
        "copy_",
        "erfinv_",
        "mul_",
        "add_",
        "clamp_",
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "xavier_normal_",
    ]
)
"""Steps of initialisation, of tensors and of `torch.nn.init`; each returns what it fills."""


class FillingLeftOut(TorchFunctionMode):
    """Within it parameters keep whatever their memory held; buffers are made as always.

    What is not a step of the list, such as torch's redrawing of values that are out of bounds, is
    done for nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _FILLING:
            filled = next(iter((*args, *(kwargs or {}).values())))
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **(kwargs or {}))


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Move every parameter to the meta device as soon as a module registers it.

    Buffers are real, since those outside the state dict (rotary embeddings) hold values that no
    file has.
    """

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        with _ValuesLeftOut():
            yield
    finally:
        hook.remove()


class _ValuesLeftOut(TorchFunctionMode):
    """What towers do with parameters on the meta device while they are built.

    Filling them is skipped: there each step of a random draw costs a while and does nothing.
    Where a tower computes with parameters (ViTamin and MobileCLIP-B run their stem for its
    shape), the other side of it goes without values too. A tower that lays a buffer where a
    parameter is (Swin) is told the CPU.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (*args, *(kwargs or {}).values())
        if not any(isinstance(item, Tensor) and item.is_meta for item in given):
            return func(*args, **(kwargs or {}))
        if func == _DEVICE_OF:
            return torch.device("cpu")
        if getattr(func, "__name__", "") in _FILLING:
            return given[0]

        def without_values(item: Any) -> Any:
            return item.to("meta") if isinstance(item, Tensor) else item

        return func(
            *map(without_values, args),
            **{name: without_values(item) for name, item in (kwargs or {}).items()},
        )
