"""Every method that a comparison knows, by name: what it takes, what its dial means, how it is built.

A method is a guide (or several) in the one decoding loop, or a few lines over that loop. Nothing is loaded until
`build_policy`; `check_method` only reads names and numbers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.core import LanguageModel
from trimtab.engines.maker import (
    IN_PROCESS,
    MASKS,
    PREFERENCES,
    PROMPTS,
    SECOND_BASE,
    SELECTING,
    STATES,
    EngineMaker,
)
from trimtab.errors import OptionError
from trimtab.methods import options as opt
from trimtab.methods.entry import Method, Options
from trimtab.methods.method import Policy, Strength
from trimtab.mixing.forms import FORMS

GENARM, GUIDES = "genarm", "guides"
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("base", "the frozen model", "", "none (0)", (0.0,), {}, "builders:base"),
        Method(
            "sharpened",
            "control: the base at a lower temperature, guided by nobody",
            "",
            "s: π_base^(1 + s)",
            (0.25, 0.5, 1.0, 2.0),
            {},
            "builders:sharpened",
            low=0,
        ),
        Method(
            GENARM,
            "autoregressive reward models, one or several",
            "2410.08193",
            "weight of the guide, or one a guide",
            (0.5, 1.0, 1.5, 2.0),
            {
                "guides": opt.names("guides by name"),
                "guide_base": opt.GUIDE_BASES,
            },
            "builders:genarm",
            checks="checking:genarm",
            reads="guides",
            objectives=True,
        ),
        Method(
            GUIDES,
            "guides as they are served: language models in the forms of their cards, sentences beside them",
            "",
            "weight of the guide, or one a guide",
            (0.5, 1.0, 2.0),
            {
                "guides": opt.names("guides by name"),
                "guide_base": opt.GUIDE_BASES,
            },
            "builders:guides",
            checks="checking:guides",
            readers="builders:sentences_among",
            reads="guides",
            objectives=True,
        ),
        Method(
            "prompt",
            "a sentence that the base reads, or one towards and one away, untrained",
            "2405.01768",
            "weight: π · (π with one / π with the other)^w",
            (1.0, 2.0, 4.0),
            {"guide": opt.SENTENCE},
            "builders:prompt",
            checks="checking:sentence",
            readers="builders:sentence_guide",
            reads="guide",
            needs=frozenset({PROMPTS}),
        ),
        Method(
            "system",
            "control: the sentence as plain system prompt, guided by nobody",
            "",
            "1: the sentence is read; 0: it is not",
            (1.0,),
            {"guide": opt.SENTENCE},
            "builders:system",
            checks="checking:system",
            readers="builders:sentence_guide",
            reads="guide",
            low=0,
            needs=frozenset({PROMPTS}),
        ),
        Method(
            "few-shot",
            "control: examples as earlier turns of the chat, guided by nobody; raised or lowered at other weights",
            "2005.14165",
            "weight: π · (π with the examples / π)^w; 1 is few-shot prompting",
            (1.0,),
            {
                "examples": opt.path("a .jsonl file of examples: prompt, and completion, response, answer or chosen"),
                "num": opt.count("how many of them are read, from the first on", 4),
            },
            "few_shot:build",
            checks="checking:few_shot",
            readers="few_shot:guides",
            needs=frozenset({IN_PROCESS, PROMPTS}),
        ),
        Method(
            "parm",
            "one autoregressive reward model conditioned on the preference vector",
            "2505.06274",
            "preference vector",
            ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)),
            {
                "guide": opt.path("what `trimtab train parm` wrote"),
                "weight": opt.number("weight of the guide", 1.0),
                "guide_base": opt.GUIDE_BASE,
            },
            "builders:parm",
            checks="checking:parm",
            reads="guide",
            objectives=True,
            low=0,
            needs=frozenset({PREFERENCES}),
        ),
        Method(
            "mara",
            "an accept-reject agent on the base's states",
            "2505.19743",
            "acceptance threshold",
            (0.3, 0.5, 0.7, 0.9),
            {"guide": opt.path("what `trimtab train agent` wrote")},
            "builders:mara",
            checks="checking:mara",
            reads="guide",
            low=0,
            needs=frozenset({SELECTING}),
        ),
        Method(
            "palc",
            "a low-rank head on the base's final state, added to its logits",
            "",
            "weight of the head: π_base · exp(w · B A h)",
            (0.5, 1.0, 2.0, 4.0),
            {"guide": opt.path("what `trimtab train arm --head-only` wrote")},
            "builders:palc",
            checks="checking:palc",
            reads="guide",
            needs=frozenset({STATES}),
        ),
        Method(
            "args",
            "a trajectory reward model scores each candidate",
            "2402.01694",
            "weight of the reward",
            (0.5, 1.0, 1.5, 3.0),
            {"reward": opt.REWARD, "top_k": opt.TOP_K, "guide_base": opt.GUIDE_BASE},
            "builders:args",
            checks="checking:rewards",
            reads="reward",
            needs=frozenset({SELECTING, IN_PROCESS}),
        ),
        Method(
            "transfer-q",
            "each candidate is completed by an aligned policy before it is scored",
            "2405.20495",
            "weight of the value",
            (0.5, 1.0, 1.5, 3.0),
            {
                "reward": opt.REWARD,
                "policy": opt.path("aligned policy that completes; left out: the base itself", None),
                "policy_reward": opt.path("what the policy was aligned to: the indirect form", None),
                "rollout_tokens": opt.count("tokens of a completion (20; indirect 5)", 0),
                "top_k": opt.TOP_K,
                "guide_base": opt.GUIDE_BASE,
            },
            "builders:transfer_q",
            checks="checking:rewards",
            reads="reward",
            needs=frozenset({SELECTING, IN_PROCESS}),
        ),
        Method(
            "best-of-n",
            "the best of N answers",
            "2009.01325",
            "N",
            (2.0, 4.0, 8.0, 16.0),
            {"scorer": opt.SCORER, "sign": opt.SIGN},
            "builders:best_of_n",
            checks="checking:scorer",
            reads="scorer",
            low=1,
        ),
        Method(
            "segments",
            "segments of the base's text, each accepted or drawn again",
            "2406.16306",
            "1/β: how sharply a reward below the target is rejected",
            (1.0, 2.0, 4.0, 8.0),
            {
                "scorer": opt.SCORER,
                "target": opt.number("reward at which a segment is always accepted"),
                "segment_tokens": opt.count("tokens of a segment", 8),
                "max_tries": opt.count("proposals before the best is taken", 10),
            },
            "builders:segments",
            checks="checking:scorer",
            reads="scorer",
            low=0,
        ),
        Method(
            "cards",
            "segments cut where the base is unsure, drawn until a reward model accepts",
            "2406.16306",
            "1/β: how sharply a reward below the threshold is rejected",
            (0.7, 1.4, 2.8, 5.6),
            {
                "scorer": opt.SCORER,
                "target": opt.number("reward that is reached at the answer's full length"),
                "start": opt.number_between(0, 1, "share of the target that holds at the answer's start", 0.5),
                "entropy": opt.number_between(0, math.inf, "nats at which the base is unsure and a segment ends", 3.0),
                "min_tokens": opt.count("tokens of a segment at least", 4),
                "max_tokens": opt.count("tokens of a segment at most", 64),
                "max_tries": opt.count("proposals before the best is taken", 20),
            },
            "cards:build",
            checks="checking:scorer",
            reads="scorer",
            low=0,
        ),
        Method(
            "aligner",
            "a second model rewrites the answer",
            "2402.02416",
            "0: off; else the weight of the aligner's guide, if it has one",
            (1.0,),
            {
                "model": opt.path("the model that rewrites; left out: the base itself", None),
                "guide": opt.path("guide of the aligner", None),
                "form": opt.one_of(FORMS, "how the guide is weighed (what its card says)", None),
                "guide_base": opt.GUIDE_BASE,
                "template": opt.text("a text with {question} and {answer}", "what the aligner reads", None),
            },
            "builders:aligner",
            checks="checking:aligner",
            reads="model",
            low=0,
            needs=frozenset({SECOND_BASE}),
        ),
        Method(
            "policy",
            "a tuned policy: DPO, RLHF, multi-objective RL",
            "2402.02992",
            "λ: π_base^(1 − λ) · π^λ; 1 is the policy itself",
            (0.5, 1.0, 1.5, 2.0),
            {
                "path": opt.path("what `trimtab train dpo`, `train rl` or `soup` wrote, or a guide, as a shift"),
                "guide_base": opt.GUIDE_BASE,
            },
            "builders:policy",
            checks="checking:policy",
            reads="path",
        ),
        Method(
            "aad",
            "Alignment-Aware Decoding: a tuned policy less what it was tuned from, on its own likely tokens",
            "2509.26169",
            "weight: π_base · (policy / what it was tuned from)^w; some thousands at temperature 0 is the paper's rule",
            (1.0, 2.0, 4.0, 8.0),
            {
                "path": opt.path("what `trimtab train dpo`, `train rl` or `soup` wrote, or a guide, as a shift"),
                "alpha": opt.number_between(0, 1, "share of the policy's own best probability that a token needs", 0.1),
                "guide_base": opt.GUIDE_BASE,
            },
            "aad:build",
            checks="checking:policy",
            reads="path",
            low=0,
            needs=frozenset({MASKS}),
        ),
        Method(
            "policies",
            "several tuned policies, one a strength: multi-objective RL with one run a weight vector",
            "2306.04488",
            "which of the paths, counted from 0",
            (0.0,),
            {"paths": opt.paths("policies in order"), "guide_base": opt.GUIDE_BASE},
            "builders:policies",
            checks="checking:policies",
            reads="paths",
            low=0,
        ),
        Method(
            "soup",
            "Rewarded Soups: the weights of policies averaged",
            "2306.04488",
            "λ of each policy",
            ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)),
            {"paths": opt.paths("LoRA policies of one base, in the order of λ"), "guide_base": opt.GUIDE_BASE},
            "builders:soup",
            checks="checking:soup",
            reads="paths",
            objectives=True,
            low=0,
            needs=frozenset({IN_PROCESS}),
        ),
    )
}
"""Name -> method."""


def check_method(name: str, options: Mapping[str, Any], strengths: Sequence[Strength]) -> list[str]:
    """Every problem of a method's name, options and strengths, a sentence each; nothing is loaded."""
    method = METHODS.get(name)
    if method is None:
        return [f"method {name!r} is not known{_nearest(name, METHODS)}."]
    problems = [
        f"{name} takes no option {key!r}{_nearest(key, method.options)}."
        for key in options
        if key not in method.options
    ]
    for key, option in method.options.items():
        if key not in options:
            if option.default is opt.REQUIRED:
                problems.append(f"{name} needs {key}: {option.help}.")
        elif not (options[key] is None and option.default is None) and not option.accepts(options[key]):
            problems.append(f"{key} of {name} is {options[key]!r}; give {option.accepted}.")
    return [*problems, *(problem for strength in strengths if (problem := _strength_problem(method, strength)))]


