"""A base and its guides as one directory that `vllm serve` loads: links and a config.json, no weight copied.

What is checked here is what `Decoder` checks when it binds a guide (vocabulary by content, an adapter's own base), and
what vLLM cannot do: a guide that reads another prompt than the base, or that needs a model to roll out. A guide that
was trained on another model than the base, of the same vocabulary, is packed with that one (from weak to strong).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.engines.vllm.agent.settings import EngineBase, agent_overrides, read_agent
from trimtab.engines.vllm.manifest import ARCHITECTURE, KEY, LORA_WAYS, Manifest, ServedGuide
from trimtab.errors import CompatibilityError, OptionError, unknown_name
from trimtab.guides.agent import Agent
from trimtab.mixing.forms import check_negative
from trimtab.models.adapters.lora import LoRA
from trimtab.models.adapters.row_lora import output_head
from trimtab.models.outline import Outline
from trimtab.prompts import check_same_vocabulary
from trimtab.storage.cards import GUIDE_KINDS, KINDS_IN_VLLM, GuideCard, is_adapter, read_card
from trimtab.storage.directories import (
    guide_directory,
    locate_guide,
    resolve_model,
)
from trimtab.storage.files import new_directory
from trimtab.storage.guide_bases import own_base

_CONVERSATION = [{"role": "user", "content": "a"}]


def pack(
    model: str | Path,
    guides: Mapping[str, str | Path],
    out: str | Path,
    *,
    weights: Mapping[str, float] | None = None,
    forms: Mapping[str, str] | None = None,
    bases: Mapping[str, str | Path] | None = None,
    lora: str = "shared",
    base_prompts: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Manifest:
    """Write the directory `out` that vLLM loads with guides in it; returns what it says.

    `weights` holds guides' weights in requests that do not name them (0 where it is silent; an agent's own threshold).
    `forms` holds guides' forms, `product` or `shift` (where it is silent: what their cards say), `bases` the models
    that guides were trained on, where these are not the base and the cards do not say so, or name an old place.
    `lora` says how guides that are LoRA adapters run (`manifest.ServedGuide.way`). Guides read the base's
    own prompt: one whose chat template differs is refused unless `base_prompts`. Without a guide it is the base, as the
    engine and its traces see it. Raises OptionError, CheckpointError,
    VocabularyMismatchError, BaseMismatchError, OutputExistsError, and CompatibilityError for what cannot run in vLLM.
    """
    if lora not in LORA_WAYS:
        raise unknown_name("way to run a LoRA guide", lora, LORA_WAYS)
    for name in (*(weights or {}), *(forms or {}), *(bases or {})):
        if name not in guides:
            raise unknown_name("guide", name, guides)
    directory = resolve_model(model, revision=revision).resolve()
    base = Outline(directory, name=str(model), trust_remote_code=trust_remote_code)
    served_guides = []
    for name, path in guides.items():
        asked = _Asked(
            weight=(weights or {}).get(name),
            form=(forms or {}).get(name),
            base=(bases or {}).get(name),
            lora=lora,
            base_prompts=base_prompts,
            trust_remote_code=trust_remote_code,
        )
        _check_kind(name, locate_guide(path).card)
        served_guides.append(_guide(name, guide_directory(path, None).resolve(), base, asked))
    manifest = Manifest(str(directory), tuple(base.architectures), tuple(served_guides), _nameless(base))
    check_negative(manifest.weights, manifest.forms, temperature=None, plausibility=None)
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked of a guide."""

    weight: float | None
    form: str | None
    base: str | Path | None
    lora: str
    base_prompts: bool
    trust_remote_code: bool


def _check_kind(name: str, card: GuideCard) -> None:
    """Raise CompatibilityError for a guide of a kind that vLLM does not run."""
    refused = GUIDE_KINDS[card.kind].not_in_vllm
    if refused:
        raise CompatibilityError(f"Guide {name} {refused.format(accepted=', '.join(KINDS_IN_VLLM))}")


