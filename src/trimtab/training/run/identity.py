"""What makes a run this run: the difference between a run to be continued and what is asked for now, in words.

A run is described as in `guide.json`: sections of facts. Only what the caller decided is named where it differs, each
with both values; what follows from it (a fingerprint of the vocabulary, where the model is another) is left out, and so
is what no answer depends on (`settings.NOT_OF_THE_RUN`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import OptionError, naming
from trimtab.fields import Follows, FollowsReal
from trimtab.storage.same_run import Difference, differences, told_apart
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
    ("data", "template"): "{template}",
    ("data", "template_options"): "{template_options}",
    ("data", "fingerprint"): "the content of the data",
    ("data", "eval_fingerprint"): "the content of the held-out data",
    ("data", "num_pairs"): "the number of training pairs",
    ("data", "num_prompts"): "the number of prompts",
    ("data", "objectives"): "the data of the objectives",
    ("rewards",): "{rewards}",
    ("sentences", "towards"): "{towards}",
    ("sentences", "away"): "{away}",
    ("num_processes",): "the number of processes",
    ("dtype",): "{dtype}",
    ("kind",): "the kind of training",
    ("method",): "the method",
}
_MAX_LENGTH = 200
_MAX_NAMED = 6
_FINGERPRINT = re.compile("[0-9a-f]{64}")


def check_same_training(now: Facts, before: Facts, *, problem: str, way_out: str) -> None:
    """Raise OptionError, naming what differs, unless two descriptions are of one run.

    The message is `problem`, the differences and `way_out`.
    """
    found = decided_differences(now, before)
    if found:
        more = f"; and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        found = found[:_MAX_NAMED]
        prompts = any("num_prompts" in section for section in map(_data, (now, before)))
        values = [text for one in found for text in told_apart(_shown(one.now), _shown(one.before), most=_MAX_LENGTH)]
        parts = [
            f"{_name(one.key, prompts=prompts)} is {{{2 * at}}} here and {{{2 * at + 1}}} in the run"
            for at, one in enumerate(found)
        ]
        raise naming(OptionError, f"{_literal(problem)}: {'; '.join(parts)}{more}. {_literal(way_out)}", *values)


def decided_differences(now: Mapping[str, object], before: Mapping[str, object]) -> list[Difference]:
    """The facts that the caller decided and that differ, and do not follow from others that do."""
    differing = [one for one in differences(before, now, depth=2) if _is_decided(one.key) and not _is_open(one)]
    settings = [one for one in differing if one.key[0] == _SETTINGS]
    set_here = [one for one in settings if not isinstance(one.now, Follows | FollowsReal)]
    if set_here:
        differing = [one for one in differing if one not in settings or one in set_here]
    return _causes(differing, any_setting=bool(settings))


def _data(description: Mapping[str, object]) -> Mapping[str, object]:
    section = description.get("data")
    return section if isinstance(section, Mapping) else {}


def _is_decided(key: tuple[str, ...]) -> bool:
    return key[0] not in _FOLLOWS and not (key[0] == _SETTINGS and key[1] in NOT_OF_THE_RUN)


def _is_open(one: Difference) -> bool:
    """Whether what is asked for now leaves a setting to the run: what it computes in."""
    return one.key == (_SETTINGS, "dtype") and one.now == "auto"


def _causes(differing: Sequence[Difference], *, any_setting: bool) -> list[Difference]:
    """Those that do not follow from others: a seed decides what is held out, a model its vocabulary."""
    whole = [one for one in differing if one.key in (("kind",), ("method",))]
    if whole:
        return whole
    decided = [one for one in differing if "{" in _name(one.key)]
    if any(one.key[0] == "base" for one in decided):
        differing = [one for one in differing if one in decided or one.key[0] not in ("base", "vocabulary")]
    if any_setting or any(one.key[0] == "data" for one in decided):
        differing = [one for one in differing if one in decided or one.key[0] != "data"]
    return list(differing)


def _name(key: tuple[str, ...], *, prompts: bool = False) -> str:
    """What a fact is called, as a template; with `prompts` the data are prompts."""
    if key[0] == _SETTINGS:
        return f"{{{key[1]}}}"
    if key[0] == _CONTENTS and len(key) == 2:
        return _literal(f"the content of {key[1]}")
    if prompts and key == ("data", "files"):
        return "{prompts}"
    return _NAMES.get(key) or _literal(f"the {key[0]}'s {key[1].replace('_', ' ')}" if len(key) == 2 else key[0])


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(_term, value)) or "none"
    text = "not set" if value is None else str(value)
    return f"{text[:12]}…" if _FINGERPRINT.fullmatch(text) else text


def _term(item: object) -> str:
    if isinstance(item, Mapping) and {"name", "source", "multiplier"} <= item.keys():
        return f"{item['name']}={item['source']}:{item['multiplier']:g}"
    return str(item)


def _literal(text: str) -> str:
    """Text that a template holds as it stands."""
    return text.replace("{", "{{").replace("}", "}}")
