"""The reward-against-KL curve as a picture: PNG for papers and slides, SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import MissingExtraError
from trimtab.evaluation.frontier import Point

# Colours of the PNG; in the SVG each becomes the page's variable of that name.
_COLOURS = {"ink": "#1b1b1d", "soft": "#5c5c61", "line": "#dcdad3", "accent": "#1f5fb4", "paper": "#ffffff"}
_STYLE = {
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["soft"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["soft"],
    "ytick.labelcolor": _COLOURS["soft"],
    "svg.fonttype": "none",
    "svg.hashsalt": "trimtab",
}


def frontier_svg(points: Sequence[Point], *, reward_label: str) -> str:
    """The curve as an SVG element to stand in a page that defines --ink, --soft, --line, --accent and --paper."""
    buffer = io.StringIO()
    _draw(points, reward_label, buffer, "svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # an inline element has no XML declaration and no document type
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    # Text takes the page's font; matplotlib's own would be DejaVu.
    svg = re.sub(r"font: (\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \1", svg)
    summary = "; ".join(f"strength {p.weight:g}: KL {p.kl.value:.1f}, reward {p.reward.value:.2f}" for p in points)
    return svg.replace("<svg ", f'<svg role="img" aria-label="Reward against KL. {summary}." ', 1)


def write_frontier_png(points: Sequence[Point], path: Path, *, reward_label: str) -> None:
    """The curve as a PNG, 200 dots an inch."""
    _draw(points, reward_label, path, "png", transparent=False)


def _draw(points: Sequence[Point], reward_label: str, target: Any, kind: str, *, transparent: bool) -> None:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The figure of the report") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        _curve(axes, points)
        axes.set_xlabel("KL to the base, nats an answer")
        axes.set_ylabel(reward_label)
        axes.tick_params(length=0)
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(target, format=kind, dpi=200, transparent=transparent, metadata=metadata)


def _curve(axes: Any, points: Sequence[Point]) -> None:
    ordered = sorted(points, key=lambda point: point.weight)
    kls, rewards = [p.kl for p in ordered], [p.reward for p in ordered]
    axes.errorbar(
        [kl.value for kl in kls],
        [reward.value for reward in rewards],
        xerr=[[kl.value - kl.low for kl in kls], [kl.high - kl.value for kl in kls]],
        yerr=[[r.value - r.low for r in rewards], [r.high - r.value for r in rewards]],
        color=_COLOURS["accent"],
        marker="o",
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
            color=_COLOURS["ink"],
        )
    axes.margins(x=0.08, y=0.12)
