"""The two pages that a new user reads first, as what is to be run: their shell commands and their Python, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGES = ("README.md", "docs/start/first-ten-minutes.md")
OUTPUTS = ("--out", "--html")
SETUP = ("make", "pip", "source")
"""Programs that make the environment, in which a test already runs."""


@dataclass(frozen=True)
class Piece:
    """What a reader would paste at once: one shell command, or one block of Python."""

    text: str
    is_python: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text.replace("\\\n", " "), comments=True)

    @property
    def outputs(self) -> list[str]:
        """The files and directories that a command writes."""
        made = self.words[2:3] if self.words[:2] == ["trimtab", "make"] else []
        return [*made, *(after for flag, after in zip(self.words, self.words[1:], strict=False) if flag in OUTPUTS)]

    @property
    def inputs(self) -> list[str]:
        """The files and directories that a command reads: words like a path, without `NAME=` and `:WEIGHT`."""
        words = [word for word in self.words[1:] if not re.search(r"\s|https?://", word)]
        paths = [re.sub(r":-?[\d.]+$", "", word.rpartition("=")[2]) for word in words]
        return [path for path in paths if re.search(r"/|\.[a-z]\w*$", path) and path not in self.outputs]


def pieces(page: str) -> list[Piece]:
    """All that a page tells a reader to paste, in order; blocks of other languages are for reading."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    found: list[Piece] = []
    for language, block in blocks:
        if language == "python":
            found.append(Piece(block, is_python=True))
        elif language == "":
            found += [Piece(command) for command in _commands(block)]
    return found


def inline_commands(page: str) -> list[Piece]:
    """The whole commands of trimtab that stand within a sentence."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    return [Piece(" ".join(code.split())) for code in re.findall(r"`(trimtab [a-z][^`]*)`", prose)]


def read(repository: Path, page: str) -> str:
    return (repository / page).read_text(encoding="utf-8")


def _commands(block: str) -> Iterator[str]:
    """A command goes on in the next line after a backslash and within quotes."""
    command = ""
    for line in block.splitlines():
        command = f"{command}\n{line}" if command else line
        if not command.endswith("\\") and _is_whole(command):
            if shlex.split(command, comments=True):
                yield command
            command = ""
    assert not command, f"a quote is not closed: {command}"


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True
