"""How each method is put together: guides into an engine, a strength into weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.core import Guide, SamplingParams
from trimtab.engines.maker import EngineMaker, Guides, GuideSource
from trimtab.errors import OptionError
from trimtab.guides.args import TrajectoryGuide, args_selection
from trimtab.guides.arm import AdapterARM
from trimtab.guides.transfer_q import DIRECT_TOKENS, INDIRECT_TOKENS, RolloutGuide
from trimtab.methods.best_of_n import BestOfN
from trimtab.methods.method import Guided, PerStrength, Policy, Strength, number, numbers
from trimtab.methods.rewriting import TEMPLATE, Rewriting
from trimtab.methods.segments import SegmentRejection
from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.models.adapters.lora import LoRA, average
from trimtab.storage.cards import FORMED_KINDS
from trimtab.storage.directories import is_policy, locate_guide
from trimtab.storage.loading import load_own_base, load_policy, load_rewards
from trimtab.storage.scorers import load_scorer

Options = Mapping[str, Any]

GUIDE = "guide"
"""What the one guide of a method is called in its decoder."""


def base(engines: EngineMaker, options: Options) -> Policy:
    return Guided(engines.make(), lambda strength: {})


def sharpened(engines: EngineMaker, options: Options) -> Policy:
    """The base as its own guide: π_base · π_base^s. Its KL is to the base at temperature 1, as every other's."""
    return one_guide(engines, engines.itself())


def genarm(engines: EngineMaker, options: Options) -> Policy:
    """The paper's: an autoregressive reward model is a product, whatever its card says (as a shift: `policy`)."""
    return _tilted(engines, options, "genarm", lambda path: SHIFT if is_policy(path) else PRODUCT)


def guides(engines: EngineMaker, options: Options) -> Policy:
    """What `generate` and `serve` run when they are given the same guides."""
    return _tilted(engines, options, "guides", lambda path: None)


def _tilted(engines: EngineMaker, options: Options, name: str, form_of: Callable[[str], str | None]) -> Policy:
    paths: Mapping[str, str] = options["guides"]
    sources = {
        guide: GuideSource(path, form=form_of(path), guide_base=guide_base_of(options, guide))
        for guide, path in paths.items()
    }
    engine = engines.make(sources)
    for guide, found in engine.guides.items():
        if found.selection is not None:
            raise OptionError(f"Guide {guide} selects; {name} takes guides that tilt. Accepted: autoregressive ones.")
    return Guided(engine, lambda strength: numbers(strength, list(paths)))


def prompt(engines: EngineMaker, options: Options) -> Policy:
    sentence_of(options["guide"])
    return one_guide(engines, GuideSource(options["guide"]))


def system(engines: EngineMaker, options: Options) -> Policy:
    """The sentence in the prompt and nothing else: `prompt` with one sentence at weight 1, so its KL is exact too."""
    one_sentence(options["guide"])
    return Guided(engines.make(sentence_guide(engines, options)), lambda strength: {GUIDE: system_weight(strength)})


def sentence_guide(engines: EngineMaker, options: Options) -> Guides:
    """The guide of `prompt` and `system`."""
    return {GUIDE: GuideSource(options["guide"])}


def sentences_among(engines: EngineMaker, options: Options) -> Guides:
    """Those guides of `guides` that are made of a sentence."""
    paths: Mapping[str, str] = options["guides"]
    return {name: GuideSource(path) for name, path in paths.items() if locate_guide(path).card.kind == "prompt"}


def system_weight(strength: Strength) -> float:
    """Whether the sentence of `system` is read. Raises OptionError for a strength that is neither 1 nor 0."""
    if strength not in (0, 1):
        raise OptionError(
            f"A strength of {strength} means nothing to system: a system prompt is there (1) or not (0). Weigh the "
            "sentence with the method prompt."
        )
    return number(strength, what="give 1 (the sentence is read) or 0")


def parm(engines: EngineMaker, options: Options) -> Policy:
    def at(strength: Strength) -> Policy:
        vector = strength if isinstance(strength, tuple) else (strength,)
        how = GuideSource(options["guide"], form=PRODUCT, guide_base=options["guide_base"], preference=vector)
        return _fixed(engines, how, options["weight"])

    return PerStrength(at)


def mara(engines: EngineMaker, options: Options) -> Policy:
    """At the agent's own temperature and candidates, whatever the comparison samples at."""

    def ask(params: SamplingParams) -> SamplingParams:
        return replace(params, temperature=None, top_k=None, top_p=None)

    return one_guide(engines, GuideSource(options["guide"]), ask=ask)


def palc(engines: EngineMaker, options: Options) -> Policy:
    check_head(options["guide"])
    return one_guide(engines, GuideSource(options["guide"]))


def check_head(path: str) -> None:
    """Raise OptionError for a guide that is not a head on the base's states."""
    if (kind := locate_guide(path).card.kind) != "head":
        raise OptionError(
            f"{path} holds a guide of kind {kind!r}, and palc runs a low-rank head. Accepted: what `trimtab train arm "
            "--head-only` wrote."
        )


def args(engines: EngineMaker, options: Options) -> Policy:
    """At the comparison's temperature; 0 is ARGS-greedy, above it ARGS-stochastic."""
    rewards = load_rewards(options["reward"], beside=engines.model, guide_base=options["guide_base"])
    guide = TrajectoryGuide(rewards).at(top_k=options["top_k"])
    return one_guide(engines, guide, ask=_own_candidates)


