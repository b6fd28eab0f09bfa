"""A base and its guides as one directory that `vllm serve` loads: links and a config.json, no weight copied.

What is checked here is what `Decoder` checks when it binds a guide (vocabulary by content, an adapter's own base), and
what vLLM cannot do: a guide that reads another prompt than the base, or that needs a model to roll out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.directories import guide_directory, kind_of, new_directory, read_guide_card, resolve_model
from trimtab.engines.vllm.agent_settings import agent_overrides
from trimtab.engines.vllm.manifest import ARCHITECTURE, KEY, Manifest, ServedGuide
from trimtab.errors import CompatibilityError, OptionError, unknown_name
from trimtab.models.lora import LoRA
from trimtab.models.outline import Outline
from trimtab.prompts import check_same_vocabulary

LORA_WAYS = ("shared", "merged")
_KINDS = ("arm", "policy", "agent")
_CONVERSATION = [{"role": "user", "content": "a"}]


def pack(
    model: str | Path,
    guides: Mapping[str, str | Path],
    out: str | Path,
    *,
    weights: Mapping[str, float] | None = None,
    lora: str = "shared",
    base_prompts: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Manifest:
    """Write the directory `out` that vLLM loads with guides in it; returns what it says.

    `weights` holds guides' weights in requests that do not name them (0 where it is silent; an agent's own threshold).
    `lora` says how guides that are LoRA adapters of the base run (`manifest.ServedGuide.way`). Guides read the base's
    own prompt: one whose chat template differs is refused unless `base_prompts`. Raises OptionError, CheckpointError,
    VocabularyMismatchError, BaseMismatchError, OutputExistsError, and CompatibilityError for what cannot run in vLLM.
    """
    if lora not in LORA_WAYS:
        raise unknown_name("way to run a LoRA guide", lora, LORA_WAYS)
    if not guides:
        raise OptionError("There is no guide to pack. Give at least one: --guide NAME=PATH.")
    for name in weights or {}:
        if name not in guides:
            raise unknown_name("guide", name, guides)
    directory = resolve_model(model, revision=revision).resolve()
    base = Outline(directory, name=str(model), trust_remote_code=trust_remote_code)
    found = []
    for name, path in guides.items():
        weight = (weights or {}).get(name)
        guide = _guide(name, guide_directory(path, None).resolve(), weight, lora, base, base_prompts)
        found.append(guide)
    manifest = Manifest(str(directory), tuple(base.architectures), tuple(found), _nameless(base))
    write(manifest, Path(out), overwrite=overwrite)
    return manifest


def write(manifest: Manifest, out: Path, *, overwrite: bool = False) -> None:
    """Write the directory of a manifest, whole or not at all: links to the base's files, and a config.json."""
    base = Path(manifest.base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    with new_directory(out, overwrite=overwrite) as temporary:
        for path in sorted(base.iterdir()):
            if path.is_file() and path.name != "config.json":
                (temporary / path.name).symlink_to(path.resolve())
        entries = {**config, **_entries(manifest), KEY: manifest.as_config()}
        text = json.dumps(entries, indent=2, ensure_ascii=False)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")


def _entries(manifest: Manifest) -> dict[str, Any]:
    if not any(guide.kind == "agent" for guide in manifest.guides):
        return {"architectures": [ARCHITECTURE]}
    if len(manifest.guides) > 1:
        raise CompatibilityError(
            "An accept-reject agent has an engine of its own in vLLM, without other guides. Pack it alone, or use the "
            "built-in engine, where both run in one batch."
        )
    return agent_overrides()


def _guide(
    name: str, directory: Path, weight: float | None, lora: str, base: Outline, base_prompts: bool
) -> ServedGuide:
    card = read_guide_card(directory)
    kind = str(card.get("kind", kind_of(directory)))
    if kind not in _KINDS:
        raise CompatibilityError(_refusal(name, kind))
    if kind == "agent":
        return _agent(name, directory, weight, base)
    if (directory / "adapter_config.json").exists():
        LoRA.load(directory, card).check(base)
        return ServedGuide(name, kind, str(directory), lora, weight or 0.0)
    own = Outline(directory, name=name)
    check_same_vocabulary(base, own)
    _check_prompts(name, base, own, base_prompts)
    return ServedGuide(name, kind, str(directory), "model", weight or 0.0)


def _agent(name: str, directory: Path, weight: float | None, base: Outline) -> ServedGuide:
    from trimtab.guides.agent import Agent

    agent = Agent.of_directory(directory, read_guide_card(directory)).bind(base)
    return ServedGuide(name, "agent", str(directory), "shared", agent.weight if weight is None else weight)


def _check_prompts(name: str, base: Outline, own: Outline, base_prompts: bool) -> None:
    """Raise CompatibilityError for a guide that would read chat messages through a template of its own."""
    ours, theirs = base.tokenizer, own.tokenizer
    if base_prompts or not (ours.has_chat_template and theirs.has_chat_template):
        return
    if ours.encode_chat(_CONVERSATION) != theirs.encode_chat(_CONVERSATION):
        raise CompatibilityError(
            f"Guide {name} has another chat template than the base; in vLLM both read the same tokens. Pack it with "
            "--base-prompts to let it read the base's, or use the built-in engine, where each reads its own."
        )


def _refusal(name: str, kind: str) -> str:
    if kind == "reward":
        return (
            f"Guide {name} is a trajectory reward model, which scores candidates one by one or after roll-outs; vLLM "
            f"has no place for that. Accepted in vLLM: {', '.join(_KINDS)}. Use the built-in engine."
        )
    if kind == "parm":
        return (
            f"Guide {name} is made for every preference vector; vLLM runs one. Save it at a vector first: "
            "save_guide(load_parm(PATH).at((0.7, 0.3)), OUT), and pack OUT."
        )
    return f"Guide {name} is of kind {kind!r}. Accepted in vLLM: {', '.join(_KINDS)}."


def _nameless(base: Outline) -> tuple[tuple[int, int], ...]:
    """Ranges of ids that no token has."""
    named = set(base.tokenizer.tokens.values())
    missing = [token_id for token_id in range(base.vocab_size) if token_id not in named]
    ranges: list[tuple[int, int]] = []
    for token_id in missing:
        if ranges and ranges[-1][1] == token_id:
            ranges[-1] = (ranges[-1][0], token_id + 1)
        else:
            ranges.append((token_id, token_id + 1))
    return tuple(ranges)
