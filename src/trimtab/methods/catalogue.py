"""The methods of `table` in use: their options and strengths checked, and a policy built of one.

Nothing is loaded until `build_policy`; `check_method` only reads names and numbers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.core import LanguageModel
from trimtab.engines.maker import EngineMaker
from trimtab.errors import OptionError
from trimtab.methods import options as opt
from trimtab.methods.entry import Method, Options
from trimtab.methods.method import Policy, Strength
from trimtab.methods.table import GUIDES, METHODS


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
