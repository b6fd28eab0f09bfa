"""The report of a frontier as files: a page, its figure (PNG) and numbers (CSV), and every answer (JSON lines)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.evaluation.report.csv_files import write_csv
from trimtab.evaluation.report.figure import frontier_svg, write_frontier_png
from trimtab.evaluation.report.frontier import Point
from trimtab.evaluation.report.page import frontier_page

NUM_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Study:
    """What was measured and what a reader must know to judge it."""

    title: str
    points: Sequence[Point]
    """Form by form in rising strength, over the same prompts and seeds."""
    reference: Point
    """The decoder without any guide: what gains and speed are compared with."""
    reward_name: str
    """The axis of the reward, unit or range included."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """How it was done: term -> one plain sentence or value."""

    @property
    def samples(self) -> list[int]:
        """Which prompts to show: spread evenly over all of them, so that nobody chose them."""
        count = len(self.points[0].answers)
        return sorted({index * count // NUM_SAMPLES for index in range(NUM_SAMPLES)})

    def row(self, point: Point) -> dict[str, Any]:
        """One strength in numbers."""
        gain = point.gain(self.reference)
        return {
            "form": point.form,
            "weight": point.weight,
            "num_prompts": len(point.rewards),
            "reward": point.reward.value,
            "reward_low": point.reward.low,
            "reward_high": point.reward.high,
            "gain": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "kl": point.kl.value,
            "kl_low": point.kl.low,
            "kl_high": point.kl.high,
            "num_tokens": point.num_tokens,
            "tokens_per_s": point.tokens_per_s,
            "ratio_to_base": point.tokens_per_s / self.reference.tokens_per_s,
        }


def write_report(study: Study, directory: Path) -> Path:
    """Write `report.html`, `frontier.png`, `frontier.csv` and `answers.jsonl`; returns the page's path.

    Raises MissingExtraError without matplotlib.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_frontier_png(study.points, directory / "frontier.png", reward_label=study.reward_name)
    rows = [study.row(point) for point in study.points]
    write_csv(directory / "frontier.csv", rows)
    _write_answers(directory / "answers.jsonl", study.points)
    page = frontier_page(
        title=study.title,
        points=study.points,
        rows=rows,
        reference=study.reference,
        samples=study.samples,
        figure=frontier_svg(study.points, reward_label=study.reward_name),
        notes=study.notes,
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _write_answers(path: Path, points: Sequence[Point]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for point in points:
            for answer, reward in zip(point.answers, point.rewards, strict=True):
                row: dict[str, Any] = {
                    "form": point.form,
                    "weight": point.weight,
                    "prompt": answer.prompt,
                    "text": answer.text,
                    "reward": reward,
                    "kl": answer.kl,
                    "finish_reason": answer.finish_reason,
                    "seed": answer.seed,
                }
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