def form_is_the_cards(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a method with these options runs its guide in the form that the guide's card says."""
    has_form = name in METHODS and "form" in METHODS[name].options
    return name == GUIDES or (has_form and options.get("form") is None)


def build_policy(base: LanguageModel | EngineMaker, name: str, options: Options) -> Policy:
    """A method on a model in this process, or on engines of one base. Options left out have their defaults.

    Raises OptionError for an unknown name, for options that are not accepted, and for a method that this kind of engine
    cannot run.

    >>> from trimtab import SamplingParams, TabularModel, build_policy
    >>> policy = build_policy(TabularModel.random(9, seed=0), "sharpened", {})
    >>> params = SamplingParams(max_new_tokens=3, ignore_eos=True, trace=True)
    >>> [answer] = policy.answer(["ab"], 0.5, params, seeds=[1])
    >>> policy.kl_kind, len(answer.token_ids)
    ('exact', 3)
    """
    from trimtab.engines.builtin import BuiltinMaker

    engines = base if isinstance(base, EngineMaker) else BuiltinMaker(base)
    if problems := check_method(name, options, []):
        raise OptionError(" ".join(f"{problem[0].upper()}{problem[1:]}" for problem in problems))
    method = METHODS[name]
    engines.check_features(method.needs, what=f"The method {name}")
    return method.build(engines, method.complete(options))


def check_engine(names: Iterable[str], maker: type[EngineMaker]) -> None:
    """Raise OptionError for methods that engines of this kind cannot run, with those that they can."""
    refused = [name for name in dict.fromkeys(names) if not maker.runs(METHODS[name].needs)]
    if refused:
        why = next(maker.refusals[need] for need in sorted(METHODS[refused[0]].needs) if need in maker.refusals)
        accepted = [name for name, method in METHODS.items() if maker.runs(method.needs)]
        raise OptionError(
            f"--engine {maker.name} cannot run {', '.join(refused)}: {why} Accepted: {', '.join(accepted)}."
        )


def _strength_problem(method: Method, strength: Strength) -> str | None:
    several = isinstance(strength, (tuple, list))
    values = list(strength) if isinstance(strength, (tuple, list)) else [strength]
    if several and not method.objectives:
        return f"{method.name} has one dial ({method.dial}), and a strength is {strength}."
    if not all(map(opt.is_number, values)) or not values:
        return f"a strength of {method.name} is {strength!r}; give {method.dial}."
    if min(values) < method.low:
        return f"a strength of {method.name} is {strength}; give at least {method.low:g} ({method.dial})."
    return None


def _nearest(name: str, accepted: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, accepted, n=1)
    ending = f"; accepted: {', '.join(accepted)}" if accepted else "; it takes none"
    return f" (did you mean {near[0]!r}?){ending}" if near else ending