def transfer_q(engines: EngineMaker, options: Options) -> Policy:
    indirect = options["policy_reward"] is not None
    completed: list[int] = []
    guide = RolloutGuide(
        load_rewards(options["reward"], beside=engines.model, guide_base=options["guide_base"]),
        None if options["policy"] is None else load_policy(options["policy"], beside=engines.model),
        load_rewards(options["policy_reward"], beside=engines.model) if indirect else None,
        num_tokens=options["rollout_tokens"] or (INDIRECT_TOKENS if indirect else DIRECT_TOKENS),
        selection=args_selection(top_k=options["top_k"]),
        note=completed.append,
    )
    return one_guide(engines, guide, ask=_own_candidates, others=lambda: sum(completed))


def best_of_n(engines: EngineMaker, options: Options) -> Policy:
    return BestOfN(engines.make(), load_scorer(options["scorer"]), sign=options["sign"])


def segments(engines: EngineMaker, options: Options) -> Policy:
    return SegmentRejection(
        engines.make(),
        load_scorer(options["scorer"]),
        target=options["target"],
        segment_tokens=options["segment_tokens"],
        max_tries=options["max_tries"],
    )


def aligner(engines: EngineMaker, options: Options) -> Policy:
    writers = engines if options["model"] is None else engines.beside(options["model"])
    guide = options["guide"]
    source = None if guide is None else GuideSource(guide, form=options["form"], guide_base=options["guide_base"])
    return Rewriting(
        engines.make(),
        writers.make({} if source is None else {GUIDE: source}),
        guide=None if source is None else GUIDE,
        template=options["template"] or TEMPLATE,
    )


def policy(engines: EngineMaker, options: Options) -> Policy:
    return one_guide(engines, tuned(options["path"], options))


def policies(engines: EngineMaker, options: Options) -> Policy:
    paths: Sequence[str] = options["paths"]

    def at(strength: Strength) -> Policy:
        return _fixed(engines, tuned(paths[index_of(strength, paths)], options), 1.0)

    return PerStrength(at)


def index_of(strength: Strength, paths: Sequence[str]) -> int:
    """Which of the policies a strength is. Raises OptionError for one that is none."""
    index = int(number(strength, what="give the number of a path", low=0, whole=True))
    if index >= len(paths):
        raise OptionError(f"There are {len(paths)} policies, and a strength is {index}; they are counted from 0.")
    return index


def soup(engines: EngineMaker, options: Options) -> Policy:
    """Averaged when a strength is asked for; the sum of changes is exact, so nothing is written."""
    paths: Sequence[str] = options["paths"]
    parts = [_adapter(path) for path in paths]
    own_base = load_own_base(paths[0], beside=engines.model, guide_base=options["guide_base"])

    def at(strength: Strength) -> Policy:
        weights = list(numbers(strength, list(paths)).values())
        policy = AdapterARM(average(parts, weights), form=SHIFT)
        return _fixed(engines, policy if own_base is None else policy.on(own_base), 1.0)

    return PerStrength(at)


def _own_candidates(params: SamplingParams) -> SamplingParams:
    """Filters of the comparison would change how many candidates a method sees."""
    return replace(params, top_k=None, top_p=None)


def one_guide(
    engines: EngineMaker,
    guide: GuideSource | Guide,
    *,
    ask: Callable[[SamplingParams], SamplingParams] = lambda params: params,
    others: Callable[[], int] = lambda: 0,
) -> Policy:
    def weights(strength: Strength) -> dict[str, float]:
        return {GUIDE: number(strength, what="give the weight")}

    return Guided(engines.make({GUIDE: guide}), weights, ask=ask, others=others)


def _fixed(engines: EngineMaker, guide: GuideSource | Guide, weight: float) -> Policy:
    return Guided(engines.make({GUIDE: guide}), lambda strength: {GUIDE: weight})


def guide_base_of(options: Options, name: str) -> str | None:
    """What `guide_base` says of one guide: one model for all of them, or a mapping of guides to models."""
    given = options["guide_base"]
    if isinstance(given, Mapping):
        base_name = given.get(name)
        return None if base_name is None else str(base_name)
    return None if given is None else str(given)


def sentence_of(path: str) -> Mapping[str, str]:
    """The sentences of a guide that is made of them. Raises OptionError for another guide."""
    card = locate_guide(path).card
    if card.kind != "prompt":
        raise OptionError(f'{path} is no guide made of a sentence; give prompt:"SENTENCE", or a directory of one.')
    return card.sentences


def one_sentence(path: str) -> None:
    """Raise OptionError for a guide that is not made of a single sentence."""
    if "away" in sentence_of(path):
        raise OptionError(
            "system takes one sentence, which the base reads as its system prompt, and two are given; leave the other "
            "out, or weigh both with the method prompt."
        )


def tuned(path: str, options: Options) -> GuideSource:
    """A policy, or any guide that is a language model, as a shift."""
    check_tuned(path)
    return GuideSource(path, form=SHIFT, guide_base=options["guide_base"])


def check_tuned(path: str) -> None:
    """Raise OptionError for a guide that is no language model."""
    if locate_guide(path).card.kind not in FORMED_KINDS:
        raise OptionError(
            f"{path} is a guide of another kind; give what `trimtab train dpo`, `train rl` or `soup` wrote."
        )


def _adapter(path: str) -> LoRA:
    policy = load_policy(path)
    if not isinstance(policy, LoRA):
        raise not_an_adapter(path)
    return policy


def not_an_adapter(path: str) -> OptionError:
    """What is said of a whole model where a LoRA policy is wanted."""
    return OptionError(f"{path} is a whole model; soups here are of LoRA policies. Average whole ones: trimtab soup.")
