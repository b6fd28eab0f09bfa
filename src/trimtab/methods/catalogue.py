"""Every method that a comparison knows, by name: what it takes, what its dial means, how it is built.

A method is a guide (or several) in the one decoding loop, or a few lines over that loop. Nothing is loaded until
`build_policy`; `check_method` only reads names and numbers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.errors import OptionError
from trimtab.methods import builders
from trimtab.methods.method import Policy, Strength
from trimtab.mixing.forms import FORMS, PRODUCT, SHIFT, check_negative
from trimtab.models.hf import HFModel

REQUIRED = object()
"""The default of an option that has none."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a method."""

    accepts: Callable[[Any], bool]
    accepted: str
    """What is accepted, in words."""
    help: str
    default: Any = REQUIRED


@dataclass(frozen=True, slots=True)
class Method:
    """A method of steering, or a control."""

    name: str
    summary: str
    paper: str
    """arXiv number; empty for a control."""
    dial: str
    """What a strength means."""
    default_strengths: tuple[Strength, ...]
    options: Mapping[str, Option]
    build: Callable[[HFModel, Mapping[str, Any]], Policy]
    reads: str | None = None
    """The option that `--guide` fills: guides, paths, or what one guide is. None: it reads nothing."""
    objectives: bool = False
    """Whether a strength may be several numbers, one an objective."""
    low: float = -math.inf
    """The smallest strength that means something."""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_names(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(_is_name(k) and _is_name(v) for k, v in value.items())


def _path(help_text: str, default: Any = REQUIRED) -> Option:
    return Option(_is_name, "a path or name", help_text, default)


def _count(help_text: str, default: int) -> Option:
    return Option(_is_count, "a whole number of at least 1", help_text, default)


def _number(help_text: str, default: Any) -> Option:
    return Option(_is_number, "a finite number", help_text, default)


def _paths(help_text: str) -> Option:
    return Option(
        lambda value: isinstance(value, (list, tuple)) and bool(value) and all(map(_is_name, value)),
        "a list of paths",
        help_text,
    )


def _is_base(value: Any) -> bool:
    return _is_name(value) or _is_names(value)


_GUIDE_BASE = _path("the model that it was trained on, where that is not the steered one (what its card says)", None)
_GUIDE_BASES = Option(
    _is_base,
    "a model's name, or a mapping of guides to models",
    "the model that the guides were trained on, where that is not the steered one (what their cards say)",
    None,
)
_FORM = Option(lambda value: value in FORMS, "product or shift", "how the guide is weighed (what its card says)", None)
_REWARD = _path("trajectory reward model: what `trimtab train reward` wrote, or a one-label classifier")
_SCORER = _path("sentiment, offence, a reward model's directory, or module:function")
_SIGN = Option(lambda value: value in (1, -1), "1 or -1", "-1 where a lower score is better", 1)
_TOP_K = _count("candidates at each step", 10)

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("base", "the frozen model", "", "none (0)", (0.0,), {}, builders.base),
        Method(
            "sharpened",
            "control: the base at a lower temperature, guided by nobody",
            "",
            "s: π_base^(1 + s)",
            (0.25, 0.5, 1.0, 2.0),
            {},
            builders.sharpened,
            low=0,
        ),
        Method(
            "genarm",
            "autoregressive reward models, one or several",
            "2410.08193",
            "weight of the guide, or one a guide",
            (0.5, 1.0, 1.5, 2.0),
            {
                "guides": Option(_is_names, "a mapping of names to paths", "guides by name"),
                "guide_base": _GUIDE_BASES,
            },
            builders.genarm,
            reads="guides",
            objectives=True,
        ),
        Method(
            "parm",
            "one autoregressive reward model conditioned on the preference vector",
            "2505.06274",
            "preference vector",
            ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)),
            {
                "guide": _path("what `trimtab train parm` wrote"),
                "weight": _number("weight of the guide", 1.0),
                "guide_base": _GUIDE_BASE,
            },
            builders.parm,
            reads="guide",
            objectives=True,
            low=0,
        ),
        Method(
            "mara",
            "an accept-reject agent on the base's states",
            "2505.19743",
            "acceptance threshold",
            (0.3, 0.5, 0.7, 0.9),
            {"guide": _path("what `trimtab train agent` wrote")},
            builders.mara,
            reads="guide",
            low=0,
        ),
        Method(
            "args",
            "a trajectory reward model scores each candidate",
            "2402.01694",
            "weight of the reward",
            (0.5, 1.0, 1.5, 3.0),
            {"reward": _REWARD, "top_k": _TOP_K, "guide_base": _GUIDE_BASE},
            builders.args,
            reads="reward",
        ),
        Method(
            "transfer-q",
            "each candidate is completed by an aligned policy before it is scored",
            "2405.20495",
            "weight of the value",
            (0.5, 1.0, 1.5, 3.0),
            {
                "reward": _REWARD,
                "policy": _path("aligned policy that completes; left out: the base itself", None),
                "policy_reward": _path("what the policy was aligned to: the indirect form", None),
                "rollout_tokens": _count("tokens of a completion (20; indirect 5)", 0),
                "top_k": _TOP_K,
                "guide_base": _GUIDE_BASE,
            },
            builders.transfer_q,
            reads="reward",
        ),
        Method(
            "best-of-n",
            "the best of N answers",
            "2009.01325",
            "N",
            (2.0, 4.0, 8.0, 16.0),
            {"scorer": _SCORER, "sign": _SIGN},
            builders.best_of_n,
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
                "scorer": _SCORER,
                "target": _number("reward at which a segment is always accepted", REQUIRED),
                "segment_tokens": _count("tokens of a segment", 8),
                "max_tries": _count("proposals before the best is taken", 10),
            },
            builders.segments,
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
                "model": _path("the model that rewrites; left out: the base itself", None),
                "guide": _path("guide of the aligner", None),
                "form": _FORM,
                "guide_base": _GUIDE_BASE,
                "template": Option(_is_name, "a text with {question} and {answer}", "what the aligner reads", None),
            },
            builders.aligner,
            reads="model",
            low=0,
        ),
        Method(
            "policy",
            "a tuned policy: DPO, RLHF, multi-objective RL",
            "2402.02992",
            "λ: π_base^(1 − λ) · π^λ; 1 is the policy itself",
            (0.5, 1.0, 1.5, 2.0),
            {
                "path": _path("what `trimtab train dpo`, `train rl` or `soup` wrote, or a guide, as a shift"),
                "guide_base": _GUIDE_BASE,
            },
            builders.policy,
            reads="path",
        ),
        Method(
            "policies",
            "several tuned policies, one a strength: multi-objective RL with one run a weight vector",
            "2306.04488",
            "which of the paths, counted from 0",
            (0.0,),
            {"paths": _paths("policies in order"), "guide_base": _GUIDE_BASE},
            builders.policies,
            reads="paths",
            low=0,
        ),
        Method(
            "soup",
            "Rewarded Soups: the weights of policies averaged",
            "2306.04488",
            "λ of each policy",
            ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)),
            {"paths": _paths("LoRA policies of one base, in the order of λ"), "guide_base": _GUIDE_BASE},
            builders.soup,
            reads="paths",
            objectives=True,
            low=0,
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
            if option.default is REQUIRED:
                problems.append(f"{name} needs {key}: {option.help}.")
        elif not (options[key] is None and option.default is None) and not option.accepts(options[key]):
            problems.append(f"{key} of {name} is {options[key]!r}; give {option.accepted}.")
    return [*problems, *(problem for strength in strengths if (problem := _strength_problem(method, strength)))]