def _guide(name: str, directory: Path, base: Outline, asked: _Asked) -> ServedGuide:
    card = read_card(directory)
    if card.kind == "agent":
        return _agent(name, directory, card, base, asked)
    form = card.form(asked.form)
    adapter = is_adapter(directory)
    guide_base = _own_base(directory, card, form, base, asked)
    if guide_base is not None:
        _check_prompts(name, base, guide_base, asked.base_prompts)
    if adapter:
        _check_adapter(name, LoRA.load(directory, card.trained_on), guide_base or base, asked.lora)
    else:
        whole = Outline(directory, name=name, trust_remote_code=asked.trust_remote_code)
        check_same_vocabulary(base, whole)
        _check_prompts(name, base, whole, asked.base_prompts)
    way = asked.lora if adapter else "model"
    beside = None if guide_base is None else str(guide_base.directory)
    weight = card.strength_served(asked.weight, form=asked.form)
    return ServedGuide(name, card.kind, str(directory), way, weight, form, beside)


def _check_adapter(name: str, adapter: LoRA, base: Outline, way: str) -> None:
    """Raise BaseMismatchError for an adapter of another model, CompatibilityError for layers that vLLM would leave out.

    On rows it adapts linear layers, of which the output head is none; merging goes by the names of weights [out, in].
    """
    adapter.check(base)
    head = output_head(base.module)
    tied = bool(base.module.config.get_text_config().tie_word_embeddings)
    if head in adapter.pairs and (tied or way == "shared"):
        way_out = "Use the built-in engine." if tied else "Pack it with --lora merged, or use the built-in engine."
        raise CompatibilityError(
            f"Guide {name} adapts the output head ({head}), {'which is the embeddings here, ' if tied else ''}"
            f"and vLLM cannot run it so. {way_out}"
        )
    turned = [part for part in adapter.pairs if type(base.module.get_submodule(part)).__name__ == "Conv1D"]
    if turned and way == "merged":
        raise CompatibilityError(
            f"Guide {name} adapts {turned[0]}, whose weight is kept turned [in, out], which is not merged in vLLM. "
            "Pack it with --lora shared, or use the built-in engine."
        )


def _own_base(directory: Path, card: GuideCard, form: str, base: Outline, asked: _Asked) -> Outline | None:
    """The model that a guide runs on or is measured from, where that is not `base` (`guide_bases.own_base`)."""

    def outline(name: str) -> Outline:
        return Outline(resolve_model(name).resolve(), name=name, trust_remote_code=asked.trust_remote_code)

    guide_base = own_base(directory, card, base, outline, guide_base=asked.base, form=form)
    return None if guide_base is None or guide_base.directory == base.directory else guide_base


def _agent(name: str, directory: Path, card: GuideCard, base: Outline, asked: _Asked) -> ServedGuide:
    """Raises CompatibilityError for an agent under a rule that vLLM cannot keep (`agent_settings.read_agent`)."""
    if asked.form is not None or asked.base is not None:
        what, flag = ("form", "--form") if asked.form is not None else ("base of its own", "--guide-base")
        raise OptionError(f"Guide {name} is an accept-reject agent, which has no {what}; leave {flag} out.")
    agent = Agent.of_directory(directory, card.written)
    weight = card.strength_served(asked.weight, otherwise=agent.weight)
    guide = ServedGuide(name, "agent", str(directory), "head", weight)
    read_agent(
        Manifest(str(base.directory), tuple(base.architectures), (guide,)),
        EngineBase(base.hidden_size, base.name, base.device),
    )
    return guide


def _check_prompts(name: str, base: Outline, guide_model: Outline, base_prompts: bool) -> None:
    """Raise CompatibilityError for a guide that would read chat messages through a template of its own."""
    base_tokenizer, guide_tokenizer = base.tokenizer, guide_model.tokenizer
    if base_prompts or not (base_tokenizer.has_chat_template and guide_tokenizer.has_chat_template):
        return
    if base_tokenizer.encode_chat(_CONVERSATION) != guide_tokenizer.encode_chat(_CONVERSATION):
        raise CompatibilityError(
            f"Guide {name} has another chat template than the base; in vLLM both read the same tokens. Pack it with "
            "--base-prompts to let it read the base's, or use the built-in engine, where each reads its own."
        )


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
