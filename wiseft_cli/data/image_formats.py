"""Which files are images, by the extension of their names, and what reads the other pictures.

Pillow reads more formats with plugins, which are imported only when an image needs one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from wiseft_cli.errors import list_some

IMAGE_EXTENSIONS = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name extensions of images, in lower case."""


class Plugin(NamedTuple):
    """A package that teaches Pillow a format.

    Attributes:
        module: The module to import.
        remedy: How to install it.
        register: Name of the function that registers it; empty if the import does.
    """

    module: str
    remedy: str
    register: str = ""


_HEIF = Plugin(
    "pillow_heif",
    "pillow-heif reads it: pip install 'wiseft-cli[heif]'",
    "register_heif_opener",
)
_JPEG_XL = Plugin("pillow_jxl", "pillow-jxl-plugin reads it: pip install pillow-jxl-plugin")
_PLUGIN_OF_EXTENSION = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".heifs", ".hif"), _HEIF),
    ".jxl": _JPEG_XL,
}
"""Extensions of images if the plugin is installed."""

_RAW_EXTENSIONS = frozenset(
    {".3fr", ".ari", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr"}
    | {".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf"}
    | {".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
"""Camera raw formats; Pillow would read the small preview of some of them."""

_OTHER_PICTURE_EXTENSIONS = frozenset(
    {".bpg", ".cin", ".cur", ".dcm", ".dds", ".dpx", ".eps", ".exr", ".fit", ".fits", ".flif"}
    | {".hdr", ".icns", ".ico", ".iff", ".j2c", ".j2k", ".jng", ".jpc", ".jpf", ".jpm", ".jpx"}
    | {".jxr", ".mng", ".mpo", ".nii", ".pam", ".pcd", ".pcx", ".pfm", ".pic", ".pict", ".psb"}
    | {".psd", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".svg", ".svgz", ".tga", ".vtf"}
    | {".wbmp", ".wdp", ".wmf", ".xbm", ".xcf", ".xpm"}
)
_NOT_PICTURES = frozenset(
    {".csv", ".db", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".tsv", ".txt"}
    | {".url", ".xml", ".yaml", ".yml"}
)
"""Extensions of files that often lie beside images; ignored without a word."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x0a", b"8BPS")
_BRANDS_OF_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})


def is_image_name(file_name: str) -> bool:
    """Return whether a file is an image by its name."""
    extension = extension_of(file_name)
    plugin = _PLUGIN_OF_EXTENSION.get(extension)
    return extension in IMAGE_EXTENSIONS or (plugin is not None and _is_installed(plugin.module))


def is_picture_name(file_name: str) -> bool:
    """Return whether a file is a picture by its name, even in a format that is not read."""
    extension = extension_of(file_name)
    return is_image_name(file_name) or extension in {
        *_PLUGIN_OF_EXTENSION,
        *_RAW_EXTENSIONS,
        *_OTHER_PICTURE_EXTENSIONS,
    }


def is_raw_name(file_name: str) -> bool:
    """Return whether a file is a camera raw file by its name."""
    return extension_of(file_name) in _RAW_EXTENSIONS


def extension_of(file_name: str) -> str:
    """Return the extension of a file name in lower case, with its dot; empty without one."""
    return os.path.splitext(file_name)[1].lower()


def remedy_for(file_name: str, header: bytes = b"") -> str | None:
    """Return how to read a file that cannot be read, or None if that is unknown.

    Args:
        file_name: Its name or path.
        header: Its first 12 bytes, which tell HEIF and AVIF whatever the name is.
    """
    extension = extension_of(file_name)
    brand = header[8:12] if header[4:8] == b"ftyp" else b""
    if extension == ".avif" or brand in (b"avif", b"avis"):
        return "Pillow reads AVIF from version 11.3 on: pip install --upgrade pillow"
    plugin = _HEIF if brand in _BRANDS_OF_HEIF else _PLUGIN_OF_EXTENSION.get(extension)
    if plugin is not None and not _is_installed(plugin.module):
        return plugin.remedy
    if extension in _RAW_EXTENSIONS:
        return "a camera raw file: convert it to JPEG, PNG or TIFF"
    return None


def has_image_content(path: str) -> bool:
    """Return whether a regular file begins like an image, whatever its name is."""
    try:
        with open(path, "rb") as file:
            header = file.read(12)
    except OSError:
        return False
    is_riff = header[:4] == b"RIFF" and header[8:] == b"WEBP"
    return header.startswith(_SIGNATURES) or is_riff or header[4:8] in (b"ftyp", b"JXL ")


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


@cache
def register_plugins() -> bool:
    """Register the installed plugins with Pillow, and return whether there are any."""
    plugins = [plugin for plugin in {_HEIF, _JPEG_XL} if _is_installed(plugin.module)]
    for plugin in plugins:
        module = import_module(plugin.module)
        if plugin.register:
            getattr(module, plugin.register)()
    return bool(plugins)


@dataclass
class IgnoredFiles:
    """Files of a folder that are not images, counted by extension."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, path: str) -> None:
        """Count a file, unless files of its kind often lie beside images."""
        extension = extension_of(path)
        if extension not in _NOT_PICTURES:
            self.counts[extension] += 1
            self.first.setdefault(extension, path)

    def __str__(self) -> str:
        """Return the number of files of each extension, an example, and what reads them."""
        return "; ".join(list_some([*self._lines()]))

    def _lines(self) -> Iterable[str]:
        for extension, count in self.counts.most_common():
            remedy = remedy_for(self.first[extension])
            yield (
                f"{count:,} {extension or 'without an extension'} (such as {self.first[extension]}"
                + (f"; {remedy})" if remedy else ")")
            )
