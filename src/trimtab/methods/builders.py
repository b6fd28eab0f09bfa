"""How each method is put together on a model: guides into a `Decoder`, a strength into weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.core import Guide, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.guides.args import TrajectoryGuide, args_selection
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.guides.transfer_q import DIRECT_TOKENS, INDIRECT_TOKENS, RolloutGuide
from trimtab.methods.best_of_n import BestOfN
from trimtab.methods.method import Guided, PerStrength, Policy, Strength, number, numbers
from trimtab.methods.rewriting import TEMPLATE, Rewriting
from trimtab.methods.segments import SegmentRejection
from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.models.adapters.lora import LoRA, average
from trimtab.models.hf import HFModel
from trimtab.storage.cards import read_card
from trimtab.storage.directories import guide_directory
from trimtab.storage.loading import load_guide, load_model, load_own_base, load_policy, load_rewards
from trimtab.storage.scorers import load_scorer

Options = Mapping[str, Any]

GUIDE = "guide"
"""What the one guide of a method is called in its decoder."""


def base(model: HFModel, options: Options) -> Policy:
    return Guided(Decoder(model), lambda strength: {})


def sharpened(model: HFModel, options: Options) -> Policy:
    """The base as its own guide: π_base · π_base^s. Its KL is to the base at temperature 1, as every other's."""
    return _one_guide(model, ARM(model))


def genarm(model: HFModel, options: Options) -> Policy:
    """The paper's: an autoregressive reward model is a product, whatever its card says (as a shift: `policy`)."""
    guides: dict[str, Guide] = {}
    for name, path in options["guides"].items():
        guide = load_guide(path, beside=model, guide_base=guide_base_of(options, name))
        if not isinstance(guide, (ARM, AdapterARM)):
            raise OptionError(f"Guide {name} selects; genarm takes guides that tilt. Accepted: autoregressive ones.")
        guides[name] = guide if is_policy(path) else as_product(guide)
    names = list(guides)
    return Guided(Decoder(model, guides), lambda strength: numbers(strength, names))


def parm(model: HFModel, options: Options) -> Policy:
    def at(strength: Strength) -> Policy:
        vector = strength if isinstance(strength, tuple) else (strength,)
        how = {"beside": model, "guide_base": options["guide_base"], "form": PRODUCT}
        return _fixed(model, load_guide(options["guide"], preference=vector, **how), options["weight"])

    return PerStrength(at)


def mara(model: HFModel, options: Options) -> Policy:
    """At the agent's own temperature and candidates, whatever the comparison samples at."""

    def ask(params: SamplingParams) -> SamplingParams:
        return replace(params, temperature=None, top_k=None, top_p=None)

    return _one_guide(model, load_guide(options["guide"]), ask=ask)


def args(model: HFModel, options: Options) -> Policy:
    """At the comparison's temperature; 0 is ARGS-greedy, above it ARGS-stochastic."""
    rewards = load_rewards(options["reward"], beside=model, guide_base=options["guide_base"])
    guide = TrajectoryGuide(rewards).at(top_k=options["top_k"])
    return _one_guide(model, guide, ask=_own_candidates)


def transfer_q(model: HFModel, options: Options) -> Policy:
    indirect = options["policy_reward"] is not None
    guide = RolloutGuide(
        load_rewards(options["reward"], beside=model, guide_base=options["guide_base"]),
        None if options["policy"] is None else load_policy(options["policy"], beside=model),
        load_rewards(options["policy_reward"], beside=model) if indirect else None,
        num_tokens=options["rollout_tokens"] or (INDIRECT_TOKENS if indirect else DIRECT_TOKENS),
        selection=args_selection(top_k=options["top_k"]),
    )
    return _one_guide(model, guide, ask=_own_candidates, others=lambda: guide.meter.num_tokens)


def best_of_n(model: HFModel, options: Options) -> Policy:
    return BestOfN(Decoder(model), load_scorer(options["scorer"]), sign=options["sign"])


