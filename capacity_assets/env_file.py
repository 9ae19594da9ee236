"""The file `.env`: what it holds, or one sentence that says why it cannot be used.

What a variable means is decided in `settings`.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

ENV_FILE = ".env"
LARGEST_BYTES = 1 << 20
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# A virtual environment may have the same name, and is none of our business.
VIRTUAL_ENVIRONMENT = "pyvenv.cfg"


class EnvFileError(ValueError):
    """The file cannot be used; the text says why and what to do, and repeats nothing of it."""


def env_file_values() -> dict[str, str]:
    """Return the variables that the file in the working folder holds; none where there is no file.

    Raises:
        EnvFileError: it is no file, cannot be read, is no text in UTF-8, or has a line that is no variable.
    """
    path = Path(ENV_FILE)
    if not path.exists() or (path / VIRTUAL_ENVIRONMENT).exists():
        return {}
    if not path.is_file():
        raise EnvFileError(f"{path.resolve()} is not a file. Rename it, or start capacity in another folder.")
    text = _text(path)
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise EnvFileError(f"line {binding.original.line} of {path.resolve()} is not NAME=value.")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise EnvFileError(f"{path.resolve()} cannot be read: {error.strerror}.") from None
    if len(content) > LARGEST_BYTES:
        raise EnvFileError(f"{path.resolve()} is larger than {LARGEST_BYTES >> 20} MiB, so it holds no variables.")
    if content.startswith(UTF_16):
        raise EnvFileError(f"{path.resolve()} is in UTF-16, as some editors write it. Save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise EnvFileError(f"{path.resolve()} is not UTF-8 text. Save it as UTF-8.")
    return text
