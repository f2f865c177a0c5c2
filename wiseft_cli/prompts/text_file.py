"""Read a small text file that a person wrote, with one error for all that can be wrong.

It does not know what the text means.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_cli.errors import WiseftError


def read_text(path: Path, error_type: type[WiseftError]) -> str:
    """Return the file's text, UTF-8 with or without a byte order mark.

    Raises:
        error_type: The file is missing, unreadable or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise error_type(
            f"{path}, line {line}: is not UTF-8 text (byte 0x{data[error.start]:02x})",
            hint="save the file as UTF-8",
        ) from None
