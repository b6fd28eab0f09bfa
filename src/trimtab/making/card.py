"""What stands beside a file of pairs for people: how they came about, how many, what was left out, how they look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.making.choosing import CUT
from trimtab.making.result import ANSWERS_OUT, PAIRS_OUT, PairSet


@dataclass(frozen=True, slots=True)
class About:
    """What the account of the pairs does not say."""

    file: str
    held_out: str
    """The name of the file of pairs held out."""
    model: str
    prompts: str
    how: str
    """What tells a pair's answers apart, as a sentence."""
    settings: dict[str, object] = field(default_factory=dict)
    version: str = ""
    num_repeated: int = 0
    """Prompts that stood in the file before."""


def card(found: PairSet, about: About) -> str:
    """The card as Markdown, with the front matter by which `datasets` finds the files of a repository."""
    files = [("train", about.file), *([("validation", about.held_out)] if found.held_out else [])]
    front = ["configs:", "- config_name: default", "  data_files:"]
    for split, name in files:
        front += [f"  - split: {split}", f"    path: {json.dumps(name)}"]
    lines = ["---", "tags:", "- trimtab", "- preference", *front, "---", ""]
    lines += [f"# Preference pairs of {about.model}", "", *_what(found, about), ""]
    lines += ["## Counts", "", *_table(("", "number"), _counts(found, about)), ""]
    lines += ["## Margins and lengths", "", *margins_and_lengths(found), ""]
    lines += ["## Settings", "", *_table(("setting", "value"), [(k, _shown(v)) for k, v in about.settings.items()]), ""]
    return "\n".join([*lines, f"Written by trimtab {about.version}."]) + "\n"


def _what(found: PairSet, about: About) -> list[str]:
    held = (
        f" {len(found.held_out)} more are held out, in `{about.held_out}`; no prompt is in both files."
        if found.held_out
        else " None are held out."
    )
    return [
        f"{len(found.pairs)} pairs of answers of `{about.model}` to the prompts of {about.prompts}, in the preference "
        f"format (`prompt`, `chosen`, `rejected`).{held}",
        "",
        about.how,
        "",
        "```",
        f"trimtab train arm --model {about.model} --data {about.file}"
        + (f" --eval-data {about.held_out}" if found.held_out else "")
        + " --out guides/NAME",
        "```",
    ]


def _counts(found: PairSet, about: About) -> list[tuple[str, str]]:
    account = found.account
    rows = [("prompts tried", account.num_prompts), ("prompts left out: in the file before", about.num_repeated)]
    rows += [("prompts that the model could not read", account.num_unreadable)]
    rows += [("answers sampled", account.num_answers), ("of these ran into the limit", account.num_cut or 0)]
    rows += [(f"answers left out: {text}", account.answers_out[why]) for why, text in ANSWERS_OUT.items()]
    rows += [(f"possible pairs left out: {text}", account.pairs_out[why]) for why, text in PAIRS_OUT.items()]
    rows += [("prompts with a pair", found.num_prompts), ("pairs", len(found.pairs))]
    rows += [("pairs held out", len(found.held_out))]
    always = ("prompts tried", "answers sampled", "prompts with a pair", "pairs", "pairs held out")
    return [(name, f"{number:,}") for name, number in rows if number or name in always]


def margins_and_lengths(found: PairSet) -> list[str]:
    """Sentences about how far the chosen answers are from the rejected ones, in reward and in length, and the limit."""
    lines = _limit(found)
    if (margins := found.margins) is not None:
        asked = found.account.min_margin or 0.0
        lines.append(
            f"Margin in reward: {margins.mean:.3g} on average, from {margins.least:.3g} to {margins.most:.3g}, median "
            f"{margins.median:.3g}; at least {asked:.3g} was asked for."
        )
    lengths = found.lengths
    share = lengths.longer
    difference = lengths.chosen_mean - lengths.rejected_mean
    lines.append(
        f"The chosen answer is the longer one in {100 * share.value:.0f} % of the pairs (95 % interval "
        f"{100 * share.low:.0f} to {100 * share.high:.0f} %), by {difference:+.1f} characters on average "
        f"({lengths.chosen_mean:.1f} against {lengths.rejected_mean:.1f})."
    )
    if not share.low <= 0.5 <= share.high:
        what = "longer" if share.value > 0.5 else "shorter"
        lines.append(f"A guide that is trained on them also learns to answer at {what} length.")
    return lines


def _limit(found: PairSet) -> list[str]:
    """A warning where most answers that pairs are made of end where the limit was, not where the model ended them."""
    account = found.account
    used = (account.num_cut or 0) - account.answers_out[CUT]
    if used * 2 <= account.num_answers:
        return []
    return [
        f"{used:,} of {account.num_answers:,} answers ran into the limit and are cut back to their last whole "
        "sentence. Neither their length nor their end is the model's: a guide cannot learn from them to answer at "
        "another length, and a reward that counts characters takes short words for short answers. For a reward of "
        "that kind give more room (--max-new-tokens) and leave them out (--no-cut-answers)."
    ]


def _shown(value: object) -> str:
    if value is None or value == "":
        return "–"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | tuple | bool) else str(value)


def _table(heading: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heading, *rows)]
    drawn = [f"| {' | '.join(row)} |" for row in cells]
    return [drawn[0], "|---|---|", *drawn[1:]]