def check_weights(
    name: str,
    options: Mapping[str, Any],
    strengths: Sequence[Strength],
    *,
    temperature: float | None,
    plausibility: float,
) -> list[str]:
    """Every strength of `genarm` that means nothing, a sentence each (`forms.check_negative`).

    `options` and `strengths` have passed `check_method`; the other two are the requests'. Nothing is loaded.
    """
    if name != "genarm":
        return []
    guides = options["guides"]
    problems = []
    for strength in strengths:
        values = strength if isinstance(strength, (tuple, list)) else (strength,)
        if min(values) >= 0 or len(values) != len(guides):
            continue
        weights = dict(zip(guides, map(float, values), strict=True))
        forms = {guide: SHIFT if builders.is_policy(path) else PRODUCT for guide, path in guides.items()}
        try:
            check_negative(weights, forms, temperature=temperature, plausibility=plausibility)
        except OptionError:
            problems.append(
                f"a strength of genarm is {strength}: its guides are the paper's products, and a negative weight "
                "cancels the base that is inside a guide, so that noise is left. Give at least 0, or weigh the guide "
                "as a shift: the method policy, whose path is the guide."
            )
    return problems


def build_policy(model: HFModel, name: str, options: Mapping[str, Any]) -> Policy:
    """A method on a model. `options` must have passed `check_method`; those left out have their defaults."""
    method = METHODS[name]
    return method.build(model, {key: options.get(key, option.default) for key, option in method.options.items()})


def _strength_problem(method: Method, strength: Strength) -> str | None:
    several = isinstance(strength, (tuple, list))
    values = list(strength) if isinstance(strength, (tuple, list)) else [strength]
    if several and not method.objectives:
        return f"{method.name} has one dial ({method.dial}), and a strength is {strength}."
    if not all(map(_is_number, values)) or not values:
        return f"a strength of {method.name} is {strength!r}; give {method.dial}."
    if min(values) < method.low:
        return f"a strength of {method.name} is {strength}; give at least {method.low:g} ({method.dial})."
    return None


def _nearest(name: str, accepted: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, accepted, n=1)
    told = f"; accepted: {', '.join(accepted)}" if accepted else "; it takes none"
    return f" (did you mean {near[0]!r}?){told}" if near else told
