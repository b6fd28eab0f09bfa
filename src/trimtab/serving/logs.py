"""A log that does not grow with what strangers send: a line of the source says the same thing a few times a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_MOST = 5
"""Records of one line of the source in one period."""
_PERIOD_S = 60.0
_MOST_CHARACTERS = 2_000
_MOST_TRACEBACK = 8_000


class Sparing(logging.Filter):
    """Lets a few records of each line of the source pass in a period, and says how many it kept; cuts long ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes."""
        place, now = (record.pathname, record.lineno), self._clock()
        begun, count = self._counts.get(place, (now, 0))
        kept = 0
        if now - begun >= _PERIOD_S:
            kept, begun, count = max(0, count - _MOST), now, 0
        self._counts[place] = (begun, count + 1)
        if count >= _MOST:
            return False
        text = record.getMessage()
        more = f" ({kept} more like this were left out)" if kept else ""
        if len(text) > _MOST_CHARACTERS or more:
            record.msg, record.args = _cut(text, _MOST_CHARACTERS) + more, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = _cut(logging.Formatter().formatException(record.exc_info), _MOST_TRACEBACK)
        return True


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"


def spare() -> None:
    """Put such a filter on every handler that any logger has now."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.addFilter(Sparing())
