"""The lower end of every range in pyproject.toml as a line of constraints: `make test-oldest` installs them.

Left out are the extras that need an environment of their own (vLLM, DeepSpeed, llama.cpp, Inspect), the tools of
development and the site.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

APART = ("vllm", "deepspeed", "llama", "inspect", "dev", "docs")
_RANGE = re.compile(r"(?P<name>[\w.-]+)>=(?P<lower>[\w.]+),<(?P<upper>[\w.]+)")


def ranges(pyproject: Path) -> dict[str, tuple[str, str]]:
    """Package -> the two ends of its range. Raises ValueError for a requirement that lacks one."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found: dict[str, tuple[str, str]] = {}
    for extra, requirements in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in requirements if extra not in APART else []:
            if requirement.startswith("trimtab["):
                continue
            ends = _RANGE.fullmatch(requirement)
            if ends is None:
                raise ValueError(f"{requirement!r} in pyproject.toml has no two ends: write NAME>=LOWER,<UPPER")
            if found.setdefault(ends["name"], (ends["lower"], ends["upper"])) != (ends["lower"], ends["upper"]):
                raise ValueError(f"{ends['name']} has two ranges in pyproject.toml: {requirement!r} is the second")
    return found


def main() -> None:
    for name, (lower, _) in ranges(Path(__file__).resolve().parents[1] / "pyproject.toml").items():
        print(f"{name}=={lower}")


if __name__ == "__main__":
    main()
