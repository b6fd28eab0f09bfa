"""What a name stands for today, as digests: so that what is resumed or reused is the same content, not the same name.

A model, guide or reward model is its files, a function of one's own is its code, a scorer of a package its version.
What cannot be seen from here: whether a model behind an endpoint changed, and what a function reads while it runs.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from trimtab.errors import CheckpointError, OptionError
from trimtab.storage import exact_scorers
from trimtab.storage.cards import GUIDE_FILE, card_text, named_base, read_card
from trimtab.storage.directories import guide_directory
from trimtab.storage.files import path_digest
from trimtab.storage.scorer_functions import code_digests, function_file, is_function_name
from trimtab.storage.sentences import is_sentence, read_sentence, sentence_name

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
_PACKAGES = {"sentiment": ("vaderSentiment",), "offence": ("alt-profanity-check", "scikit-learn")}
"""Scorers of ours -> the packages that say what they give."""


def model_contents(name: str, *, calibrated: bool = True) -> dict[str, str]:
    """The digests of what a model, guide or reward model is made of; nothing for a name that stands for nothing here.

    Its own files come under "files". Where its card or its adapter names a base that it runs on, the base's come under
    "base". A hub id is looked up as it is when it is loaded. With `calibrated` False a guide's card is read as if it
    had no calibration, for whoever says its form and its strength.
    """
    if is_sentence(name):
        return _sentence_contents(name)
    directory = _directory(name)
    if directory is None:
        return {}
    found = {"files": path_digest(directory, instead={} if calibrated else _uncalibrated(directory))}
    base = None if directory.is_file() else _base_of(directory)
    if base is not None and base != name and (place := _directory(base)) is not None:
        found["base"] = path_digest(place)
    return found


def scorer_contents(name: str) -> dict[str, str]:
    """The digests of what a scorer's name stands for: of a function's code, of a reward model, or a package's version.

    Nothing for a name that stands for nothing. Raises nothing that `load_scorer` does not say better.
    """
    if name in _PACKAGES:
        return dict(_versions(_PACKAGES[name]))
    if name in exact_scorers.EXACT:
        return {"exact_scorers.py": path_digest(Path(exact_scorers.__file__))}
    if is_function_name(name):
        file = function_file(name)
        return {} if file is None else code_digests(file)
    return model_contents(name)


def callable_contents(function: Callable[..., object]) -> dict[str, str]:
    """The digests of a Python function's code; nothing where it has no source file (typed into an interpreter)."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an object that can be called: its class has the code
        try:
            file = inspect.getsourcefile(type(function))
        except TypeError:
            file = None
    return code_digests(Path(file)) if file is not None and Path(file).is_file() else {}


def _sentence_contents(name: str) -> dict[str, str]:
    """The digest of what a guide made of a sentence says, wherever it was read from; nothing where it says nothing."""
    try:
        said = sentence_name(read_sentence(name))
    except OptionError:
        return {}
    return {"files": hashlib.sha256(said.encode()).hexdigest()}


def _uncalibrated(directory: Path) -> dict[str, str | None]:
    """The card's file -> the digest that it has without its calibration; None where that is all it says. Empty where
    there is no calibration."""
    if directory.is_file():
        return {}
    try:
        card = read_card(directory)
    except CheckpointError:
        return {}
    if card.calibration is None:
        return {}
    before = card.with_calibration(None)
    if set(before.written) <= {"format", "kind"}:  # it was written for the calibration
        return {GUIDE_FILE: None}
    return {GUIDE_FILE: hashlib.sha256(card_text(before).encode()).hexdigest()}


def _directory(name: str) -> Path | None:
    """Where the files of a name are: a path, a guide that ships, or a hub id; "demo" is known by its package."""
    try:
        if name and Path(name).exists():
            return Path(name)
    except (OSError, ValueError):  # too long for a path, or a text with a zero byte
        return None
    if not (name.startswith("builtin:") or _HUB_ID.fullmatch(name)):
        return None
    try:
        return guide_directory(name, None)
    except (CheckpointError, OptionError):
        return None


def _base_of(directory: Path) -> str | None:
    """The base that a card or an adapter names; None for a card that cannot be read."""
    try:
        return named_base(directory, read_card(directory))
    except CheckpointError:
        return None


def _versions(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
