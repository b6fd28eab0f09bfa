"""Files and directories that are there whole or not at all, and digests that tell one content from another."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trimtab.errors import OutputExistsError

_READ = ("*.json", "*.safetensors", "*.jinja", "*/*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "*.gguf")
"""The files of a directory that a loader may read."""
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that appears whole or not at all: the path of a hidden neighbour to write to, renamed to `path` at last.

    What was written is on the disk before it gets its name. After an error the neighbour is removed, and what stood at
    `path` stands there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, its line ends as they are, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """See what was written to a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class new_directory:  # noqa: N801  a context manager that reads as a verb
    """A directory that appears whole or not at all: files go to a hidden neighbour that is renamed at the end.

    With `overwrite` it takes the place of what stood there, which is moved aside first, so that nobody sees it half
    removed. Raises OutputExistsError where something stands there and nobody said so.
    """

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        if target.exists() and not overwrite:
            raise OutputExistsError(target, resume=False)
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = self._neighbour()
        self.temporary.chmod(0o755)
        return self.temporary

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._name()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _name(self) -> None:
        """Give the directory its name; what had it is moved aside, and back where that fails."""
        if not self.target.exists():
            self.temporary.rename(self.target)
            return
        aside = self._neighbour()
        former = aside / self.target.name
        self.target.rename(former)
        try:
            self.temporary.rename(self.target)
        except OSError:
            former.rename(self.target)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _neighbour(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))


def text_digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. One that has not changed since this process read it is not read again."""
    about = path.stat()
    return _digest(path.resolve(), about.st_ino, about.st_size, about.st_mtime_ns)


def path_digest(path: Path, *, instead: Mapping[str, str | None] | None = None) -> str:
    """SHA-256 of a file, or of what a loader may read in a directory (weights, settings, tokenizer, template, code).

    `instead` gives digests of files in the directory, by name, that are taken as they stand there; None: no such file.
    """
    if path.is_file():
        return _named_digest(path)
    digest = hashlib.sha256()
    for file in files_of(path):
        name = file.relative_to(path).as_posix()
        found = instead[name] if instead and name in instead else _named_digest(file)
        if found is not None:
            digest.update(f"{name}\t{found}\n".encode())
    return digest.hexdigest()


def files_of(directory: Path) -> list[Path]:
    """The files of a directory that a loader may read, in the order of their names."""
    return sorted({file for pattern in _READ for file in directory.glob(pattern) if file.is_file()})


def _named_digest(path: Path) -> str:
    """A file in the hub's cache is a link to a file that is named by its digest, which need not be computed again."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        return target.name
    return file_digest(path)


@functools.cache
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
