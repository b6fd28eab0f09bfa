"""Gates: at which tokens a guide acts. Without torch, since requests are made of them; `mixing.gates` computes.

A gate is written `RULE:NUMBER`, one for each guide that has one. Three rules open or close by what the base says: where
closed, the guide has weight 0 at that token, and where every row of a guide is closed its pass is left out.

* `entropy:T`: the guide acts where the base's entropy is above T nats.
* `margin:M`: where the base's two best tokens are less than M apart in probability.
* `random:R`: at a share R of the tokens, drawn from the request's seed: the control that every other gate is held
  against, since a gate of any kind also steers less.
* `bet:L`, the conservative bet (arXiv 2604.16146): the base's draw stands unless its probability is below the largest
  of the mix less L; then the mix draws. The guide is asked at every token.
* `significance:A`, TUSA's, for guides that accept or reject candidates: the guide looks at the base's first candidate
  alone, and looks further only where that one's significance is at least A times the mean of the last ten of the
  answer. Elsewhere the first candidate is the token. `mixing.significance` says what a significance is, and where this
  differs from its paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from trimtab.errors import OptionError, about, naming, unknown_name
from trimtab.fields import Described

ENTROPY, MARGIN, RANDOM, BET, SIGNIFICANCE = "entropy", "margin", "random", "bet", "significance"
GATES: Mapping[str, Described] = {
    ENTROPY: Described(kind="number", low=0),
    MARGIN: Described(kind="number", low=0, open_low=True, high=1),
    RANDOM: Described(kind="number", low=0, high=1),
    BET: Described(kind="number", low=0, high=1),
    SIGNIFICANCE: Described(kind="number", low=0),
}
"""Rule -> what its number may be."""
WINDOW = 10
"""How many of an answer's last significances a gate of significance averages."""


class _Accepting(Protocol):
    @property
    def accepts(self) -> bool: ...


class Selecting(Protocol):
    """What is read of a guide's selection (`core.Selection`)."""

    @property
    def rule(self) -> _Accepting:
        """Which accepts or rejects, or weighs."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A rule and its number."""

    rule: str
    number: float


@cache
def read_gate(text: str) -> Gate:
    """What a gate's text says.

    Raises OptionError for another text, an unknown rule, and a number out of its range.

    >>> from trimtab.gates import read_gate
    >>> read_gate("entropy:1.5")
    Gate(rule='entropy', number=1.5)
    """
    rule, colon, number = text.partition(":")
    if not colon:
        raise OptionError(
            f"{text!r} is no gate; give RULE:NUMBER, such as entropy:1.5, RULE one of {', '.join(GATES)}."
        )
    if rule not in GATES:
        raise unknown_name("gate", rule, GATES)
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not GATES[rule].accepts(value):
        raise OptionError(f"The gate {rule} takes {GATES[rule].accepted()}, not {number!r}.")
    return Gate(rule, value)


def is_gate(value: object) -> bool:
    """Whether a value is a gate's text."""
    try:
        return isinstance(value, str) and bool(read_gate(value))
    except OptionError:
        return False


def check_gates(gates: Mapping[str, str], guides: Mapping[str, object]) -> None:
    """Raise OptionError for a gate of a guide that is unknown or that the gate does not go with, and for several bets.

    A bet is made against a guide that tilts; significance is that of a guide which accepts or rejects.
    """
    for name, text in gates.items():
        if name not in guides:
            raise about(f"gates.{name}", naming(OptionError, "{gates}: {0}", unknown_name("guide", name, guides)))
        if why := not_for(read_gate(text).rule, getattr(guides[name], "selection", None)):
            raise about(
                f"gates.{name}", naming(OptionError, f"{{gates}} gives guide {{0}} {{1}}, and {why}", name, text)
            )
    bets = [name for name, text in gates.items() if read_gate(text).rule == BET]
    if len(bets) > 1:
        raise naming(
            OptionError,
            "{gates} gives {0} a bet each, and one draw can stand against one policy alone; give it to one of them.",
            " and ".join(bets),
        )


def not_for(rule: str, selection: Selecting | None) -> str:
    """Why a rule does not go with a guide of this selection (None: it tilts), and what does; empty if it goes."""
    accepts = selection is not None and selection.rule.accepts
    if rule == BET and selection is not None:
        why = "it selects among candidates: it has no policy to bet against."
    elif rule == SIGNIFICANCE and selection is None:
        why = "it tilts the policy: it looks at no single candidates, and has no verdict on one."
    elif rule == SIGNIFICANCE and not accepts:
        why = "it weighs candidates by a score and accepts or rejects none, so nothing says how sure it is."
    else:
        return ""
    others = [BET] if selection is None else [SIGNIFICANCE] if accepts else []
    *most, last = [ENTROPY, MARGIN, RANDOM, *others]
    return f"{why} Accepted for it: {', '.join(most)} and {last}."
