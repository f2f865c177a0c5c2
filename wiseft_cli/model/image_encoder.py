"""Build an image encoder from a model config, without its text tower.

Only this module uses open_clip's private tower builder: its public API builds image and text
towers together. open_clip is therefore capped at the tested minor version, and a test compares
each family with the full model, bit for bit. Drawing the initial weights of a large model takes
longer than reading its file, so initialization is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.model import _build_vision_tower
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from wiseft_cli.errors import ModelError
from wiseft_cli.model.quiet import quiet_libraries

_GET_DEVICE: Any = Tensor.device.__get__
_INITIALIZERS = {
    "uniform_", "normal_", "trunc_normal_", "fill_", "zero_", "zeros_", "ones_", "constant_",
    "copy_", "erfinv_", "mul_", "add_", "clamp_", "kaiming_uniform_", "kaiming_normal_",
    "xavier_uniform_", "xavier_normal_",
}  # fmt: skip
"""Methods and functions of `torch.nn.init` that set a tensor in place and return it."""


def image_encoder_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an open_clip model config that determines the image encoder.

    timm's pretrained weights are turned off because the encoder's own are loaded later. CoCa's
    `output_tokens` is turned off because the encoder would return tokens beside its features.

    Args:
        model_config: open_clip's model config with `embed_dim`, `vision_cfg` and optionally
            `quick_gelu`; other fields are ignored.
    Raises:
        ModelError: `embed_dim` or `vision_cfg` is missing.
    """
    for field in ("embed_dim", "vision_cfg"):
        if field not in model_config:
            raise ModelError(f"the model config has no {field}")
    vision = {**model_config["vision_cfg"], "output_tokens": False}
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    return {
        "embed_dim": model_config["embed_dim"],
        "quick_gelu": bool(model_config.get("quick_gelu", False)),
        "vision_cfg": vision,
    }


def build_image_encoder(model_config: Mapping[str, Any]) -> nn.Module:
    """Build open_clip's image tower without weights; `assign_weights` makes it usable.

    Parameters are on the meta device, so none is allocated or initialized. Buffers are real,
    because those outside the state dict (rotary embeddings) have values that no file contains. A
    tower that cannot be built in this way, or whose buffers would depend on its parameters, is
    built normally. The state of torch's global generator is preserved.

    Args:
        model_config: open_clip's model config; see `image_encoder_config`.
    Returns:
        The tower in evaluation mode; images (B, 3, H, W) -> image features (B, D).
    Raises:
        ModelError: open_clip or timm cannot build this config.
    """
    config = image_encoder_config(model_config)
    arguments = (config["embed_dim"], config["vision_cfg"], config["quick_gelu"])
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        try:
            with parameters_on_meta():
                tower: nn.Module = _build_vision_tower(*arguments)
            if not any(buffer.is_meta for buffer in tower.buffers()):
                return apply_activation(tower, config["vision_cfg"]).eval()
        except Exception:
            pass  # some towers need the values of their parameters; a wrong config fails below
        try:
            tower = _build_vision_tower(*arguments)
        except Exception as error:  # a config is free-form, and open_clip checks little of it
            raise ModelError(
                f"the image encoder cannot be built from its config: {error}",
                hint="the checkpoint may need a newer open_clip or timm; update them",
            ) from None
    return apply_activation(tower, config["vision_cfg"]).eval()


def apply_activation(image_encoder: nn.Module, vision_cfg: Mapping[str, Any]) -> nn.Module:
    """Give a tower of timm the approximation of GELU that its config states.

    open_clip passes `act_kwargs` to its own towers only. SigLIP was trained with the
    approximation, which timm has in some of its towers.

    Returns:
        The tower, which is changed.
    """
    approximate = (vision_cfg.get("act_kwargs") or {}).get("approximate")
    if vision_cfg.get("timm_model_name") and approximate is not None:
        for module in image_encoder.modules():
            if isinstance(module, nn.GELU):
                module.approximate = approximate
    return image_encoder


def assign_weights(image_encoder: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Make the tensors of a state dict the parameters of an encoder, without a copy.

    Args:
        image_encoder: The result of `build_image_encoder`; it is changed and returned.
        state_dict: All tensors of the encoder's state dict and no others.
    Raises:
        ModelError: Names or shapes differ.
    """
    try:
        image_encoder.load_state_dict(state_dict, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the image encoder: {error}") from None
    return image_encoder


class SkipInitialization(TorchFunctionMode):
    """Build modules with uninitialized parameters; buffers are set as usual.

    All parameters must be loaded afterwards.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _INITIALIZERS:
            target = next(iter((*args, *(kwargs or {}).values())))
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules with parameters on the meta device; buffers are real."""

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        with _ComputeOnMeta():
            yield
    finally:
        hook.remove()


class _ComputeOnMeta(TorchFunctionMode):
    """Support what towers do with meta parameters while they are built.

    Initialization is skipped, because each random draw on the meta device is slow and useless.
    Towers that compute with parameters (ViTamin and MobileCLIP-B run their stem to find its
    output shape) compute on the meta device. Towers that create a buffer on the device of a
    parameter (Swin) create it on the CPU.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (*args, *(kwargs or {}).values())
        if not any(isinstance(item, Tensor) and item.is_meta for item in given):
            return func(*args, **(kwargs or {}))
        if func == _GET_DEVICE:
            return torch.device("cpu")
        if getattr(func, "__name__", "") in _INITIALIZERS:
            return given[0]

        def to_meta(item: Any) -> Any:
            return item.to("meta") if isinstance(item, Tensor) else item

        return func(
            *map(to_meta, args), **{name: to_meta(item) for name, item in (kwargs or {}).items()}
        )
