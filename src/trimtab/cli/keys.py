"""API keys as a server is given them. One that could never be sent, or that nothing stands for, is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab import environment
from trimtab.errors import DataError, OptionError


def read_keys(flags: Sequence[str], file: str | None, variable: str | None) -> list[str]:
    """The keys of --api-key, of the lines of a file, and of $TRIMTAB_API_KEY (None: not set).

    Raises OptionError, or DataError for the file: an empty key, one with white space, one that is not ASCII. No
    message holds a key.
    """
    for key in flags:
        _check(key, "--api-key", "Give a key, or leave the flag out")
    keys = list(flags)
    if variable is not None:
        _check(variable, f"${environment.API_KEY.name}", "Set it to a key, or unset it")
        keys.append(variable)
    return keys + ([] if file is None else _lines_of(file))


def _lines_of(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError("not readable as UTF-8; give keys of ASCII characters, one a line.", path=file) from None
    keys = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if key and (fault := _fault(key)):
            raise DataError(f"the key {fault}; give one a line.", path=file, line=number)
        keys += [key] if key else []
    if not keys:
        raise DataError("no key is in it; give one a line.", path=file)
    return keys


def _check(key: str, where: str, way_out: str) -> None:
    if fault := _fault(key):
        raise OptionError(f"The key of {where} {fault}. {way_out}.")


def _fault(key: str) -> str | None:
    """What is wrong with a key: a header carries visible characters of ASCII, and no others for certain."""
    if not key.strip():
        return "is empty"
    if any(character.isspace() for character in key):
        return "has white space in it"
    if not (key.isascii() and key.isprintable()):
        return "has characters that are not ASCII, which clients write in different ways"
    return None
