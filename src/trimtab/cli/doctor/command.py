"""`trimtab doctor`: what is installed here, what this machine has, what is wrong and what would be faster.

It is meant to be pasted into a report: it holds no secrets, and no directories unless --paths asks for them. It works
where torch or another package is missing or broken, which it then says. Exit code 0 where nothing is wrong, else 1.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from trimtab import environment
from trimtab.cli.doctor import advice, machine, packages
from trimtab.cli.exits import Exit
from trimtab.cli.options import say
from trimtab.cli.results import print_json
from trimtab.models.machine import available


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "doctor", help="what is installed, what is wrong, what would be faster", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--paths", action="store_true", help="show directories too: of the cache and in messages")
    parser.add_argument("--json", action="store_true", help="all of it as JSON on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Look at everything and say what was found; 1 where something is wrong."""
    say("importing what is installed, and trying threads for a moment")
    names = [name for name, package in packages.packages(packages.Tried({})).items() if package.version is not None]
    tried = packages.try_imports(sorted(names, key=lambda name: name != "torch"))
    extras = packages.extras()
    facts = advice.Facts(
        processor=machine.processor(),
        torch=tried.torch,
        has_nvidia=machine.has_nvidia(),
        environment=environment.deciding(),
        packages=packages.packages(tried),
        missing={name: extra.missing for name, extra in extras.items() if extra.missing},
        disk_free=machine.disk_free(),
        available=available(),
    )
    found = report(facts, extras, paths=args.paths)
    if not args.paths:
        found = _plain(found, str(Path.home()))
    if args.json:
        print_json(found)
    else:
        print("\n".join(lines(found)))
    return Exit.of_check(holds=not found["problems"])


def report(facts: advice.Facts, extras: Mapping[str, packages.Extra], *, paths: bool) -> dict[str, Any]:
    """All that was found, as JSON has it."""
    torch = facts.torch or {}
    return {
        "versions": {
            "trimtab": metadata.version("trimtab"),
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.platform(),
            **({"paths": {"python": sys.prefix, "trimtab": str(Path(__file__).parents[2])}} if paths else {}),
        },
        "processor": asdict(facts.processor),
        "threads": {"torch": torch.get("threads"), "auto": torch.get("auto"), "environment": dict(facts.environment)},
        "torch": {key: value for key, value in torch.items() if key not in ("threads", "auto", "gpus")} or None,
        "gpus": {"usable": torch.get("gpus", []), "nvidia_driver": facts.has_nvidia},
        "memory": {"total": machine.total_memory(), "available": facts.available},
        "disk": {"free": facts.disk_free},
        "cache": asdict(machine.cache(paths=paths)),
        "packages": {name: asdict(package) for name, package in facts.packages.items()},
        "extras": {name: asdict(extra) for name, extra in extras.items()},
        "problems": advice.problems(facts),
        "faster": [asdict(one) for one in advice.faster(facts)],
    }


def _plain(value: Any, home: str) -> Any:
    """The same without directories in its texts, but for trimtab's own pages."""
    if isinstance(value, Mapping):
        return {key: _plain(inner, home) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, home) for inner in value]
    return machine.without_directories(value, home=home) if isinstance(value, str) else value


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The report as a page of text."""
    versions, processor, threads = found["versions"], found["processor"], found["threads"]
    yield f"trimtab {versions['trimtab']}, {versions['implementation']} {versions['python']}, {versions['system']}"
    yield from (f"  {name}: {place}" for name, place in versions.get("paths", {}).items())
    quota = "" if processor["quota"] is None else f" (control groups leave {processor['quota']:g})"
    load = "" if processor["load"] is None else f", load {processor['load']:.2f}"
    yield f"processor: {processor['model'] or 'unknown'}, {processor['cores']} cores{quota}{load}"
    yield f"  {' '.join(processor['flags']) or 'no flags known'}"
    chosen = f"--threads auto would choose {_or(threads['auto'])} now"
    yield f"threads: torch computes with {_or(threads['torch'])}; {chosen}"
    yield from (f"  {name}={value}" for name, value in threads["environment"].items())
    gpus = [f"{gpu['name']}, {_gb(gpu['memory'])}" for gpu in found["gpus"]["usable"]]
    yield f"GPU: {'; '.join(gpus) or 'none that torch can use'}"
    memory, cache = found["memory"], found["cache"]
    yield f"memory: {_gb(memory['total'])}, of which {_gb(memory['available'])} are free"
    yield f"disk: {_gb(found['disk']['free'])} free where the cache is"
    yield f"cache of converted models: {_gb(cache['size'])} in {cache['num_entries']} entries, {cache['place']}"
    yield "packages"
    for name, package in sorted(found["packages"].items()):
        yield f"  {name} {package['version'] or 'is not installed'}"
    yield "extras"
    for name, extra in found["extras"].items():
        missing = f"{', '.join(extra['missing'])} missing: {extra['install']}" if extra["missing"] else "installed"
        yield f"  {name}: {missing}"
    yield "problems" if found["problems"] else "problems: none"
    yield from (f"  {line}" for line in found["problems"])
    yield "faster here" if found["faster"] else "faster here: nothing that could be told cheaply"
    for one in found["faster"]:
        yield f"  {one['what']}: {one['how']} ({one['known_from']})"


def _or(value: object) -> str:
    return "an unknown number" if value is None else str(value)


def _gb(num_bytes: int | None) -> str:
    return "an unknown amount" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"
