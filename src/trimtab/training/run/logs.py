"""Other libraries' loggers, changed for the time that we use them and put back as they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def filtered(logger: logging.Logger, accepts: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Inside, a logger drops the records that `accepts` is false for."""
    logger.addFilter(accepts)
    try:
        yield
    finally:
        logger.removeFilter(accepts)


@contextmanager
def at_level(logger: logging.Logger, level: int) -> Iterator[None]:
    """Inside, a logger drops what is below a level."""
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
