"""The files that a guide's card was written for, by digest and size, and whether they are still there.

Weights that are others make a card's figures those of another guide, so whoever loads a guide refuses them; other files
(a base that has moved is written into `adapter_config.json` by hand) are a warning. What is larger than `QUICK` is
known by its size when it is loaded; `trimtab check` reads all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from trimtab.errors import CheckpointError
from trimtab.storage.card_values import Section
from trimtab.storage.files import file_digest, files_of

log = logging.getLogger(__name__)

FILES = "files"
"""The key of the card."""
QUICK = 256 << 20
"""Bytes of a file up to which it is read when its guide is loaded."""
_WEIGHTS = (".safetensors", ".gguf")
_NOT_RECORDED = ("guide.json",)


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file as the card has it."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not the one that the card was written for."""

    name: str
    said: str
    """What differs, as the end of a sentence that begins with the name."""

    @property
    def is_weights(self) -> bool:
        return self.name.endswith(_WEIGHTS)


def record(directory: Path) -> dict[str, object]:
    """What a card says of the files in its directory that a loader may read: name -> digest and size."""
    found = {path.relative_to(directory).as_posix(): path for path in files_of(directory)}
    return {
        name: asdict(RecordedFile(file_digest(path), path.stat().st_size))
        for name, path in found.items()
        if name not in _NOT_RECORDED
    }


def read_record(section: Section) -> dict[str, RecordedFile]:
    """The files of a card; none where it names none. Raises CheckpointError as the card's other values do."""
    found = {}
    for name in section.values:
        entry = section.part(name)
        sha256, size = entry.text("sha256"), entry.count("size")
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if sha256 is None or size is None or not inside:
            raise CheckpointError(
                f"{section.path}: {section.place}{name} is no record of a file in this directory; accepted: its digest "
                "(sha256) and its size. Download or train the guide again."
            )
        found[name] = RecordedFile(sha256, size)
    return found


def differences(directory: Path, files: Mapping[str, RecordedFile], *, quick: bool = False) -> list[Difference]:
    """Which files are not those that are recorded. With `quick`, large ones are compared by their sizes alone."""
    return list(_differences(directory, files, quick))


def _differences(directory: Path, files: Mapping[str, RecordedFile], quick: bool) -> Iterator[Difference]:
    for name, recorded in files.items():
        path = directory / name
        if not path.is_file():
            yield Difference(name, "is missing")
        elif (size := path.stat().st_size) != recorded.size:
            yield Difference(name, f"has {size:,} bytes and not {recorded.size:,}")
        elif not (quick and size > QUICK) and (digest := file_digest(path)) != recorded.sha256:
            yield Difference(name, f"has the SHA-256 {digest[:12]}… and not {recorded.sha256[:12]}…")


def check_recorded(directory: Path, files: Mapping[str, RecordedFile]) -> None:
    """Refuse weights that are not those of the card, and say once where other files are not.

    Raises CheckpointError. A card that records nothing, as older ones, passes.
    """
    for one in differences(directory, files, quick=True):
        if one.is_weights:
            raise CheckpointError(
                f"{directory / one.name} {one.said}: it is not the file that the guide's card was written for, so what "
                "the card says was measured on other weights. Download or train the guide again; if you changed it "
                f'yourself, take "{FILES}" out of {directory / "guide.json"}.'
            )
        _warn(directory / one.name, one.said)


@cache
def _warn(path: Path, said: str) -> None:
    log.warning("%s %s, as the guide's card has it; it is used as it is", path, said)
