"""The chosen pairs, split by prompt, and what a report says of them: counts, margins, lengths."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.core import Prompt
from trimtab.errors import DataError, naming
from trimtab.making.choosing import (
    ALIKE,
    CLOSE,
    CUT,
    EMPTY,
    MISREAD,
    SILENT,
    STOCK,
    TIED,
    TURNED,
    UNLIKE,
    UNSCORED,
    Account,
    Pair,
    prompt_key,
)
from trimtab.making.settings import ChoiceSettings
from trimtab.prompts import options_of
from trimtab.statistics import Interval, proportion_interval
from trimtab.training.pairs.data import hold_out
from trimtab.training.pairs.formats import PreferencePair, RowError, TieError, convert

ANSWERS_OUT: Mapping[str, str] = {
    EMPTY: "empty, or cut by the limit before a whole sentence",
    CUT: "ran into the limit",
    ALIKE: "nearly equal to another answer to their prompt",
    STOCK: "a text that answers many prompts",
    UNSCORED: "without a finite reward",
}
"""Why answers are left out, in words."""

PAIRS_OUT: Mapping[str, str] = {
    CLOSE: "too small a margin",
    UNLIKE: "too unlike in length",
    TIED: "a tie to the judge",
    TURNED: "the judge preferred the other one when the order was turned",
    SILENT: "no verdict",
    MISREAD: "training would read them otherwise",
}
"""Why two answers are not a pair, in words."""

_WITH_THESE_ANSWERS: Mapping[str, str] = {
    CUT: "use answers that ran into the limit (turn {cut_answers} on)",
    ALIKE: "accept answers that are more alike ({max_similarity})",
    STOCK: "keep texts that answer many prompts ({max_prompts_per_response} 0)",
    UNSCORED: "mend the reward, after a look at what it gives a few answers",
    CLOSE: "accept a smaller {min_margin}",
    UNLIKE: "accept answers that differ more in length ({min_length_ratio})",
    TIED: "ask a judge with finer verdicts",
    TURNED: "ask a judge that the order does not sway",
    SILENT: "see to it that the judge answers",
}
"""What to change so that the answers that were sampled give a pair, by the reason why they gave none."""

_WITH_NEW_ANSWERS: Mapping[str, str] = {
    CUT: "give answers more room ({max_new_tokens})",
    EMPTY: "give answers more room ({max_new_tokens}), or turn {whole_sentences} off",
    ALIKE: "sample at a higher {temperature}",
    STOCK: "give prompts that the model can answer",
    CLOSE: "sample more answers ({num_samples})",
    TIED: "sample more answers ({num_samples})",
    MISREAD: "leave out prompts that their answers repeat",
}
"""What to change that has the answers sampled anew."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How the chosen answers' lengths compare with the rejected ones'."""

    longer: Interval
    """Share of pairs whose chosen answer is the longer one; the interval is over prompts."""
    chosen_mean: float
    """Characters."""
    rejected_mean: float


@dataclass(frozen=True, slots=True)
class Margins:
    """By how much the chosen answers' rewards are higher."""

    mean: float
    least: float
    median: float
    most: float


@dataclass(frozen=True, slots=True)
class PairSet:
    """All pairs of a run, those held out apart, and its account."""

    pairs: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    account: Account

    @property
    def everything(self) -> tuple[Pair, ...]:
        return (*self.pairs, *self.held_out)

    @property
    def num_prompts(self) -> int:
        """Prompts with a pair."""
        return len({prompt_key(pair.prompt) for pair in self.everything})

    @property
    def num_held_out_prompts(self) -> int:
        return len({prompt_key(pair.prompt) for pair in self.held_out})

    @property
    def lengths(self) -> Lengths:
        pairs = self.everything
        share = proportion_interval([pair.excess > 0 for pair in pairs], [prompt_key(pair.prompt) for pair in pairs])
        means = (
            statistics.fmean(map(len, texts)) for texts in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
        )
        return Lengths(share, *means)

    @property
    def margins(self) -> Margins | None:
        """None where pairs have no rewards."""
        found = [pair.margin for pair in self.everything if pair.scores is not None]
        if not found:
            return None
        return Margins(statistics.fmean(found), min(found), statistics.median(found), max(found))


def as_row(pair: Pair) -> dict[str, object]:
    """A pair in the preference format that `trimtab train`, `datasets` and TRL read: messages where the prompt is."""
    scores = {} if pair.scores is None else {"score_chosen": pair.scores[0], "score_rejected": pair.scores[1]}
    if isinstance(pair.prompt, str):
        return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, **scores}
    options = dict(options_of(pair.prompt))
    tools = {"tools": options.pop("tools")} if "tools" in options else {}
    return {
        "prompt": _messages(pair.prompt),
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        **tools,
        **({"chat_template_kwargs": options} if options else {}),
        **scores,
    }


