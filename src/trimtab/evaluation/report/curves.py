"""Reward against KL, or against another reward: every method as a line, told apart by colour, marker and name.

Colours are of Okabe and Ito's palette, darkened or lightened to stand out from either paper; methods of one colour have
another marker and another dash, and each line carries its name. A line follows the order of a method's strengths.
Hollow markers on a dotted line are bounds: the true value of x is no higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from trimtab.evaluation.comparison.summary import Estimate
from trimtab.evaluation.report.figure import COLOURS, Draw, label_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

SERIES_LIGHT = ("#0072b2", "#c65300", "#00805f", "#a3458a", "#8a6200", "#2b8cc4", "#6b4fa8")
SERIES_DARK = ("#5ab4f0", "#ff9a5c", "#4fd1ac", "#e69ad0", "#e3b94a", "#a6dcff", "#b9a2f2")
PALETTE = {**COLOURS, **{f"c{index}": colour for index, colour in enumerate(SERIES_LIGHT)}}
"""Name of the page's variable -> colour of the PNG."""

_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
Dash: TypeAlias = "str | tuple[int, tuple[float, ...]]"
"""A line style of Matplotlib's."""
_DASHES: tuple[Dash, ...] = ("-", (0, (4, 1.5)), (0, (3, 1.2, 0.8, 1.2)), (0, (1.6, 1)))
_DOTS: tuple[Dash, ...] = (":", (0, (1, 3)), (0, (1, 1.5, 1, 4)), (0, (1, 1.5, 1, 1.5, 1, 4)))
"""The first is of the methods that are the first to have a colour, the next of those that are the second."""
_LEGEND_LETTERS = 104  # what the figure's width holds of the legend's type
_MARKER_LETTERS = 8  # what a marker takes there
_LINE_HEIGHT = 13  # pixels at 72 dots an inch, for the names beside the lines


@dataclass(frozen=True, slots=True)
class Spot:
    """A point with its intervals."""

    x: Estimate
    y: Estimate
    label: str = ""
    """What stands beside it: its strength."""


@dataclass(frozen=True, slots=True)
class Series:
    """One method."""

    label: str
    spots: Sequence[Spot]
    index: int
    """Its place among the methods that are not the base, which gives it colour and marker; −1: the base."""
    bounded: bool = False
    """Whether its x is an upper bound."""

    @property
    def colour(self) -> str:
        return COLOURS["ink"] if self.index < 0 else SERIES_LIGHT[self.index % len(SERIES_LIGHT)]

    @property
    def marker(self) -> str:
        return "o" if self.index < 0 else _MARKERS[self.index % len(_MARKERS)]

    @property
    def dash(self) -> Dash:
        dashes = _DOTS if self.bounded else _DASHES
        return dashes[max(0, self.index) // len(SERIES_LIGHT) % len(dashes)]


def plot(series: Sequence[Series], x_label: str, y_label: str, *, root_x: bool) -> Draw:
    """What draws the series on a figure. `root_x` spaces x by its root, as is usual for KL (arXiv 2210.10760)."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if root_x:
            axes.set_xscale("function", functions=(_root, _square))
        for index, one in enumerate(series):
            _line(axes, one, label=f"series {index}")
            _label_spots(axes, one)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.tick_params(length=0)
        _make_room(axes, series, root_x=root_x)
        figure.draw_without_rendering()
        _name_lines(axes, series)
        if len(series) > 1:
            widest = max(len(_legend_label(one)) for one in series)
            columns = max(1, min(4, len(series), _LEGEND_LETTERS // (widest + _MARKER_LETTERS)))
            legend = figure.legend(
                *axes.get_legend_handles_labels(),
                loc="outside lower center",
                ncols=columns,
                frameon=False,
                fontsize=10,
                handlelength=3.6,
            )
            label_legend(legend, list(map(_legend_label, series)))

    return draw


def described(series: Sequence[Series]) -> str:
    """The figure in words, for a reader who cannot see it."""
    return "; ".join(
        f"{one.label}: {', '.join(f'{spot.x.value:.2f} to {spot.y.value:.2f}' for spot in one.spots)}" for one in series
    )


def _line(axes: Axes, series: Series, *, label: str) -> None:
    xs, ys = [spot.x for spot in series.spots], [spot.y for spot in series.spots]
    axes.errorbar(
        [x.value for x in xs],
        [y.value for y in ys],
        xerr=_bars(xs),
        yerr=_bars(ys),
        label=label,
        color=series.colour,
        marker=series.marker,
        markersize=7,
        markerfacecolor=COLOURS["paper"] if series.bounded else series.colour,
        linestyle=series.dash,
        linewidth=1.6,
        elinewidth=0.9,
        capsize=2.5,
        zorder=3 if series.index < 0 else 2,
    )


def _label_spots(axes: Axes, series: Series) -> None:
    """Each point's label below it at its right, clear of its bars."""
    for spot in series.spots:
        if spot.label:
            axes.annotate(
                spot.label,
                (spot.x.value, spot.y.value),
                xytext=(7, -13),
                textcoords="offset points",
                color=series.colour,
                fontsize=9,
            )


def _legend_label(series: Series) -> str:
    return f"{series.label} (bound)" if series.bounded else series.label


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths below and above each value; nothing where there is no interval."""
    return [
        [0.0 if one.low is None else max(0.0, one.value - one.low) for one in estimates],
        [0.0 if one.high is None else max(0.0, one.high - one.value) for one in estimates],
    ]


def _make_room(axes: Axes, series: Sequence[Series], *, root_x: bool) -> None:
    """Space at the right for the names."""
    ends = [spot.x.high or spot.x.value for one in series for spot in one.spots]
    starts = [spot.x.value if spot.x.low is None else spot.x.low for one in series for spot in one.spots]
    if root_x:
        far = max(1e-3, 1.5 * max(ends))
        axes.set_xlim(-1e-3 * far, far)  # a little below 0, so that the base does not stand on the axis
    else:
        width = max(max(ends) - min(starts), 1e-3)
        axes.set_xlim(min(starts) - 0.06 * width, max(ends) + 0.24 * width)
    axes.margins(y=0.1)


def _name_lines(axes: Axes, series: Sequence[Series]) -> None:
    """Each name at the right of its line's last point, pushed apart where two would meet."""
    scale = 72 / axes.figure.dpi
    places = []
    for one in series:
        last = max(one.spots, key=lambda spot: spot.x.value)
        end = last.x.value if last.x.high is None else last.x.high
        x, y = axes.transData.transform((end, last.y.value)) * scale
        places.append((y, x, one, (end, last.y.value)))
    places.sort(key=lambda place: place[0])
    taken: list[tuple[float, float, float]] = []  # left, right, height of the names so far
    for y, x, one, at in places:
        left, right, height = x + 8, x + 8 + 6.2 * len(one.label), y
        for other_left, other_right, other in sorted(taken, key=lambda name: name[2]):
            if left < other_right and other_left < right and abs(height - other) < _LINE_HEIGHT:
                height = other + _LINE_HEIGHT
        taken.append((left, right, height))
        axes.annotate(
            one.label,
            at,
            xytext=(8, height - y),
            textcoords="offset points",
            color=one.colour,
            fontsize=10,
            verticalalignment="center",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": COLOURS["paper"], "edgecolor": "none", "alpha": 0.75},
            zorder=4,
        )


def _root(values: Numbers) -> Numbers:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Numbers) -> Numbers:
    return values * abs(values)
