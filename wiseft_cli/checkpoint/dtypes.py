"""The element types of safetensors: their sizes, and the numpy types that hold them.

It does not convert values; `merging/rounding.py` does.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from wiseft_cli.errors import CheckpointError

SIZES_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by the format's name for the type."""

FLOATING_DTYPES = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"}
)
"""Types whose numbers may be infinite or NaN, and of which numpy can tell."""

_NUMPY_TYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    # The format's E4M3 is the variant without infinities, as in torch.
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_NAMES = {numpy_type: name for name, numpy_type in _NUMPY_TYPES.items()}


def numpy_dtype(name: str) -> np.dtype:
    """Return the little-endian numpy type that holds the safetensors type `name`.

    Raises:
        CheckpointError: numpy has no such type (packed 4- and 6-bit floats).
    """
    if name not in _NUMPY_TYPES:
        raise CheckpointError(f"tensors of type {name} cannot be read as an array")
    return _NUMPY_TYPES[name]


def safetensors_dtype(dtype: np.dtype) -> str:
    """Return the safetensors name of a numpy type.

    Raises:
        CheckpointError: The format has no such type (strings, float128, complex128).
    """
    name = _NAMES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None:
        raise CheckpointError(f"arrays of type {dtype} cannot be stored in safetensors")
    return name
