"""What is asked of the machine besides its processor: its memory, and what control groups leave this process of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")


def totals() -> Iterator[tuple[int, str]]:
    """What this machine has, and what each control group of this process may have."""
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    for directory, name in _groups():
        for folder in (directory, *directory.parents):
            if not folder.is_relative_to(_CGROUPS):
                break
            number = _number(folder / name)
            if number is not None:
                yield number, "this control group"


def _groups() -> Iterator[tuple[Path, str]]:
    """(directory, file of its limit) of the control groups that count this process's memory."""
    try:
        lines = (_PROC / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            yield _CGROUPS / path.lstrip("/"), "memory.max"
        elif "memory" in kinds.split(","):
            yield _CGROUPS / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
            yield _CGROUPS / "memory", "memory.limit_in_bytes"  # a container sees its own group as the root


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none (`max`)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def held() -> tuple[int, int]:
    """(resident, virtual) bytes of this process."""
    try:
        virtual, resident = (_PROC / "statm").read_text().split()[:2]
    except OSError:  # no Linux: the most that it has held
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most, most
    page = os.sysconf("SC_PAGE_SIZE")
    return int(resident) * page, int(virtual) * page


def address_space() -> int | None:
    """The limit of this process's address space (`ulimit -v`), where there is one."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else int(limit)


def available() -> int | None:
    """Bytes of memory that a new process may take without swapping; None where the system does not say.

    What other processes of this control group hold counts as taken.
    """
    found = [_meminfo("MemAvailable")]
    for directory, name in _groups():
        limit = _number(directory / name)
        used = _number(directory / name.replace("memory.max", "memory.current").replace("limit", "usage"))
        if limit is not None and used is not None:
            found.append(max(0, limit - used))
    return min((number for number in found if number is not None), default=None)


def quota() -> float | None:
    """How many cores the control groups of this process let it use at a time; None where they set no limit."""
    found = []
    for folder in {_CGROUPS, *(directory for directory, name in _groups() if name == "memory.max")}:
        try:
            most, period = (folder / "cpu.max").read_text().split()
            found.append(int(most) / int(period))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _meminfo(key: str) -> int | None:
    try:
        lines = (_PROC.parent / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))
    except (OSError, ValueError, StopIteration):
        return None
