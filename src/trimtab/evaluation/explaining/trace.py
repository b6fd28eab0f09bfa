"""Why each token was chosen, for people and for programs: rows, coloured text, a table.

Everything is in nats of log-probability at temperature 1. For each token,

    mixed = base + sum of the guides' shares + rest

where a guide's *share* is what `tracing.SHARE` says. The *rest* is normalisation, the same for every token of a step.
The filters and the repetition penalty come after all this. Orange is a token that the guides raised, blue one that they
lowered, here and in the playground.

Where a guide selects (an accept-reject agent), mixed is what its rule makes of the candidates: everything on the chosen
one, as a rule, so that the rest holds the choice too. What was seen, accepted and passed over is told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.style import Style
from rich.table import Table
from rich.text import Text

from trimtab.answers import INSIGNIFICANT, ONLY, Alternative, Choice, TokenTrace
from trimtab.mixing.tracing import FULL_COLOUR, shares_of

PASSED_OVER = 4
"""How many candidates that were not taken a line of the table names."""


@dataclass(frozen=True, slots=True)
class Placing:
    """Where the base and the guides put one token at one step."""

    token_id: int
    text: str
    base_logprob: float
    shares: Mapping[str, float]
    """Guide -> its share, of each that ran (`tracing.shares_of`)."""
    rest: float
    """mixed_logprob − base_logprob − the shares."""
    mixed_logprob: float
    base_rank: int
    """0 is the most probable."""
    mixed_rank: int

    @property
    def shift(self) -> float:
        """How far the guides moved the token's log-probability."""
        return difference(self.mixed_logprob, self.base_logprob)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of a guide that selects, and its verdict."""

    token_id: int
    text: str
    logprob: float
    """Its log-probability under the tilted policy."""
    accept_probability: float | None
    """None: not looked at, or the guide does not accept or reject."""
    accepted: bool
    score: float | None
    """The guide's own number: log-odds of acceptance, or a reward. None: not looked at."""


@dataclass(frozen=True, slots=True)
class ExplainedChoice:
    """What a guide that selects saw, best first, and which it took."""

    guide: str
    threshold: float
    candidates: tuple[Candidate, ...]
    index: int
    reason: str
    """`accepted`, `only` (a single candidate, not asked about), `none` (none was accepted), `weighed`, or
    `insignificant` (the first, taken as it is: see `answers.Choice`)."""
    significance: float | None = None
    least_significance: float | None = None

    @property
    def num_seen(self) -> int:
        """How many candidates were looked at."""
        return sum(candidate.score is not None for candidate in self.candidates)


@dataclass(frozen=True, slots=True)
class ExplainedToken:
    """A token of an answer, its rivals by falling mixed probability, and how far the policy moved (KL in nats)."""

    chosen: Placing
    rivals: tuple[Placing, ...]
    kl: float
    choice: ExplainedChoice | None
    shown: str
    """How it stands in the answer; these join to the answer's text, special tokens by name."""


def explain_tokens(
    traces: Sequence[TokenTrace],
    weights: Mapping[str, float],
    token_text: Callable[[int], str],
    shown: Sequence[str] | None = None,
) -> list[ExplainedToken]:
    """Split each recorded step into base, shares and rest; `weights` are those of the request.

    `shown` is how each token stands in the answer (`text.shown_tokens`); without it, its text.
    """
    shown = [token_text(trace.chosen.token_id) for trace in traces] if shown is None else shown
    return [_explain(trace, weights, token_text, text) for trace, text in zip(traces, shown, strict=True)]


def _explain(
    trace: TokenTrace, weights: Mapping[str, float], token_text: Callable[[int], str], shown: str
) -> ExplainedToken:
    recorded = {item.token_id: item for item in (*trace.alternatives, trace.chosen)}
    every = shares_of(trace, weights)

    def place(item: Alternative) -> Placing:
        shares = every[item.token_id]
        rest = difference(difference(item.mixed_logprob, item.base_logprob), sum(shares.values()))
        text = token_text(item.token_id)
        return Placing(
            item.token_id, text, item.base_logprob, shares, rest, item.mixed_logprob, item.base_rank, item.mixed_rank
        )

    rivals = [item for item in recorded.values() if item.token_id != trace.chosen.token_id]
    rivals.sort(key=lambda item: (item.mixed_rank, item.base_rank))
    choice = None if trace.choice is None else _explain_choice(trace.choice, weights, token_text)
    return ExplainedToken(place(trace.chosen), tuple(place(item) for item in rivals), trace.kl, choice, shown)


def _explain_choice(choice: Choice, weights: Mapping[str, float], token_text: Callable[[int], str]) -> ExplainedChoice:
    candidates = tuple(
        Candidate(
            trial.token_id,
            token_text(trial.token_id),
            trial.logprob,
            None if trial.score is None or choice.reason == "weighed" else acceptance(trial.score),
            trial.accepted,
            trial.score,
        )
        for trial in choice.trials
    )
    gate = choice.significance, choice.least_significance
    return ExplainedChoice(choice.guide, weights[choice.guide], candidates, choice.index, choice.reason, *gate)


