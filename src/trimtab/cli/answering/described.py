"""What decides an answer, as a description that is compared before a file of answers is continued.

The batch size is not in it, nor who drafts: they change no answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.cli import guide_options, options
from trimtab.cli.prompts import PromptRow

if TYPE_CHECKING:
    from trimtab.cli.engines import EngineChoice
    from trimtab.engines.maker import GuideSource
    from trimtab.storage.model_source import ModelSource

_FLAGS = (
    *("model", "revision", "dtype", "template", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("rule", "plausibility", "repetition_penalty", "stop", "ignore_eos"),
)


_FLAGS_IF_SET = ("presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "stop_token_ids")
"""In a description only where they ask for something, so that files of answers from before they were go on."""


def _plain(value: Any) -> Any:
    """A value as it is read back from JSON, whose keys are texts."""
    if isinstance(value, Mapping):
        return [list(pair) for pair in sorted(value.items())]
    return list(value) if isinstance(value, tuple) else value


def first_seed(seed: int | None, before: Mapping[str, Any] | None) -> int:
    """The seed given, else that of the answers to be continued, else a new one."""
    if seed is not None:
        return seed
    if before is not None and isinstance(before.get("seed"), int):
        return int(before["seed"])
    return secrets.randbelow(2**31)


def sampling(
    args: argparse.Namespace,
    engine: EngineChoice,
    model: ModelSource,
    template_options: Mapping[str, Any],
    rows: Sequence[PromptRow],
    seed: int,
) -> dict[str, Any]:
    """The flags of a command that samples answers, its guides by their content, its prompts by a digest."""
    preferences = options.named_preferences(args.preferences, [spec.name for spec in args.guides])
    forms, bases = guide_options.read(args)
    from trimtab.prompts import as_json

    content = json.dumps([[as_json(row.prompt), row.weights, row.seed] for row in rows], ensure_ascii=True)
    return {
        **{name: getattr(args, name) for name in _FLAGS},
        **{name: _plain(value) for name in _FLAGS_IF_SET if (value := getattr(args, name))},
        **({"quantize": args.quantize} if args.quantize else {}),
        **({"template_options": dict(template_options)} if template_options else {}),
        "guides": {
            spec.name: {
                "source": _content_of(spec.path),
                "weight": spec.weight,
                **({"preference": list(preferences[spec.name])} if spec.name in preferences else {}),
                **({"form": forms[spec.name]} if spec.name in forms else {}),
                **({"guide_base": bases[spec.name]} if spec.name in bases else {}),
            }
            for spec in args.guides
        },
        "prompts": hashlib.sha256(content.encode()).hexdigest(),
        "seed": seed,
        **_engine(engine, model),
    }


def contents(model: ModelSource, guides: Mapping[str, GuideSource]) -> dict[str, Any]:
    """The content of what the names stand for: the model, and the guides' bases."""
    from trimtab.storage.digests import model_contents

    bases = {name: guide.guide_base for name, guide in guides.items() if guide.guide_base is not None}
    return {
        "model": model_contents(model.name),
        **({"guide_bases": {name: model_contents(base) for name, base in bases.items()}} if bases else {}),
    }


def _engine(engine: EngineChoice, model: ModelSource) -> dict[str, Any]:
    """What another engine adds to that: its draws are others. Nothing where the built-in engine answers."""
    if engine.is_builtin:
        return {}
    return {"engine": engine.name, **engine.open(model).contents}


def _content_of(path: str) -> str:
    """What a guide is: its content, so that one trained anew is not taken for the old; its name where it has none."""
    from trimtab.storage.digests import model_contents

    files = model_contents(path).get("files")
    return path if files is None else f"sha256:{files}"
