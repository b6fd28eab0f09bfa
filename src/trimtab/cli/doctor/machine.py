"""What this machine has: a processor, memory, a disk, and what trimtab keeps on it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from trimtab import environment
from trimtab.models import machine
from trimtab.models.processor import cpu_info, num_cores
from trimtab.storage.directories import cache_dir

FLAGS = (
    *("f16c", "fma", "avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
"""Flags of processors that say how fast products are."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor, and how much of it this process has."""

    model: str
    vendor: str
    cores: int
    quota: float | None
    """Cores that control groups let this process use at a time; None where they set no limit."""
    load: float | None
    """Processes that ran or waited to run in the last minute, on average."""
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """What trimtab keeps between runs: models that were converted, and what was tried on this machine."""

    num_entries: int
    size: int
    """Bytes."""
    place: str
    """The directory, or which one it is where directories are not to be shown."""


def processor() -> Processor:
    """The processor, as far as the system describes it."""
    written = (cpu_info("flags") or cpu_info("Features") or "").split()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    flags = tuple(flag for flag in FLAGS if flag in written)
    model, vendor = cpu_info("model name") or "", cpu_info("vendor_id") or ""
    return Processor(model, vendor, num_cores(), machine.quota(), load, flags)


def total_memory() -> int:
    """Bytes of memory that this process may come to have."""
    return min(total for total, _ in machine.totals())


def has_nvidia() -> bool:
    """Whether the system knows a GPU of NVIDIA's, whatever torch says."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def disk_free() -> int:
    """Bytes left on the disk of the cache."""
    place = cache_dir().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def cache(*, paths: bool) -> Cache:
    """The cache, with its directory where that is to be shown."""
    directory = cache_dir()
    files = [path for path in directory.rglob("*") if path.is_file()] if directory.is_dir() else []
    entries = sum(1 for _ in directory.iterdir()) if directory.is_dir() else 0
    usual = "where TRIMTAB_CACHE says" if environment.CACHE.path() else "the usual place"
    return Cache(entries, sum(path.stat().st_size for path in files), str(directory) if paths else usual)


def without_directories(text: str, *, home: str) -> str:
    """A message with the last part alone of each path in it."""
    text = re.sub(r"(?<=[('\"])/[^'\"()\n]*/(?=[^/'\"()]+)", "…/", text.replace(home, "/~"))
    return re.sub(r"(?<![\w.…/])/(?:[^\s/'\"():,;]+/)+(?=[^\s/'\"():,;]+)", "…/", text)