def _messages(prompt: Prompt) -> list[dict[str, object]]:
    return [dict(message) for message in prompt if not isinstance(message, int | str)]


def _as_read(pair: Pair) -> PreferencePair | None:
    """What training reads in a pair's row; None where it reads another pair than this one, or refuses the row."""
    try:
        found = convert(as_row(pair), "preference")
    except (RowError, TieError):
        return None
    return found if (found.chosen, found.rejected) == (pair.chosen, pair.rejected) else None


def pair_set(chosen: Sequence[Sequence[Pair]], settings: ChoiceSettings, account: Account, *, seed: int) -> PairSet:
    """The pairs of each prompt as one set, whole prompts of it held out.

    Raises DataError where there is no pair, with how many prompts were tried and what to change, and where only one
    prompt has any and some are to be held out.
    """
    readable: list[tuple[Pair, PreferencePair]] = []
    for pair in (pair for group in chosen for pair in group):
        found = _as_read(pair)
        if found is None:
            account.pairs_out[MISREAD] += 1
        else:
            readable.append((pair, found))
    if not readable:
        raise _no_pair(account)
    pairs = [pair for pair, _ in readable]
    if not settings.eval_share:
        return PairSet(tuple(pairs), (), account)
    if len({prompt_key(pair.prompt) for pair in pairs}) < 2:
        raise naming(
            DataError,
            "All {0} pairs are of one prompt among {1}, so none can be held out. "
            + _ways_out("hold none out ({eval_share} 0)", "give more prompts"),
            len(pairs),
            account.num_prompts,
        )
    train, _ = hold_out([found for _, found in readable], settings.eval_share, seed=seed)
    trained = set(map(id, train))
    return PairSet(
        tuple(pair for pair, found in readable if id(found) in trained),
        tuple(pair for pair, found in readable if id(found) not in trained),
        account,
    )


def _no_pair(account: Account) -> DataError:
    """Why there is no pair, and what to change: the commonest reason first, that of pairs before that of answers."""
    counts = [
        *((num, f"{num} pairs of answers: {PAIRS_OUT[why]}", why) for why, num in account.pairs_out.most_common()),
        *((num, f"{num} answers: {ANSWERS_OUT[why]}", why) for why, num in account.answers_out.most_common()),
    ]
    reasons = [why for num, _, why in counts if num]
    said = "; ".join(text for num, text, _ in counts if num)
    template = (
        f"No pair among {account.num_answers} answers to {account.num_prompts} prompts{f' ({said})' if said else ''}. "
        + _ways_out(*(_first_two(ways, reasons) for ways in (_WITH_THESE_ANSWERS, _WITH_NEW_ANSWERS)))
    )
    return naming(DataError, template)


def _first_two(ways: Mapping[str, str], reasons: Sequence[str]) -> str:
    found = dict.fromkeys(ways[why] for why in reasons if why in ways)
    return "; or ".join(list(found)[:2])


def _ways_out(same: str, new: str) -> str:
    """What to change with the answers that are there, empty where nothing helps, and what to change for new ones."""
    kept = f"With {{resume}}, for the same answers: {same}. " if same else ""
    return f"{kept}With {{overwrite}}, for new answers: {new or 'give other prompts'}."


def as_json(found: PairSet) -> dict[str, object]:
    """The account of a run as JSON."""
    account, lengths, margins = found.account, found.lengths, found.margins
    return {
        "num_prompts": account.num_prompts,
        "num_unreadable_prompts": account.num_unreadable,
        "num_prompts_with_pairs": found.num_prompts,
        "num_answers": account.num_answers,
        "num_cut_answers": account.num_cut,
        "num_pairs": len(found.pairs),
        "num_held_out_pairs": len(found.held_out),
        "num_held_out_prompts": found.num_held_out_prompts,
        "answers_left_out": {why: account.answers_out[why] for why in ANSWERS_OUT if account.answers_out[why]},
        "pairs_left_out": {why: account.pairs_out[why] for why in PAIRS_OUT if account.pairs_out[why]},
        "min_margin": account.min_margin,
        "margin": None
        if margins is None
        else {"mean": margins.mean, "min": margins.least, "median": margins.median, "max": margins.most},
        "chosen_longer": {"share": lengths.longer.value, "low": lengths.longer.low, "high": lengths.longer.high},
        "chosen_mean_length": lengths.chosen_mean,
        "rejected_mean_length": lengths.rejected_mean,
    }
