"""Sections that are added to a guide's `README.md` after its training: its calibration, and what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trimtab.storage.calibrated import Calibration
from trimtab.storage.files import write_text

STRENGTH = "Strength"
README = "README.md"


def with_section(text: str, heading: str, lines: Sequence[str]) -> str:
    """The text of a README with a section of the second level: in the place of the one of this name, else before the
    settings, else at the end."""
    section = f"## {heading}\n\n" + "\n".join(lines) + "\n"
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    for index, part in enumerate(parts):
        if part.startswith(f"## {heading}\n"):
            return "".join([*parts[:index], section + ("\n" if parts[index + 1 :] else ""), *parts[index + 1 :]])
    for index, part in enumerate(parts):
        if part.startswith("## Settings\n"):
            return "".join([*parts[:index], section + "\n", *parts[index:]])
    return text.rstrip("\n") + "\n\n" + section


def add_section(directory: Path, heading: str, lines: Sequence[str]) -> None:
    """Write a section into the README of a guide's directory, where it has one; whole or not at all."""
    path = directory / README
    if path.exists():
        write_text(path, with_section(path.read_text(encoding="utf-8"), heading, lines))


def strength_lines(found: Calibration) -> list[str]:
    """What a reader should know of a calibration."""
    form = f"as a {found.form}, " if found.form else ""
    judge = found.gold or found.reward
    lines = [
        f"It is run {form}at strength {found.strength:g} where nobody says otherwise: there {judge} peaked on "
        f"{found.num_prompts} validation prompts (95 % interval of the peak {found.strength_low:g} to "
        f"{found.strength_high:g}, of strengths that were tried: {_tried(found)}; `{found.model}`, "
        f"{found.max_new_tokens} new tokens, {found.date})."
    ]
    if found.gain is not None and found.gain_low is not None and found.gain_high is not None:
        lines.append(
            f"The gain over the model without it was {found.gain:+.3f} ({found.gain_low:+.3f} to "
            f"{found.gain_high:+.3f}){_kl(found)}."
        )
    if not found.reward:
        lines.append("What it was trained for was not measured, so over-optimisation of it was not looked for.")
    elif found.gold is None:
        lines.append(
            "The reward that it was trained for is the only judge here, so over-optimisation of it was not looked for."
        )
    elif found.over_optimised:
        lines.append(
            f"Beyond the peak {found.reward}, which it was trained for, still rises: that is over-optimisation."
        )
    return [" ".join(lines)]


def _kl(found: Calibration) -> str:
    if found.kl is None or found.kl_low is None or found.kl_high is None:
        return ""
    return f", at {found.kl:.1f} ({found.kl_low:.1f} to {found.kl_high:.1f}) nats of KL an answer"


def _tried(found: Calibration) -> str:
    strengths = sorted({strength for values in found.tried.values() for strength in values})
    forms = " and ".join(f"a {form}" for form in found.tried if form)
    return ", ".join(f"{strength:g}" for strength in strengths) + (f", as {forms}" if forms else "")
