"""docs/evaluation/claims.md, written from recipes and rows: a page never holds a figure that no rows support."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.claims import rows
from recipes.claims.recipe import REPOSITORY, Claim, names, read
from recipes.claims.stages import by_hand
from recipes.claims.verdicts import CANNOT_TELL, Outcome, agreement, arms_of, gain_at, measured, outcome, overall
from trimtab.errors import DataError
from trimtab.statistics import Interval

NOT_RUN = "not run yet"
PAGE = REPOSITORY / "docs" / "evaluation" / "claims.md"
MARK = re.compile(r"^<!-- claims: (\w+) -->\n.*?^<!-- end -->$", flags=re.MULTILINE | re.DOTALL)


def written(page: str) -> str:
    """The page with what lies between its marks as the rows have it."""
    claims = [read(name) for name in names()]
    made = {"table": table(claims), "details": "\n".join(details(claim) for claim in claims)}
    return MARK.sub(lambda mark: f"<!-- claims: {mark[1]} -->\n\n{made[mark[1]]}\n<!-- end -->", page)


def rewrite() -> bool:
    """Write the page anew; returns whether it changed."""
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    PAGE.write_text(after, encoding="utf-8")
    return after != before


def outcomes(claim: Claim) -> tuple[list[Outcome], list[str]]:
    """The tests of a claim that have rows, and why others have no outcome."""
    found: list[Outcome] = []
    missing: list[str] = []
    for test in claim.verdict:
        path = claim.rows_of(test["rows"])
        if not path.exists():
            missing.append(f"{test['what']}: {NOT_RUN}")
            continue
        try:
            judged = rows.read(claim.rows_of(test["judge"]["rows"])) if "judge" in test else None
            found.append(outcome(test, rows.read(path), judged))
        except DataError as error:
            missing.append(f"{test['what']}: {error}")
    return found, missing


def verdict(claim: Claim) -> str:
    """The verdict in a cell: what the rule gives, or that there are no rows, and why it cannot be told."""
    found, missing = outcomes(claim)
    if not any(claim.rows_of(test["rows"]).exists() for test in claim.verdict):
        return NOT_RUN
    if missing:
        # A claim is not judged by those of its tests that happen to have rows.
        return f"**{CANNOT_TELL}**: {'; '.join(missing)}"
    said = overall(found)
    late = ", by a rule that was changed after a look" if claim.changed else ""
    return f"**{said}**{late}" + (f": {'; '.join(one.why for one in found if one.why)}" if said == CANNOT_TELL else "")


def table(claims: list[Claim]) -> str:
    """The opening table: claim, the paper's figure, ours, verdict."""
    lines = ["| | claim | the paper | here | verdict |", "|---|---|---|---|---|"]
    for claim in claims:
        found, _ = outcomes(claim)
        here = "<br>".join(f"{_cell(one.what)}: {shown(one.interval)}" for one in found)
        cells = (_cell(claim.claim), _cell(claim.paper["figure"]), here, _cell(verdict(claim)))
        link = f"[{claim.row}](#{_anchor(_heading(claim))})"
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in (link, *cells)) + "|")
    return "\n".join(lines) + "\n"


