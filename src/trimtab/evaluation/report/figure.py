"""The reward-against-KL curve as a picture: PNG for papers and slides, SVG that takes its colours from the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import MissingExtraError
from trimtab.evaluation.report.frontier import Point

COLOURS = {
    "ink": "#1b1b1d",
    "soft": "#5c5c61",
    "line": "#dcdad3",
    "paper": "#ffffff",
    "accent": "#1f5fb4",
    "second": "#a8480f",
}
"""Colours of the PNG; in the SVG each becomes the page's variable of that name."""

STYLE = {
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.edgecolor": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"],
    "text.parse_math": False,  # a name with dollars is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "trimtab",
}

Draw = Callable[[Any], None]
"""Draws on a figure of matplotlib's."""


def frontier_svg(points: Sequence[Point], *, reward_label: str) -> str:
    """The curve, one for each form, as an SVG element to stand in a page that defines the variables of `COLOURS`."""
    summary = "; ".join(f"strength {p.name}: KL {p.kl.value:.1f}, reward {p.reward.value:.2f}" for p in points)
    return as_svg(_frontier(points, reward_label), label=f"Reward against KL. {summary}.", colours=COLOURS)


def write_frontier_png(points: Sequence[Point], path: Path, *, reward_label: str) -> None:
    """The curve as a PNG, 200 dots an inch."""
    write_png(_frontier(points, reward_label), path)


def as_svg(draw: Draw, *, label: str, colours: Mapping[str, str], size: tuple[float, float] = (8, 4.4)) -> str:
    """A drawing as an SVG element that takes its colours from the page: each of `colours` becomes the page's variable.

    `label` is what a reader who cannot see it is told. `size` is in inches.
    """
    buffer = io.StringIO()
    _render(draw, buffer, "svg", size)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # an inline element has no XML declaration and no document type
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)

    def styled(tag: re.Match[str]) -> str:
        """A tag in the page's colours and font (matplotlib's own would be DejaVu); texts between tags stay."""
        text = tag[0]
        for name, colour in colours.items():
            text = text.replace(colour, f"var(--{name})")
        return re.sub(r"font: (\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \1", text)

    svg = re.sub(r"<[^>]*>", styled, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def label_legend(legend: Any, labels: Sequence[str]) -> None:
    """Give a legend that is made its labels, letter by letter: Matplotlib would leave out those that begin with "_"."""
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)


def write_png(draw: Draw, path: Path, *, size: tuple[float, float] = (8, 4.4)) -> None:
    """A drawing as a PNG, 200 dots an inch."""
    _render(draw, path, "png", size)


def _render(draw: Draw, target: Any, kind: str, size: tuple[float, float]) -> None:
    """Raises MissingExtraError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The figure of the report") from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(target, format=kind, dpi=200, transparent=kind == "svg", metadata=metadata)


def _frontier(points: Sequence[Point], reward_label: str) -> Draw:
    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        forms = list(dict.fromkeys(point.form for point in points))
        for form, colour, marker in zip(forms, ("accent", "second"), ("o", "s"), strict=False):
            _curve(axes, [point for point in points if point.form == form], COLOURS[colour], marker, form)
        if len(forms) > 1:
            axes.legend(frameon=False, labelcolor=COLOURS["ink"])
        axes.set_xlabel("KL to the base, nats an answer")
        axes.set_ylabel(reward_label)
        axes.tick_params(length=0)

    return draw


def _curve(axes: Any, points: Sequence[Point], colour: str, marker: str, form: str) -> None:
    ordered = sorted(points, key=lambda point: point.weight)
    kls, rewards = [p.kl for p in ordered], [p.reward for p in ordered]
    axes.errorbar(
        [kl.value for kl in kls],
        [reward.value for reward in rewards],
        xerr=[[kl.value - kl.low for kl in kls], [kl.high - kl.value for kl in kls]],
        yerr=[[r.value - r.low for r in rewards], [r.high - r.value for r in rewards]],
        color=colour,
        marker=marker,
        label=f"as a {form}" if form else None,
        markersize=6,
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
    )
    for point, kl, reward in zip(ordered, kls, rewards, strict=True):
        axes.annotate(
            f"strength {point.weight:g}" if point is ordered[-1] else f"{point.weight:g}",
            (kl.value, reward.value),
            xytext=(9, -15),
            textcoords="offset points",
            color=COLOURS["ink"],
        )
    axes.margins(x=0.08, y=0.12)
