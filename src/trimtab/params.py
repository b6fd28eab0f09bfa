"""What a request asks of decoding: one of the nouns of `core`, without torch: flags are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trimtab.constraint import Constraint
from trimtab.errors import OptionError, about, naming
from trimtab.fields import check, described, is_number, is_whole, seed_field
from trimtab.gates import read_gate

MOST_DRAFTED = 32
"""The most tokens that may be guessed at a time: each is a row of numbers over the vocabulary to work with."""
NO_DRAFT, LOOKUP, CERTAIN_DRAFT, GUIDE_DRAFT, FORCED_DRAFT = "none", "lookup", "certain", "guide", "forced"
"""What a request may say of drafts besides the name of a guide or of a model that drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is decoded. Filters act on the mixed policy after the temperature, in the order given here.

    Penalties and biases change the mixed policy before the temperature. With c(v) the times that the answer so far
    holds token v, they add to its log-probability

        −ln repetition_penalty, where prompt or answer hold v
        −presence_penalty, where c(v) > 0
        −frequency_penalty · c(v)
        +logit_bias[v].

    The middle two count the answer alone, forced tokens included, and never the prompt, as OpenAI and vLLM have it.
    `min_tokens` and `stop_token_ids` are about the answer's end: the first `min_tokens` tokens are drawn from the base
    without its end-of-sequence tokens and without `stop_token_ids`, renormalised before guides are mixed in, and a stop
    string counts where a later token completes it. All of this is part of the policy that is drawn from, so the KL that
    a trace reports counts it.

    Where a guide that selects runs, top-k, top-p and min-p choose its candidates, at temperature 1 (`Selection`).

    >>> from trimtab import Decoder, SamplingParams, TabularModel
    >>> decoder = Decoder(TabularModel.random(27, seed=0))
    >>> request = decoder.add("ab", SamplingParams(max_new_tokens=2, temperature=0, seed=0))
    >>> decoder.step()[0].request_id == request
    True
    >>> SamplingParams(top_p=1.5)
    Traceback (most recent call last):
    trimtab.errors.OptionError: top_p is 1.5; give a number above 0 and at most 1 (1: all).
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """Guide name -> weight. A guide left out runs at its own `weight`."""
    max_new_tokens: int = described(128, "tokens of an answer at most", low=1)
    temperature: float | None = described(
        None,
        "of the mixed policy; 0: always its most probable token",
        kind="number",
        low=0,
        unset="1; with an agent what it asks for, 0.8",
        metavar="T",
    )
    top_k: int | None = described(
        None,
        "keep the K most probable tokens",
        kind="whole",
        low=0,
        note="0: all",
        unset="0; with an agent 40",
        metavar="K",
    )
    top_p: float | None = described(
        None,
        "keep the smallest set of tokens whose probability reaches P",
        kind="number",
        above=0,
        high=1,
        note="1: all",
        unset="1; with an agent 0.95",
        metavar="P",
    )
    min_p: float = described(
        0.0, "drop tokens below P times the best one's probability", low=0, high=1, note="0: none", metavar="P"
    )
    plausibility: float = described(
        0.0,
        "before guides are mixed in, drop tokens below A times the base's best probability (contrastive decoding's α)",
        low=0,
        high=1,
        note="0: none",
        metavar="A",
    )
    guide_plausibility: Mapping[str, float] = described(
        {},
        "for each guide that is named and runs, drop tokens below A times that guide's own best probability "
        "(Alignment-Aware Decoding's α)",
        kind="shares",
        low=0,
        high=1,
        note="0: none",
        metavar="NAME=A,NAME=A,...",
    )
    gates: Mapping[str, str] = described(
        {},
        "for each guide that is named, at which tokens it acts: where the base's entropy is above T nats (entropy:T), "
        "where its two best tokens are less than M apart in probability (margin:M), at a share R of them by chance "
        "(random:R); only where the base's draw is less probable than the mix's best token less L (bet:L); or, of a "
        "guide that accepts or rejects candidates, where its verdict on the first one matters at least A times as much "
        "as on average over the last ten tokens (significance:A)",
        kind="named",
        note="a guide without a gate acts at every token",
        metavar="NAME=RULE:X,NAME=RULE:X,...",
    )
    repetition_penalty: float = described(
        1.0, "divide the probability of tokens already seen by R", above=0, note="1: leave it", metavar="R"
    )
    presence_penalty: float = described(
        0.0,
        "subtract X from the log-probability of each token that the answer so far holds",
        low=-2,
        high=2,
        note="0: leave it",
        metavar="X",
    )
    frequency_penalty: float = described(
        0.0,
        "subtract X from the log-probability of a token for each time that the answer so far holds it",
        low=-2,
        high=2,
        note="0: leave it",
        metavar="X",
    )
    logit_bias: Mapping[int, float] = described(
        {},
        "add X to the log-probability of the token ID; what a guide or a constraint forbids stays forbidden",
        kind="biases",
        low=-100,
        high=100,
        metavar="ID=X,ID=X,...",
    )
    min_tokens: int = described(
        0,
        "let no end-of-sequence token, stop token or stop string end an answer within its first N tokens",
        low=0,
        metavar="N",
    )
    stop: tuple[str, ...] = described(
        (), "end an answer at this text, which is left out of it; repeat for several", kind="texts", metavar="TEXT"
    )
    stop_token_ids: tuple[int, ...] = described(
        (), "end an answer at any of these tokens, which adds no text", kind="ids", metavar="ID,ID,..."
    )
    ignore_eos: bool = described(False, "go on after an end-of-sequence token")
    seed: int | None = seed_field(None, "answer i draws from N+i", unset="drawn")
    trace: bool = described(False, "record log-probabilities, ranks and KL for each token")
    """See `Answer.trace`."""
    num_alternatives: int = described(
        0, "with {trace}: how many of the most probable mixed and base tokens to record at each step", low=0
    )
    draft: str = described(
        NO_DRAFT,
        "who guesses next tokens, which the base then reads in one pass; no answer depends on it: lookup (what "
        "followed the last place that ended alike), certain (what a constraint leaves no choice of), forced (tokens "
        "that are forced), guide (the guide, a smaller model of its own), or a model's name",
        kind="text",
        note="none: nobody",
        metavar="WHO",
    )
    draft_tokens: int | None = described(
        None,
        "with {draft}: tokens guessed at a time",
        kind="whole",
        low=1,
        high=MOST_DRAFTED,
        unset="as many as pay",
        metavar="N",
    )
    forced: tuple[int, ...] = ()
    """The answer's first tokens, taken whatever the policy says; with `trace`, what it says of them: for scoring."""
    constraint: Constraint | None = None
    """What the answer must look like: tokens that leave it are forbidden before guides are mixed in."""

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range, or of another kind than it should be."""
        for name, weight in self.weights.items():
            if not (is_number(weight) and abs(weight) <= _LARGEST):
                raise OptionError(
                    f"The weight of guide {name} is {weight!r}; give a finite number (of single precision)."
                )
        check(self)
        for name, text in self.gates.items():
            try:
                read_gate(text)
            except OptionError as error:
                raise about(f"gates.{name}", naming(OptionError, "{gates}: {0}", error)) from None
        if self.min_tokens > self.max_new_tokens:
            raise naming(
                OptionError,
                "{min_tokens} is {0}, and {max_new_tokens} {1}; give at most that many.",
                self.min_tokens,
                self.max_new_tokens,
            )
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise OptionError(
                f"constraint is {self.constraint!r:.100}; give a Constraint, such as Constraint.json_schema({{...}})."
            )
        if not all(is_whole(token) and token >= 0 for token in self.forced):
            raise naming(OptionError, "{forced} is {0!r}; give token ids in a tuple.", self.forced)


_LARGEST = 3.4e38
"""What float32 holds, in which guides are mixed."""
