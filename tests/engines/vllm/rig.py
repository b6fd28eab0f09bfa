"""vLLM's two model runners on a processor, for tests: the environment that a process needs to get one or the other.

`python -m tests.engines.vllm.rig v2 COMMAND ...` runs a command in it.

Nothing of it is shipped. "v2" runs vLLM's kernels with Triton's interpreter: slow, and right.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BACKEND = "interpreted_triton"
VLLM_VERSION = "0.32.0+cpu"


def runner_environment(version: str, directory: Path) -> dict[str, str]:
    """The environment of a process in which vLLM has the model runner "v1" or "v2".

    It is this process's own with some names set; `directory` gets what Python has to find on its path and must outlive
    the process. Raises ValueError for another version.
    """
    if version not in ("v1", "v2"):
        raise ValueError(f"{version!r} is no model runner of vLLM. Accepted: 'v1', 'v2'.")
    _distribution(directory, "vllm", VLLM_VERSION, {})
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1" if version == "v2" else "0",
        "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    environment.pop("TRITON_INTERPRET", None)
    if version == "v2":
        environment["TRITON_INTERPRET"] = "1"
        shutil.copytree(Path(__file__).with_name(BACKEND), directory / BACKEND, dirs_exist_ok=True)
        groups = {"triton.backends": f"cpu = {BACKEND}", "vllm.general_plugins": f"rig = {BACKEND}.masks:cast_masks"}
        _distribution(directory, BACKEND, "0", groups)
    return environment


def run_program(source: str, given: Any, environment: Mapping[str, str], directory: Path) -> Any:
    """What a Python program writes, run in a process of its own; `given` and the answer travel as JSON.

    Its arguments are two files in `directory`: what it is given, and where to write. vLLM talks on both of its outputs
    until the end, so the answer is on neither. Raises RuntimeError with the last of that talk if the program fails.
    """
    program, question, answer = (directory / name for name in ("program.py", "given.json", "answer.json"))
    program.write_text(source, encoding="utf-8")
    question.write_text(json.dumps(given), encoding="utf-8")
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(program), str(question), str(answer)]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}")
    return json.loads(answer.read_text(encoding="utf-8"))


def _distribution(directory: Path, name: str, version: str, entry_points: dict[str, str]) -> None:
    """Write the metadata of a distribution without files; `entry_points` is group -> one line of it.

    `vllm serve` asks for a distribution called vllm, and the wheel for processors has another name; "+cpu" in the
    version is how vLLM knows its own build.
    """
    metadata = directory / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = [f"[{group}]\n{line}\n" for group, line in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(subprocess.call(sys.argv[2:], env=runner_environment(sys.argv[1], Path(scratch))))
