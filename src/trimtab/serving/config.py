"""A server's configuration file: base, guides, presets of weights, limits. All its problems are told at once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trimtab.documents import read_yaml
from trimtab.errors import DataError, OptionError
from trimtab.fields import table
from trimtab.guides.sentences import AUTO, Sentences
from trimtab.mixing.forms import FORMS
from trimtab.serving.limits import Limits
from trimtab.storage.sentences import is_sentence, read_weighed, sentence_name

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
SENTENCE_KEYS = ("towards", "away", "place")
"""What a guide that is made of sentences may be given by, instead of a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideEntry:
    """A guide that a server has."""

    path: str
    """A directory (from the configuration's own), a hub id, builtin:NAME, or a sentence (`storage.sentences`)."""
    weight: float | None = None
    """In a request that does not say; 0: off. None: what the guide was calibrated to, else off."""
    preference: tuple[float, ...] | None = None
    """The vector at which a guide that was trained for several objectives runs."""
    form: str | None = None
    """`product` or `shift`; None: what the guide's card says."""
    guide_base: str | None = None
    """The model that the guide was trained on, where that is not the server's; None: what the guide's card says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What `serve.yaml` says; what it does not say is None or empty."""

    model: str | None = None
    name: str | None = None
    """What the base is called on the wire."""
    guides: Mapping[str, GuideEntry] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Model name -> weights of guides; guides left out are off."""
    limits: Mapping[str, float] = field(default_factory=dict)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """Names that it answers to, beside this machine's own."""
    draft_models: tuple[str, ...] = ()
    """Small models that requests may name in `draft`."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told where a request does not say otherwise."""
    allow_prompt_guides: bool = False
    """Whether requests may bring sentences as guides."""


def read_config(path: str | Path) -> ServeConfig:
    """Read a configuration. Raises DataError with every problem in it, or that it is no YAML (`documents`)."""
    file = Path(path)
    content = read_yaml(file, extra="serve", what="a configuration file")
    reader = _Reader(file.parent)
    config = reader.config(content if content is not None else {})
    if reader.problems:
        raise DataError("; ".join(reader.problems), path=file)
    return config


