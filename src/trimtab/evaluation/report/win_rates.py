"""Win rates on a comparison's page, where `trimtab judge` has been."""

from __future__ import annotations

import html
from pathlib import Path

from trimtab.evaluation.judging.win_rates import Judgement, WinRate, read_win_rates
from trimtab.evaluation.report.page import Section, note
from trimtab.evaluation.report.tables import table
from trimtab.evaluation.report.wording import strength_shown
from trimtab.statistics import Interval


def win_rate_sections(directory: Path) -> list[Section]:
    """A section for each judge and baseline; nothing where nobody judged."""
    return [_section(judgement) for judgement in read_win_rates(directory)]


def _section(judgement: Judgement) -> Section:
    headings = ["method", "strength", "win rate", "at equal length", "won", "tied", "lost", "missing", "prompts"]
    body = table(headings, [_row(rate) for rate in judgement.methods])
    remarks = [f"{rate.contender.method}: {'; '.join(rate.notes)}" for rate in judgement.methods if rate.notes]
    cost = judgement.cost
    text = (
        f"Judge: {judgement.description.rstrip('.')}. Baseline: {judgement.baseline}, {judgement.split} prompts. The "
        "win rate is (wins + ½ ties) over judged pairs, with its 95 % interval over prompts. A judge that sees the "
        "order is asked in both; a pair without a verdict is missing, and no tie. At equal length: AlpacaEval 2's "
        f"regression. It took {cost.num_calls} calls, {cost.num_retries} of them again, and {cost.prompt_tokens} + "
        f"{cost.completion_tokens} tokens."
    )
    body += note(f"{text} {judgement.caution}." if judgement.caution else text)
    if judgement.reasons:
        body += note(f"Missing verdicts, and how many: {'; '.join(judgement.reasons)}.")
    if remarks:
        body += note(f"{'. '.join(remarks)}.")
    return Section(f"Win rates against {judgement.baseline.method}, by {judgement.judge}", body)


def _row(rate: WinRate) -> list[str]:
    controlled = rate.length_controlled
    return [
        html.escape(rate.contender.method),
        strength_shown(rate.contender.strength),
        _cell(rate.win_rate),
        "<span class=range>not known</span>" if controlled is None else _cell(controlled.win_rate),
        *(str(count) for count in (rate.win, rate.tie, rate.loss, rate.missing, rate.num_prompts)),
    ]


def _cell(interval: Interval | None) -> str:
    """Percent over its interval."""
    if interval is None:
        return "<span class=range>no interval</span>"
    value, low, high = (f"{100 * part:.1f}" for part in (interval.value, interval.low, interval.high))
    return f"{value} % <span class=range>{low} to {high}</span>"
