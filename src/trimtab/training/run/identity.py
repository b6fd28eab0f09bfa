"""What makes a run this run: the difference between a run to be continued and what is asked for now, in words.

A run is described as in `guide.json`: sections of facts. Only what the caller decided is named where it differs, each
with both values; what follows from it (a fingerprint of the vocabulary, where the model is another) is left out, and so
is what no answer depends on (`settings.NOT_OF_THE_RUN`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import OptionError, naming
from trimtab.fields import Follows
from trimtab.training.run.settings import NOT_OF_THE_RUN

Facts = Mapping[str, Any]
"""Sections of a `guide.json`, or one section: plain values, lists and mappings, as JSON holds them."""

_SETTINGS = "hyperparameters"
_CONTENTS = "contents"
_FOLLOWS = ("format", "form", "guide_form", "parm")
"""Facts that the settings and the data decide."""
_NAMES = {
    ("base", "name"): "{model}",
    ("data", "files"): "{data}",
    ("data", "eval_files"): "{eval_data}",
    ("data", "prompt_files"): "{prompts}",
    ("data", "template"): "{template}",
    ("data", "template_options"): "{template_options}",
    ("data", "fingerprint"): "the content of the data",
    ("data", "eval_fingerprint"): "the content of the held-out data",
    ("data", "num_pairs"): "the number of training pairs",
    ("data", "num_prompts"): "the number of prompts",
    ("data", "objectives"): "the data of the objectives",
    ("rewards",): "{rewards}",
    ("num_processes",): "the number of processes",
    ("kind",): "the kind of training",
    ("method",): "the method",
}
_MAX_LENGTH = 200
_MAX_NAMED = 6
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def check_same(now: Facts, before: Facts, *, problem: str, way_out: str) -> None:
    """Raise OptionError, naming what differs, unless two descriptions are of one run.

    The message is `problem`, the differences and `way_out`.
    """
    differing = differences(now, before)
    if differing:
        more = f"; and {len(differing) - _MAX_NAMED} more" if len(differing) > _MAX_NAMED else ""
        named = differing[:_MAX_NAMED]
        values = [value for _, *both in named for value in both]
        parts = [f"{name} is {{{2 * at}}} here and {{{2 * at + 1}}} in the run" for at, (name, *_) in enumerate(named)]
        raise naming(OptionError, f"{_literal(problem)}: {'; '.join(parts)}{more}. {_literal(way_out)}", *values)


def differences(now: Facts, before: Facts) -> list[tuple[str, str, str]]:
    """(name, value now, value before) of each fact that the caller decided and that differs.

    A name is a template as in `naming`.
    """
    left, right = _flat(now), _flat(_plain(before))
    keys = [key for key in (*left, *(key for key in right if key not in left)) if _is_decided(key)]
    differing = [key for key in keys if _plain(left.get(key)) != right.get(key)]
    settings = [key for key in differing if key[0] == _SETTINGS]
    set_here = [key for key in settings if not isinstance(left.get(key), Follows)]
    if set_here:
        differing = [key for key in differing if key not in settings or key in set_here]
    return [(_name(key), _short(left.get(key)), _short(right.get(key))) for key in _causes(differing, settings)]


def _flat(facts: Mapping[str, object]) -> dict[tuple[str, ...], object]:
    """Section -> fact -> value as (section, fact) -> value; a fact of no section is (fact,)."""
    flat: dict[tuple[str, ...], object] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat.update({(key, _fact_name(name, value)): inner for name, inner in value.items()})
        else:
            flat[(key,)] = value
    return flat


def _fact_name(name: str, section: Mapping[str, object]) -> str:
    """A fact's name; what is data for one training is prompts for another."""
    return "prompt_files" if name == "files" and "num_prompts" in section else name


def _is_decided(key: tuple[str, ...]) -> bool:
    return key[0] not in _FOLLOWS and not (key[0] == _SETTINGS and key[1] in NOT_OF_THE_RUN)


def _causes(differing: Sequence[tuple[str, ...]], settings: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those that do not follow from others: a seed decides what is held out, a model its vocabulary."""
    whole: list[tuple[str, ...]] = [key for key in differing if key in (("kind",), ("method",))]
    if whole:
        return whole
    decided = [key for key in differing if "{" in _name(key)]
    if any(key[0] == "base" for key in decided):
        differing = [key for key in differing if key in decided or key[0] not in ("base", "vocabulary")]
    if settings or any(key[0] == "data" for key in decided):
        differing = [key for key in differing if key in decided or key[0] != "data"]
    return list(differing)


def _name(key: tuple[str, ...]) -> str:
    if key[0] == _SETTINGS:
        return f"{{{key[1]}}}"
    if key[0] == _CONTENTS and len(key) == 2:
        return _literal(f"the content of {key[1]}")
    return _NAMES.get(key) or _literal(f"the {key[0]}'s {key[1].replace('_', ' ')}" if len(key) == 2 else key[0])


def _plain(value: object) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(_term, value)) or "none"
    text = "not set" if value is None else str(value)
    if _FINGERPRINT.fullmatch(text):
        return f"{text[:12]}…"
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def _term(item: object) -> str:
    if isinstance(item, Mapping) and {"name", "source", "multiplier"} <= item.keys():
        return f"{item['name']}={item['source']}:{item['multiplier']:g}"
    return str(item)


def _literal(text: str) -> str:
    """Text that a template holds as it stands."""
    return text.replace("{", "{{").replace("}", "}}")
