"""What a comparison, a command or a server asks of any method: prompts to answers, at a strength."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeAlias, runtime_checkable

from trimtab.answers import Answer, finished
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.errors import OptionError, naming

Strength: TypeAlias = float | tuple[float, ...]
"""One dial, or one number for each objective (several guides, a preference vector, the weights of a soup)."""

EXACT, BOUND, UNKNOWN = "exact", "bound", "unknown"


class Policy(Protocol):
    """Prompts to answers at a strength."""

    @property
    def kl_kind(self) -> str:
        """What `kl` gives: `exact`, an upper `bound`, or `unknown`."""

    @property
    def num_tokens_read(self) -> int:
        """Tokens that were sampled so far: those of the answers, of drafts that were thrown away, of rollouts."""

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        """One answer for each prompt, in order; `seeds` gives each its own.

        An answer depends on its prompt, the strength, the parameters and its seed, never on the others. The weights and
        the seed in `params` are not read. Raises OptionError for a strength that means nothing to the method.
        """

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        """KL(policy ‖ base) of the response in nats, the base at temperature 1; None where it is not known."""


@runtime_checkable
class AnswersEach(Protocol):
    """A policy whose answers at several strengths are decoded in one batch, where they share what they begin with."""

    def answer_each(
        self, prompts: Sequence[Prompt], strengths: Sequence[Strength], params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        """`Policy.answer`, each prompt at a strength of its own."""


class Guided:
    """An engine with guides. `weights_of` turns a strength into weights; `ask` says what a request of this kind is."""

    kl_kind = EXACT

    def __init__(
        self,
        decoder: GenerationEngine,
        weights_of: Callable[[Strength], Mapping[str, float]],
        *,
        ask: Callable[[SamplingParams], SamplingParams] = lambda params: params,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        self._decoder = decoder
        self._weights_of = weights_of
        self._ask = ask
        self._others = others
        self._num_tokens = 0

    @property
    def num_tokens_read(self) -> int:
        return self._num_tokens + self._others()

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        return self.answer_each(prompts, [strength] * len(prompts), params, seeds)

    def answer_each(
        self, prompts: Sequence[Prompt], strengths: Sequence[Strength], params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        params = self._ask(params)
        weights = {strength: self._weights_of(strength) for strength in set(strengths)}
        wanted = [
            (prompt, replace(params, weights=weights[strength], seed=seed))
            for prompt, strength, seed in zip(prompts, strengths, seeds, strict=True)
        ]
        for answer in finished(self._decoder.answers(wanted)):
            self._num_tokens += len(answer.token_ids)
            yield answer

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        return answer.kl


class PerStrength:
    """A policy whose guides depend on the strength: built when a strength is first asked for."""

    kl_kind = EXACT

    def __init__(self, build: Callable[[Strength], Policy]) -> None:
        self._build = build
        self._built: dict[Strength, Policy] = {}

    @property
    def num_tokens_read(self) -> int:
        return sum(policy.num_tokens_read for policy in self._built.values())

    def answer(
        self, prompts: Sequence[Prompt], strength: Strength, params: SamplingParams, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        return self._at(strength).answer(prompts, strength, params, seeds)

    def kl(self, answer: Answer, strength: Strength) -> float | None:
        return self._at(strength).kl(answer, strength)

    def _at(self, strength: Strength) -> Policy:
        if strength not in self._built:
            self._built[strength] = self._build(strength)
        return self._built[strength]


def answers(
    decoder: GenerationEngine, prompts: Sequence[Prompt], params: SamplingParams, seeds: Sequence[int]
) -> Iterator[Answer]:
    """One answer for each prompt, in order, each from its own seed."""
    wanted = [(prompt, replace(params, seed=seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
    return finished(decoder.answers(wanted))


def refuse_constraint(params: SamplingParams, what: str) -> None:
    """Raise OptionError for a constraint where answers are not decoded in one piece."""
    if params.constraint is not None:
        raise OptionError(
            f"{what}, and a constraint speaks of an answer as a whole. Leave it out, or take guides or best-of-n."
        )


_OF_A_WHOLE = ("min_tokens", "presence_penalty", "frequency_penalty", "stop_token_ids")


def refuse_parts_of_a_whole(params: SamplingParams, what: str) -> None:
    """Raise OptionError for parameters that speak of an answer as a whole, where it is decoded in pieces."""
    refuse_constraint(params, what)
    for name in _OF_A_WHOLE:
        if getattr(params, name):
            raise naming(
                OptionError,
                f"{what}, and {{{name}}} speaks of an answer as a whole. Leave it out, or take guides or best-of-n.",
            )


def derived_seed(seed: int, *path: int) -> int:
    """A seed for a part of what belongs to `seed`: another for every path, the same on every machine."""
    digest = hashlib.sha256(":".join(map(str, (seed, *path))).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def number(strength: Strength, *, what: str, low: float | None = None, whole: bool = False) -> float:
    """A strength that is one number. Raises OptionError for another, or for one below `low` or not whole."""
    good = isinstance(strength, (int, float)) and (low is None or strength >= low)
    if not isinstance(strength, (int, float)) or not good or (whole and strength != int(strength)):
        kind = "a whole number" if whole else "one number"
        raise OptionError(f"A strength of {strength} means nothing here; {what}: {kind}{_from(low)}.")
    return float(strength)


def numbers(strength: Strength, names: Sequence[str]) -> dict[str, float]:
    """A strength with one number for each name; one number alone holds for a single name. Raises OptionError."""
    values = strength if isinstance(strength, tuple) else (strength,)
    if len(values) != len(names):
        raise OptionError(f"A strength of {strength} has {len(values)} numbers; give one each for {', '.join(names)}.")
    return dict(zip(names, map(float, values), strict=True))


def _from(low: float | None) -> str:
    return "" if low is None else f" of at least {low:g}"
