"""Several objectives at once: who is beaten on all of them, how much is covered, how well a preference is served.

Higher is better in every objective. What it does not know: units. A hypervolume means something only beside others of
the same objectives, scales and reference point, so a report has to state the point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InputError, MissingExtraError, OptionError

Array = NDArray[np.float64]


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other beats: none is at least as good in all objectives and better in one.

    Points that are equal are all kept. Raises InputError for points of different lengths or that are not finite.
    """
    table = _table(points)
    beaten = [bool(np.any(np.all(table >= row, axis=1) & np.any(table > row, axis=1))) for row in table]
    return [index for index, loses in enumerate(beaten) if not loses]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume between the front and the reference point, exactly, for 2 to 4 objectives (library: moarchiving).

    Points that do not exceed the reference in every objective cover nothing (Zitzler and Thiele, 1998). Raises
    InputError for points of another number of objectives than the reference, OptionError for too few or too many.
    """
    table, corner = _table(points), np.asarray(reference, dtype=np.float64)
    if not (2 <= len(corner) <= 4 and np.isfinite(corner).all()):
        raise OptionError(f"The reference point is {list(reference)}; give 2 to 4 finite numbers, one an objective.")
    if table.size and table.shape[1] != len(corner):
        raise InputError(
            f"The points have {table.shape[1]} objectives and the reference point {len(corner)}; give as many."
        )
    try:
        from moarchiving import get_mo_archive
    except ImportError as error:
        raise MissingExtraError("moarchiving", "compare", "The hypervolume") from error
    # The library takes costs, so everything changes sign.
    inside = table[(table > corner).all(axis=1)] if table.size else table
    if not inside.size:
        return 0.0
    archive = get_mo_archive((-inside).tolist(), reference_point=(-corner).tolist())
    return float(archive.hypervolume)


def mean_inner_product(preferences: Sequence[Sequence[float]], rewards: Sequence[Sequence[float]]) -> float:
    """The mean of preference · reward over preference vectors, each beside what was reached under it."""
    wanted, reached = _table(preferences), _table(rewards)
    if wanted.shape != reached.shape or not wanted.size:
        raise InputError(
            f"There are preferences of shape {wanted.shape} and rewards of shape {reached.shape}; "
            "give one reward vector for each preference vector, as long as it is."
        )
    return float(np.mean(np.sum(wanted * reached, axis=1)))


def _table(points: Sequence[Sequence[float]]) -> Array:
    """[N, M], checked to be finite."""
    lengths = {len(point) for point in points}
    if len(lengths) > 1:
        raise InputError(f"The points have {sorted(lengths)} objectives; all must have as many.")
    table = np.asarray(points, dtype=np.float64).reshape(len(points), -1) if len(points) else np.zeros((0, 0))
    if not np.isfinite(table).all():
        raise InputError("A point is not finite; leave out what has no reward.")
    return table