def acceptance(log_odds: float) -> float:
    """The probability with these log-odds."""
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))


def difference(left: float, right: float) -> float:
    """left − right, where never minus never is no difference."""
    return 0.0 if left == right else left - right


def as_rows(tokens: Sequence[ExplainedToken]) -> list[dict[str, object]]:
    """The explanation as plain values: one row for each token, its rivals under `alternatives`."""
    return [
        {
            **asdict(token.chosen),
            "kl": token.kl,
            "alternatives": [asdict(rival) for rival in token.rivals],
            "choice": None if token.choice is None else asdict(token.choice),
        }
        for token in tokens
    ]


def visible(text: str) -> str:
    """A token as one can see it: line ends and tabs as signs, spaces at its ends as dots."""
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    dotted = "·" * left + inner + "·" * (len(text) - left - len(inner))
    return dotted.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")


def coloured_text(tokens: Sequence[ExplainedToken]) -> Text:
    """The answer for a terminal: orange where the guides raised a token, blue where they lowered it.

    Bold: not what the base alone had in first place.
    """
    text = Text()
    for token in tokens:
        text.append(token.shown, _style(token.chosen))
    return text


def _style(placing: Placing) -> Style:
    strength = min(abs(placing.shift) / FULL_COLOUR, 1.0)
    bold = placing.base_rank > 0
    if strength < 0.05:
        return Style(bold=bold)
    hue = (190, 80, 0) if placing.shift > 0 else (0, 95, 215)
    # From dark to strong on either side, so that white letters stay readable on any terminal.
    red, green, blue = (round(40 + (channel - 40) * strength) for channel in hue)
    return Style(color="white", bgcolor=f"rgb({red},{green},{blue})", bold=bold)


def as_table(tokens: Sequence[ExplainedToken]) -> Table:
    """One line for each token: its probability under the base, each guide's share, the mixed probability, its ranks."""
    table = Table(box=None, pad_edge=False)
    table.add_column("token", no_wrap=True)
    table.add_column("base", justify="right")
    names = list(dict.fromkeys(name for token in tokens for name in token.chosen.shares))  # a gate may close at a token
    for name in names:
        table.add_column(Text(name), justify="right")
    for heading in ("mixed", "rank", "KL"):
        table.add_column(heading, justify="right")
    chosen_by = any(token.choice for token in tokens)
    if chosen_by:
        table.add_column("accepted", justify="right")
        table.add_column("seen", justify="right")
        table.add_column("passed over")
    for token in tokens:
        chosen = token.chosen
        shares = [_share_cell(chosen.shares.get(name)) for name in names]
        ranks = f"{chosen.base_rank + 1}→{chosen.mixed_rank + 1}"
        base, mixed = percent(chosen.base_logprob), percent(chosen.mixed_logprob)
        verdict = _verdict(token.choice) if chosen_by else ()
        table.add_row(Text(visible(chosen.text)), base, *shares, mixed, ranks, f"{token.kl:.3f}", *verdict)
    return table


def _share_cell(share: float | None) -> Text:
    """A guide's share; nothing where it did not act."""
    return Text("") if share is None else Text(f"{share:+.2f}", _share_style(share))


def _verdict(choice: ExplainedChoice | None) -> tuple[str | Text, ...]:
    """How likely the chosen candidate was accepted, how many were seen of how many, which were passed over."""
    if choice is None or choice.reason == ONLY:
        return ("", "", Text("the only candidate" if choice else "", "dim"))
    seen = f"{choice.num_seen} of {len(choice.candidates)}"
    taken = choice.candidates[choice.index].accept_probability
    if choice.reason == "none":
        return (f"{taken or 0.0:.0%}", seen, Text("none accepted: the rule's fall-back", "dim"))
    if choice.reason == INSIGNIFICANT:
        return (f"{taken or 0.0:.0%}", seen, Text("the first: its gate was closed", "dim"))
    before = choice.candidates[: choice.index]
    shown = ", ".join(f"{visible(one.text)} {_number(one)}" for one in before[:PASSED_OVER])
    more = f" and {len(before) - PASSED_OVER} more" if len(before) > PASSED_OVER else ""
    return (_number(choice.candidates[choice.index]), seen, Text(shown + more))


def _number(candidate: Candidate) -> str:
    """How likely a candidate was accepted, or its reward."""
    if candidate.accept_probability is None and candidate.score is not None:
        return f"{candidate.score:+.2f}"
    return f"{candidate.accept_probability or 0.0:.0%}"


def _share_style(share: float) -> str:
    return "" if abs(share) < 0.1 else "dark_orange3" if share > 0 else "blue"


def percent(logprob: float) -> str:
    """A log-probability as a percentage."""
    return f"{math.exp(logprob):.2%}"