def segments(model: HFModel, options: Options) -> Policy:
    return SegmentRejection(
        Decoder(model),
        load_scorer(options["scorer"]),
        target=options["target"],
        segment_tokens=options["segment_tokens"],
        max_tries=options["max_tries"],
    )


def aligner(model: HFModel, options: Options) -> Policy:
    writer = model if options["model"] is None else load_model(options["model"])
    how = {"beside": writer, "guide_base": options["guide_base"], "form": options["form"]}
    guides = {} if options["guide"] is None else {GUIDE: load_guide(options["guide"], **how)}
    return Rewriting(
        Decoder(model),
        Decoder(writer, guides),
        guide=None if options["guide"] is None else GUIDE,
        template=options["template"] or TEMPLATE,
    )


def policy(model: HFModel, options: Options) -> Policy:
    return _one_guide(model, _tuned(model, options["path"], options))


def policies(model: HFModel, options: Options) -> Policy:
    paths: Sequence[str] = options["paths"]

    def at(strength: Strength) -> Policy:
        index = int(number(strength, what="give the number of a path", low=0, whole=True))
        if index >= len(paths):
            raise OptionError(f"There are {len(paths)} policies, and a strength is {index}; they are counted from 0.")
        return _fixed(model, _tuned(model, paths[index], options), 1.0)

    return PerStrength(at)


def soup(model: HFModel, options: Options) -> Policy:
    """Averaged when a strength is asked for; the sum of changes is exact, so nothing is written."""
    paths: Sequence[str] = options["paths"]
    parts = [_adapter(path) for path in paths]
    own = load_own_base(paths[0], beside=model, guide_base=options["guide_base"])

    def at(strength: Strength) -> Policy:
        weights = list(numbers(strength, list(paths)).values())
        policy = AdapterARM(average(parts, weights), form=SHIFT)
        return _fixed(model, policy if own is None else policy.on(own), 1.0)

    return PerStrength(at)


def _own_candidates(params: SamplingParams) -> SamplingParams:
    """Filters of the comparison would change how many candidates a method sees."""
    return replace(params, top_k=None, top_p=None)


def _one_guide(
    model: HFModel,
    guide: Guide,
    *,
    ask: Callable[[SamplingParams], SamplingParams] = lambda params: params,
    others: Callable[[], int] = lambda: 0,
) -> Policy:
    def weights(strength: Strength) -> dict[str, float]:
        return {GUIDE: number(strength, what="give the weight")}

    return Guided(Decoder(model, {GUIDE: guide}), weights, ask=ask, others=others)


def _fixed(model: HFModel, guide: Guide, weight: float) -> Policy:
    return Guided(Decoder(model, {GUIDE: guide}), lambda strength: {GUIDE: weight})


def guide_base_of(options: Options, name: str) -> str | None:
    """What `guide_base` says of one guide: one model for all of them, or a mapping of guides to models."""
    given = options["guide_base"]
    if isinstance(given, Mapping):
        found = given.get(name)
        return None if found is None else str(found)
    return None if given is None else str(given)


def as_product(guide: ARM | AdapterARM) -> ARM | AdapterARM:
    """The same weights, their log-probabilities whole."""
    if isinstance(guide, AdapterARM):
        return replace(guide, form=PRODUCT)
    return replace(guide, form=PRODUCT, reference=None)


def is_policy(path: str) -> bool:
    """Whether a guide is a tuned policy, which is always a shift."""
    return read_card(guide_directory(path, None)).kind == "policy"


def _tuned(model: HFModel, path: str, options: Options) -> ARM | AdapterARM:
    """A policy, or any guide that is a language model, as a shift."""
    guide = load_guide(path, beside=model, guide_base=options["guide_base"], form=SHIFT)
    if not isinstance(guide, (ARM, AdapterARM)):
        raise OptionError(
            f"{path} is a guide of another kind; give what `trimtab train dpo`, `train rl` or `soup` wrote."
        )
    return guide


def _adapter(path: str) -> LoRA:
    policy = load_policy(path)
    if not isinstance(policy, LoRA):
        raise OptionError(
            f"{path} is a whole model; soups here are of LoRA policies. Average whole ones: trimtab soup."
        )
    return policy
