"""Memory that holds a file only because it was read once, given back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MAPS = Path("/proc/self/maps")
_DONT_NEED = 4
"""`MADV_DONTNEED` of Linux."""


def release_pages(path: Path) -> int:
    """Give back what lies in memory of a file that this process has mapped to read it; how many bytes are mapped.

    llama.cpp maps a file and reads all of it. Weights that it repacks for the processor lie in memory a second time
    from then on, and their first copy is never read again. A page that is needed after all comes back at its next use,
    from the system's cache. Nothing is done on other systems than Linux, nor where a mapping may be written to.
    """
    if sys.platform != "linux":
        return 0
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    name, released = str(path.resolve()), 0
    for place, rights, mapped in _mappings(lines):
        if mapped == name and "w" not in rights:
            start, end = (int(part, 16) for part in place.split("-"))
            if advise(start, end - start, _DONT_NEED) == 0:
                released += end - start
    return released


def _mappings(lines: list[str]) -> list[tuple[str, str, str]]:
    """(addresses, rights, file) of each mapping of a file."""
    parts = [line.split(maxsplit=5) for line in lines]
    return [(part[0], part[1], part[5]) for part in parts if len(part) == 6]
