"""Opens an image set from what stands on the command line: `[NAME=]SPEC`.

It decides which kind a spec is; the listing is done by the module of that kind.
"""

from __future__ import annotations

import os
from pathlib import Path

from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import UsageError


def parse_data_spec(spec: str, *, option: str = "--data") -> tuple[str, Path]:
    """Split `[NAME=]DIR`; without a name the folder's own name is taken.

    The part before the first `=` is a name where it contains no `/`: a folder called `a=b`
    is given as `./a=b`.

    Args:
        option: The option that the spec was given with, for messages.
    Raises:
        UsageError: The name or the folder is empty.
    """
    name, equals, folder = spec.partition("=")
    if not equals or "/" in name:
        name, folder = "", spec
        if not folder:
            raise UsageError(f"{option} is empty; expected [NAME=]DIR")
        name = Path(os.path.abspath(folder)).name
    if not name.strip() or not folder:
        raise UsageError(f"{option} {spec!r} has no name or no folder; expected [NAME=]DIR")
    return name.strip(), Path(folder)


def open_image_set(spec: str, *, option: str = "--data") -> ImageSet:
    """List the one image set that a spec names.

    Args:
        spec: `[NAME=]DIR`.
        option: The option that the spec was given with, for messages.
    Raises:
        UsageError: The spec is malformed.
        DatasetError: The set cannot be listed.
    """
    name, path = parse_data_spec(spec, option=option)
    return list_image_folder(path, name=name)


def open_image_sets(spec: str, *, option: str = "--data") -> tuple[ImageSet, ...]:
    """List the image sets that a spec names: one, or those of a suite.

    Raises:
        UsageError: The spec is malformed.
        DatasetError: A set cannot be listed.
    """
    return (open_image_set(spec, option=option),)
