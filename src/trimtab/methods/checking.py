"""What the files and directories say that a method's options name, before any model is loaded; and whether prompts fit.

A comparison runs one method after another, for hours; a guide that is not there, or one number for two guides, is said
before the first of them begins. What only a loaded guide knows (that it is of another vocabulary, say) is said when its
turn comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.core import Prompt, Selection
from trimtab.engines.maker import EngineMaker
from trimtab.errors import OptionError, TrimtabError
from trimtab.gates import not_for, read_gate
from trimtab.guides.parm import check_preference
from trimtab.methods.builders import (
    check_head,
    check_tuned,
    index_of,
    not_an_adapter,
    one_sentence,
    sentence_of,
    system_weight,
)
from trimtab.methods.entry import Options
from trimtab.methods.few_shot import read_examples
from trimtab.methods.method import Strength, number, numbers
from trimtab.methods.options import NO_GUIDE, texts_of
from trimtab.methods.table import GENARM, GUIDES, METHODS
from trimtab.mixing.forms import PRODUCT, SHIFT, check_negative
from trimtab.mixing.rules import FirstAccepted
from trimtab.params import SamplingParams
from trimtab.storage.cards import FORMED_KINDS, GUIDE_KINDS, is_adapter
from trimtab.storage.directories import guide_directory, is_policy, locate_guide
from trimtab.storage.loading import parm_directory, reward_directory
from trimtab.storage.scorers import check_scorer
from trimtab.storage.sentences import is_sentence, read_weighed


def source_problem(name: str, options: Mapping[str, Any], strengths: Sequence[Strength]) -> str:
    """What is wrong with what a method's options name, or with strengths that do not go with it; else empty.

    `options` and `strengths` have passed `check_method`. Files are opened and cards are read; a model of the hub may be
    fetched, and none is loaded.
    """
    method = METHODS[name]
    try:
        for named in texts_of([value for option, value in options.items() if option not in NO_GUIDE]):
            _check_unweighed(named)
        method.check(method.complete(options), strengths)
    except TrimtabError as error:
        return str(error)
    return ""


def reading_problem(
    engines: EngineMaker, name: str, options: Mapping[str, Any], prompts: Sequence[Prompt], params: SamplingParams
) -> tuple[int | None, TrimtabError] | None:
    """Why the base cannot read what the method has it read, with the number of the first prompt that does not fit the
    context beside it (None: no prompt would); None where all fit. Nothing is loaded but the base."""
    method = METHODS[name]
    number = None
    try:
        guides = method.guides_that_read(engines, method.complete(options))
        engine = engines.make(guides)
        params = replace(params, weights=dict.fromkeys(guides, 1.0))
        for number, prompt in enumerate(prompts):  # noqa: B007  the error is of the one that was reached
            engine.cancel(engine.add(prompt, params))
    except TrimtabError as error:
        return number, error
    return None


def check_weights(
    name: str,
    options: Mapping[str, Any],
    strengths: Sequence[Strength],
    *,
    temperature: float | None,
    plausibility: float,
) -> list[str]:
    """Every strength of `genarm` or `guides` that means nothing, a sentence each (`forms.check_negative`).

    `options` and `strengths` have passed `check_method`; the other two are the requests'. Nothing is loaded.
    """
    if name not in (GENARM, GUIDES):
        return []
    named = options["guides"]
    problems = []
    for strength in strengths:
        values = strength if isinstance(strength, (tuple, list)) else (strength,)
        if min(values) >= 0 or len(values) != len(named):
            continue
        weights = dict(zip(named, map(float, values), strict=True))
        forms = {guide: _form_in(name, path) for guide, path in named.items()}
        try:
            check_negative(weights, forms, temperature=temperature, plausibility=plausibility)
        except OptionError:
            kind = "the paper's products" if name == GENARM else "products by their cards"
            problems.append(
                f"a strength of {name} is {strength}: its guides are {kind}, and a negative weight cancels the base "
                "that is inside a guide, so that noise is left. Give at least 0, or weigh the guide as a shift: the "
                "method policy, whose path is the guide."
            )
    return problems


def _form_in(name: str, path: str) -> str | None:
    """The form in which a method weighs a guide; None where it has none."""
    if name == GENARM:
        return SHIFT if is_policy(path) else PRODUCT
    return locate_guide(path).form()


def genarm(options: Options, strengths: Sequence[Strength]) -> None:
    for path in options["guides"].values():
        _check_tilts(path, SHIFT if is_policy(path) else PRODUCT)
    _check_one_each(strengths, options["guides"])


def guides(options: Options, strengths: Sequence[Strength]) -> None:
    for path in options["guides"].values():
        _check_tilts(path, None)
    _check_one_each(strengths, options["guides"])


def _check_tilts(path: str, form: str | None) -> None:
    found = locate_guide(path)
    if found.card.kind in ("agent", "reward"):
        raise OptionError(
            f"{path} is {GUIDE_KINDS[found.card.kind].what}, which selects the token; guides that tilt are accepted "
            "here: language models and sentences."
        )
    if found.card.kind == "parm":
        raise OptionError(f"{path} weighs {len(found.card.objectives)} objectives; compare it with the method parm.")
    found.form(form)


def _check_unweighed(name: str) -> None:
    """Raise OptionError for a sentence with a weight behind it, which no strength of a method would heed."""
    if is_sentence(name) and read_weighed(name)[1] is not None:
        raise OptionError(
            f"{name} ends in a weight, and a method weighs a sentence by its strengths. Leave the weight out, and put "
            "it among the strengths."
        )


def _check_one_each(strengths: Sequence[Strength], names: Iterable[str]) -> None:
    for strength in strengths:
        numbers(strength, list(names))


def sentence(options: Options, strengths: Sequence[Strength]) -> None:
    sentence_of(options["guide"])


def system(options: Options, strengths: Sequence[Strength]) -> None:
    one_sentence(options["guide"])
    for strength in strengths:
        system_weight(strength)


def few_shot(options: Options, strengths: Sequence[Strength]) -> None:
    read_examples(Path(options["examples"]), options["num"])


def parm(options: Options, strengths: Sequence[Strength]) -> None:
    _, card = parm_directory(options["guide"])
    for strength in strengths:
        check_preference(strength if isinstance(strength, tuple) else (strength,), card.objectives)


def mara(options: Options, strengths: Sequence[Strength]) -> None:
    if (kind := locate_guide(options["guide"]).card.kind) != "agent":
        raise OptionError(
            f"{options['guide']} holds a guide of kind {kind!r}, and mara runs an accept-reject agent. Accepted: what "
            "`trimtab train agent` wrote."
        )


def palc(options: Options, strengths: Sequence[Strength]) -> None:
    check_head(options["guide"])


def rewards(options: Options, strengths: Sequence[Strength]) -> None:
    for name in (options["reward"], options.get("policy_reward")):
        if name is not None:
            reward_directory(name)
    if options.get("policy") is not None:
        guide_directory(options["policy"], None)


def scorer(options: Options, strengths: Sequence[Strength]) -> None:
    check_scorer(options["scorer"])


def aligner(options: Options, strengths: Sequence[Strength]) -> None:
    if options["guide"] is not None:
        locate_guide(options["guide"])


def policy(options: Options, strengths: Sequence[Strength]) -> None:
    check_tuned(options["path"])


def gated(options: Options, strengths: Sequence[Strength]) -> None:
    kind = locate_guide(options["path"]).card.kind
    if kind not in (*FORMED_KINDS, "prompt", "agent"):
        raise OptionError(
            f"{options['path']} is a guide of kind {kind}; gated takes guides that are language models, sentences and "
            "accept-reject agents. A request may gate any guide: --gates NAME=RULE:X."
        )
    if kind == "prompt" and options["form"] is not None:
        raise OptionError(f"{options['path']} is made of sentences and has no form; leave form out.")
    if why := not_for(read_gate(options["gate"]).rule, Selection(FirstAccepted()) if kind == "agent" else None):
        raise OptionError(f"gate is {options['gate']}, {options['path']} is a guide of kind {kind}, and {why}")
    if kind == "agent":
        for name in ("form", "guide_base"):
            if options[name] is not None:
                raise OptionError(f"{options['path']} is an agent, which has no {name}; leave {name} out.")
        for strength in strengths:
            FirstAccepted().check_weight(number(strength, what="give the agent's acceptance threshold"))


def policies(options: Options, strengths: Sequence[Strength]) -> None:
    for path in options["paths"]:
        check_tuned(path)
    for strength in strengths:
        index_of(strength, options["paths"])


def soup(options: Options, strengths: Sequence[Strength]) -> None:
    for path in options["paths"]:
        if not is_adapter(guide_directory(path, None)):
            raise not_an_adapter(path)
    _check_one_each(strengths, options["paths"])
