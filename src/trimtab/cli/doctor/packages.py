"""Which packages trimtab asks for, which of them are here, and whether they can be imported.

What is asked for is read from trimtab's own metadata, so there is no second list. Imports are tried in a process of
their own, since a broken package may end the one that imports it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from trimtab.engines.vllm import versions as vllm_versions
from trimtab.models.llama.library import BINDINGS

NOT_FOR_USERS = ("dev", "docs")
"""Extras that only those who work on trimtab need."""
_ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "vllm": vllm_versions.DISTRIBUTIONS,
    "xllamacpp": tuple(binding.distribution for binding in BINDINGS),
}
"""A package that an extra installs -> those of which one is enough."""
_TIMEOUT_S = 300.0
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([\w,-]+)\])?([^;]*)(?:;.*extra == ['\"]([\w-]+)['\"])?")
_BOUND = re.compile(r"(>=|<|==)\s*([\w.]+)")


@dataclass(frozen=True, slots=True)
class Package:
    """A package that trimtab or one of its extras asks for."""

    name: str
    version: str | None
    """None where it is not installed."""
    wanted: str
    """The versions that are asked for, such as `>=2.13,<3`."""
    problem: str
    """Why it cannot be imported; empty where it can."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of importing packages."""

    problems: Mapping[str, str]
    """Name of a package -> why its import failed."""
    torch: Mapping[str, Any] | None = None
    """What torch says of itself (`probe.torch_facts`); None where it could not be asked."""


@dataclass(frozen=True, slots=True)
class Extra:
    """One of trimtab's extras."""

    packages: tuple[str, ...]
    missing: tuple[str, ...]
    install: str = field(default="")
    """The command that installs what is missing; empty where nothing is."""


def read_requirement(text: str) -> tuple[str, str, str]:
    """(name, versions, extra) of a line of a package's metadata; the name of `trimtab[NAME]` is `trimtab[NAME]`."""
    found = _REQUIREMENT.match(text)
    assert found is not None
    name, inner, versions, extra = found.groups()
    return (f"{name}[{inner}]" if inner else normal(name)), versions.strip(), extra or ""


@cache
def requirements() -> dict[str, dict[str, str]]:
    """Extra -> package -> the versions that it asks for; what trimtab always needs is under an empty name."""
    found: dict[str, dict[str, str]] = {"": {}}
    for extra in metadata.metadata("trimtab").get_all("Provides-Extra") or []:
        found[extra] = {}
    for text in metadata.requires("trimtab") or []:
        name, versions, extra = read_requirement(text)
        found.setdefault(extra, {})[name] = versions
    return {extra: dict(_expanded(extra, found)) for extra in found}


def _expanded(extra: str, found: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for name, versions in found.get(extra, {}).items():
        inner = re.fullmatch(r"trimtab\[(.+)\]", name)
        if inner is None:
            yield name, versions
            continue
        for other in inner[1].split(","):
            yield from _expanded(other, found)


def extras() -> dict[str, Extra]:
    """Name -> each extra for users, and what of it is missing."""
    found = {}
    for name, packages in requirements().items():
        if name and name not in NOT_FOR_USERS:
            missing = tuple(package for package in packages if installed(package) is None)
            found[name] = Extra(tuple(packages), missing, f'pip install "trimtab[{name}]"' if missing else "")
    return found


def packages(tried: Tried) -> dict[str, Package]:
    """Name -> each package that trimtab always needs, and each of an extra that is installed."""
    found = {}
    for extra, wanted in requirements().items():
        if extra in NOT_FOR_USERS:
            continue
        for name, versions in wanted.items():
            version = installed(name)
            if version is not None or not extra:
                found[name] = Package(name, version, versions, tried.problems.get(name, ""))
    return found


def installed(name: str) -> str | None:
    """The version of a package, or of one that does as well; None where neither is installed."""
    for distribution in _ALTERNATIVES.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_within(version: str, bounds: str) -> bool:
    """Whether a version is within a range such as `>=2.13,<3`, by its release; one that is not understood passes."""
    found = re.match(r"\d+(\.\d+)*", version)
    if found is None:
        return True
    have = tuple(map(int, found[0].split(".")))
    for operator, bound in _BOUND.findall(bounds):
        want = tuple(int(part) for part in bound.split(".") if part.isdecimal())
        if not {">=": have >= want, "<": have < want, "==": have == want}[operator]:
            return False
    return True


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def try_imports(names: Sequence[str]) -> Tried:
    """Import packages one after the other in another process, which is begun anew where one of them ends it."""
    modules = import_names()
    left = [(name, modules[name]) for name in names if name in modules]
    problems: dict[str, str] = {}
    torch: Mapping[str, Any] | None = None
    while left:
        done, ending = _probe([module for _, module in left])
        for (name, _), line in zip(left, done, strict=False):
            torch = line.get("torch", torch)
            if line["problem"]:
                problems[name] = line["problem"]
        if len(done) < len(left):
            problems[left[len(done)][0]] = ending
        left = left[len(done) + 1 :]
    return Tried(problems, torch)


def _probe(modules: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """What importing some modules said, one entry each as far as it came, and how the process ended."""
    argv = [sys.executable, "-P", "-m", "trimtab.cli.doctor.probe", *modules]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return _lines(said), f"importing it takes more than {_TIMEOUT_S:.0f} seconds"
    return _lines(done.stdout), f"importing it ends the process ({_ending(done.returncode)})"


def _lines(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if line.endswith("}")]


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def import_names() -> dict[str, str]:
    """Package -> the module by which it is imported, for what is installed."""
    found: dict[str, list[str]] = {}
    for module, distributions in metadata.packages_distributions().items():
        for distribution in distributions:
            found.setdefault(normal(distribution), []).append(module)
    names: dict[str, str] = {}
    for wanted in requirements().values():
        for name in wanted:
            modules = [one for other in _ALTERNATIVES.get(name, (name,)) for one in found.get(normal(other), [])]
            public = sorted((one for one in modules if not one.startswith("_")), key=lambda one: normal(one) != name)
            if public:
                names[name] = public[0]
    return names