class _Reader:
    """Reads values and remembers what is wrong with them."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.problems: list[str] = []

    def config(self, content: Any) -> ServeConfig:
        given = self._mapping(content, "the configuration", [item.name for item in fields(ServeConfig)])
        guides = {
            str(name): self._guide(entry, f"guides.{name}")
            for name, entry in self._mapping(given.get("guides", {}), "guides").items()
        }
        presets = {
            str(name): self._weights(weights, f"presets.{name}", guides)
            for name, weights in self._mapping(given.get("presets", {}), "presets").items()
        }
        return ServeConfig(
            model=self._text(given.get("model"), "model"),
            name=self._text(given.get("name"), "name"),
            guides=guides,
            presets=presets,
            limits=self._limits(given.get("limits", {})),
            origins=tuple(self._texts(given.get("origins", []), "origins")),
            hosts=tuple(self._texts(given.get("hosts", []), "hosts")),
            draft_models=tuple(map(self._path, self._texts(given.get("draft_models", []), "draft_models"))),
            template_options=self._mapping(given.get("template_options", {}), "template_options"),
            allow_prompt_guides=self._flag(given.get("allow_prompt_guides", False), "allow_prompt_guides"),
        )

    def _guide(self, entry: Any, place: str) -> GuideEntry:
        self._check_name(place)
        if isinstance(entry, str):
            path, strength = self._named(entry, place)
            return GuideEntry(path=path, weight=strength)
        given = self._mapping(entry, place, [*(item.name for item in fields(GuideEntry)), *SENTENCE_KEYS])
        if any(key in given for key in SENTENCE_KEYS):
            return self._sentence(given, place)
        path, strength = self._named(self._text(given.get("path"), f"{place}.path"), place)
        said = given.get("weight", strength)
        weight = None if said is None and "weight" not in given else self._number(said, f"{place}.weight")
        vector = given.get("preference")
        preference = None
        if vector is not None:
            items = vector if isinstance(vector, list) else [vector]
            preference = tuple(self._number(item, f"{place}.preference") for item in items)
        form = self._text(given.get("form"), f"{place}.form")
        if form is not None and form not in FORMS:
            self.problems.append(f"{place}.form is {form!r}; give {' or '.join(FORMS)}")
        guide_base = self._text(given.get("guide_base"), f"{place}.guide_base")
        return GuideEntry(
            path=path,
            weight=weight,
            preference=preference,
            form=form,
            guide_base=None if guide_base is None else self._path(guide_base),
        )

    def _named(self, name: str | None, place: str) -> tuple[str, float | None]:
        """The path or name of a guide, and the weight that a sentence's may end in."""
        if name is None:
            self.problems.append(f"{place}.path is missing; give a directory, a hub id, builtin:NAME or a sentence")
            return "", None
        if not is_sentence(name):
            return self._path(name), None
        try:
            guide, weight = read_weighed(name, home=self._home)
        except OptionError as error:
            self.problems.append(f"{place}: {str(error).rstrip('.')}")
            return "", None
        return sentence_name(guide), weight

    def _sentence(self, given: Mapping[str, Any], place: str) -> GuideEntry:
        """A guide that is given by its sentences: `towards`, and maybe `away` and `place`."""
        texts = {key: self._text(given[key], f"{place}.{key}") for key in SENTENCE_KEYS if key in given}
        self._mapping(given, place, [*SENTENCE_KEYS, "weight"])
        weight = self._number(given.get("weight", 0.0), f"{place}.weight")
        try:
            guide = Sentences(texts.get("towards") or "", texts.get("away"), place=texts.get("place") or AUTO)
        except OptionError as error:
            self.problems.append(f"{place}: {str(error).rstrip('.')}")
            return GuideEntry(path="")
        return GuideEntry(path=sentence_name(guide), weight=weight)

    def _weights(self, entry: Any, place: str, guides: Iterable[str]) -> dict[str, float]:
        given = self._mapping(entry, place, list(guides))
        return {str(name): self._number(value, f"{place}.{name}") for name, value in given.items()}

    def _limits(self, entry: Any) -> dict[str, float]:
        known = table(Limits)
        limits = {}
        for name, value in self._mapping(entry, "limits", list(known)).items():
            limit = known.get(name)
            if limit is None:
                continue
            number = int(value) if limit.kind == "whole" and isinstance(value, float) and value.is_integer() else value
            if limit.accepts(number):
                limits[name] = number
            else:
                self.problems.append(f"limits.{name} is {value!r}; give {limit.accepted()}")
        return limits

    def _path(self, path: str) -> str:
        """A path from the configuration's own directory, where there is such a thing; else a name."""
        near = self._home / path
        return str(near) if path and near.exists() else path

    def _check_name(self, place: str) -> None:
        name = place.partition(".")[2]
        if not _NAME.fullmatch(name):
            self.problems.append(f"{place} is not a name for a guide; use letters, digits, '.', '_' and '-'")

    def _mapping(self, value: Any, place: str, accepted: list[str] | None = None) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.problems.append(f"{place} is {value!r}; give a mapping")
            return {}
        for key in value if accepted is not None else ():
            if key not in (accepted or ()):
                near = difflib.get_close_matches(str(key), accepted or (), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                listed = ", ".join(accepted or ()) or "none"
                self.problems.append(f"{place} has an unknown key {key!r}{hint} (accepted: {listed})")
        return {str(key): item for key, item in value.items()}

    def _text(self, value: Any, place: str) -> str | None:
        if value is not None and not (isinstance(value, str) and value):
            self.problems.append(f"{place} is {value!r}; give a text")
            return None
        return value

    def _flag(self, value: Any, place: str) -> bool:
        if not isinstance(value, bool):
            self.problems.append(f"{place} is {value!r}; give true or false")
            return False
        return value

    def _texts(self, value: Any, place: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.problems.append(f"{place} is {value!r}; give a list of texts")
            return []
        return value

    def _number(self, value: Any, place: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.problems.append(f"{place} is {value!r}; give a finite number")
            return 0.0
        return float(value)
