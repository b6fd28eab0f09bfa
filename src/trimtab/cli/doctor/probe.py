"""Imports modules and says what came of it, one line of JSON each: `python -m trimtab.cli.doctor.probe MODULE ...`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from trimtab.models.processor import num_cores


def main(modules: list[str]) -> None:
    """Import each module; lines go to standard output, and whatever the modules print to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)
        for name in modules:
            print(json.dumps(imported(name)), file=lines, flush=True)


def imported(name: str) -> dict[str, Any]:
    """`{"problem": ...}`: why a module cannot be imported, or nothing; of torch also what it says of itself."""
    try:
        importlib.import_module(name)
        return {"problem": "", **({"torch": torch_facts()} if name == "torch" else {})}
    except BaseException as error:  # SystemExit too: any of them is the finding
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]}


def torch_facts() -> dict[str, Any]:
    """What torch computes with here: threads, GPUs, and the libraries of its kernels."""
    import torch

    from trimtab.models.threads import quickest

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        capability = f"{about.major}.{about.minor}"
        gpus.append({"name": about.name, "memory": about.total_memory, "capability": capability})
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "auto": quickest(num_cores()),
        "cuda": torch.version.cuda or getattr(torch.version, "hip", None),
        "gpus": gpus,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "quantized": list(torch.backends.quantized.supported_engines),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