def details(claim: Claim) -> str:
    """What is held fixed, how it is run, what decides, and every arm that has rows."""
    lines = [f"### {_heading(claim)}", "", f"{claim.question} The paper: {claim.paper['where']}.", ""]
    lines += [f"- **{name}**: {text}" for name, text in claim.fixed.items()]
    lines += [f"- **changed after a look**: {text}" for text in claim.changed]
    lines += ["- **decides**: " + rules(claim.verdict), ""]
    command = " ".join(["make claim", f"NAME={claim.name}", *(f"{name.upper()}=..." for name in by_hand(claim))])
    lines += [f"`{command}`, {_hours(claim.hours('here'))} on two cores, an estimate", ""]
    found, missing = outcomes(claim)
    if found:
        lines += ["| test | arms | interval | n | outcome |", "|---|---|---|---|---|"]
        lines += [f"| {_cell(o.what)} | {_cell(o.arms)} | {shown(o.interval)} | {o.num} | {o.outcome} |" for o in found]
        lines.append("")
    if not found and all(one.endswith(NOT_RUN) for one in missing):
        lines.append(f"All of it is {NOT_RUN}.")
    else:
        lines += [f"Open: {one}." for one in missing]
    for asked in claim.equal_kl:
        lines += _at_equal_kl(claim.rows_of(asked["rows"]), asked)
    for path in sorted((claim.directory / "rows").glob("*.jsonl.gz")):
        lines += ["", *(_arms(path) or _judges(path))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _arms(path: Path) -> list[str]:
    """A table of the arms of a file of answers; figures of other pages have none."""
    found = rows.read(path)
    if not found or "prompt_index" not in found[0]:
        return []
    rewards = list(found[0]["rewards"])
    name = path.name.partition(".")[0]
    lines = [
        f"| {name}: arm | strength | {' | '.join(map(_cell, rewards))} | KL, nats |",
        "|---" * (3 + len(rewards)) + "|",
    ]
    for arm in arms_of(found):
        figures = [measured(found, arm, one) for one in (*rewards, "kl")]
        strength = ", ".join(f"{one:g}" for one in (arm[1] if isinstance(arm[1], list) else [arm[1]]))
        lines.append(f"| {_cell(arm[0])} | {strength} | {' | '.join(shown(one) for one in figures)} |")
    return lines


def _at_equal_kl(path: Path, asked: Mapping[str, Any]) -> list[str]:
    """A table of the gains over the base of every method that reaches one of the asked numbers of nats."""
    if not path.exists():
        return []
    found = rows.read(path)
    reward, nats = asked["reward"], asked["nats"]
    lines = [
        "",
        f"| {path.name.partition('.')[0]}: gain over the base in {_cell(reward)} | "
        + " | ".join(f"{one:g} nats" for one in nats)
        + " |",
        "|---" * (1 + len(nats)) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in found if row["method"] != "base"):
        gains = [gain_at(found, method, one, reward) for one in nats]
        if any(gains):
            lines.append(f"| {_cell(method)} | {' | '.join('' if one is None else shown(one) for one in gains)} |")
    return lines


def _judges(path: Path) -> list[str]:
    """A table of how often judges order two answers as people did; other rows have none."""
    found = rows.read(path)
    if not found or "right" not in found[0]:
        return []
    lines = [f"| {path.name.partition('.')[0]}: judge | orders people's pairs as they did | pairs |", "|---|---|---|"]
    for name in dict.fromkeys(row["judge"] for row in found):
        num = sum(row["judge"] == name for row in found)
        lines.append(f"| {_cell(name)} | {shown(agreement(found, name))} | {num} |")
    return [*lines, "", "Each answer is scored by itself, so that the order of two cannot matter."]


def rules(tests: Sequence[Mapping[str, object]]) -> str:
    """The tests in words, those of one rule together."""
    together: dict[str, list[str]] = {}
    for test in tests:
        together.setdefault(rule(test), []).append(str(test["what"]))
    return ". ".join(f"{'; '.join(whats)}: {said}" for said, whats in together.items())


def rule(test: Mapping[str, object]) -> str:
    """What decides, in words."""
    limits = {
        "difference": lambda: f"a paired difference whose interval lies above {test.get('above', 0)}",
        "front": lambda: (
            f"a paired difference of hypervolumes whose interval lies within ±{test['margin']}"
            if "margin" in test
            else "a paired difference of hypervolumes whose interval lies above 0"
        ),
        "equivalence": lambda: f"a paired difference whose interval lies within ±{test['margin']}",
        "share": lambda: (
            f"a share whose interval lies above {test['above']} and reaches at most {test.get('widest')} to a side"
        ),
        "cost": lambda: f"a time of a token, over the base's, whose range lies below {test['below']}",
    }
    return limits[str(test["kind"])]()


def shown(interval: Interval | None) -> str:
    return "unknown" if interval is None else str(interval).replace("-", "−")


def _heading(claim: Claim) -> str:
    return f"{claim.row}. {claim.claim}"


def _anchor(heading: str) -> str:
    kept = re.sub(r"[^\w\s-]", "", heading.lower())
    return re.sub(r"\s", "-", kept)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def _hours(hours: float) -> str:
    return f"about {hours * 60:.0f} minutes" if hours < 2 else f"about {hours:g} hours"
