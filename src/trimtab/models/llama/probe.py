"""Whether weights may be repacked for this processor: tried once, in a process of its own, and remembered.

On some processors llama.cpp's repacked products end the process (a segmentation fault where there is AMX), which no
`except` catches. So the first time a kind of file is run on a machine, another process loads it and decodes a few
tokens; where that one dies, weights stay as they are in the file.

    python -m trimtab.models.llama.probe FILE
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

from trimtab.models.llama.context import Fed, LlamaContext
from trimtab.models.llama.file import LlamaFile
from trimtab.models.llama.header import Header
from trimtab.models.llama.library import library
from trimtab.models.llama.options import LlamaOptions
from trimtab.models.processor import cpu_info

log = logging.getLogger(__name__)

_TIMEOUT_S = 300.0


def repacks(header: Header, cache: Path) -> bool:
    """Whether files of this kind may be repacked on this machine; says so in one line when it is tried."""
    kind = _kind(header)
    path = cache / f"llama-{hashlib.sha256(kind.encode()).hexdigest()[:16]}.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["repacks"])
    except (OSError, ValueError, KeyError):
        pass
    log.info("trying llama.cpp on this processor, in a process of its own (once)")
    survived = _survives(header.path)
    if not survived:
        log.warning(
            "llama.cpp did not survive with weights repacked for this processor; they stay as they are in the file "
            "(remembered in %s; delete it to try again)",
            path,
        )
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"repacks": survived, "of": kind}), encoding="utf-8")
    temporary.replace(path)
    return survived


def _kind(header: Header) -> str:
    """The machine, the build, and the kinds of tensors that products are made of."""
    kinds = sorted({info.kind for info in header.tensors.values()})
    processor = cpu_info("model name") or platform.processor() or platform.machine()
    flags = hashlib.sha256((cpu_info("flags") or "").encode()).hexdigest()[:16]
    return f"{library().build} {platform.system()} {processor} {flags} {header.architecture} {kinds}"


def _survives(path: Path) -> bool:
    command = [sys.executable, "-m", __name__, str(path)]
    try:
        finished = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.debug("the first try did not end: %s", error)
        return False
    log.debug("the first try ended with %d: %s", finished.returncode, finished.stderr[-500:])
    return finished.returncode >= 0 and finished.returncode < 128  # a plain error is told again, with its sentence


def run(path: Path) -> None:
    """Load a file with repacked weights and decode: a prompt, one row, and four rows."""
    file = LlamaFile(path, LlamaOptions(use_extra_bufts=True))
    context = LlamaContext(file, None, 512, 4)
    for row in range(4):
        context.decode([Fed(at, at, row, at == 39) for at in range(40)])
    context.decode([Fed(1, 40, 0, True)])
    context.decode([Fed(1, 41 if row == 0 else 40, row, True) for row in range(4)], states=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
