"""A drawing as a picture: PNG for papers and slides, SVG that takes its colours from the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from trimtab.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLOURS = {
    "ink": "#1b1b1d",
    "soft": "#5c5c61",
    "line": "#dcdad3",
    "paper": "#ffffff",
    "accent": "#1f5fb4",
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

Draw: TypeAlias = "Callable[[Figure], None]"
"""Draws on a figure of matplotlib's."""

SIZE = (8.4, 5.2)
"""Inches."""


def as_svg(draw: Draw, *, label: str, colours: Mapping[str, str]) -> str:
    """A drawing as an SVG element that takes its colours from the page: each of `colours` becomes the page's variable.

    `label` is what a reader who cannot see it is told.
    """
    buffer = io.StringIO()
    _render(draw, buffer, "svg")
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


def label_legend(legend: Legend, labels: Sequence[str]) -> None:
    """Give a legend that is made its labels, letter by letter: Matplotlib would leave out those that begin with "_"."""
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)


def write(draw: Draw, path: Path) -> None:
    """A drawing as an .svg file, or as a .png file of 200 dots an inch."""
    _render(draw, path, path.suffix.removeprefix("."))


def _render(draw: Draw, target: Path | IO[str], kind: str) -> None:
    """Raises MissingExtraError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The figure of the report") from error
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure)
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(target, format=kind, dpi=200, transparent=kind == "svg", metadata=metadata)
