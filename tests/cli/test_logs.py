"""A log that strangers cannot fill."""

from __future__ import annotations

import io
import logging

import pytest

from trimtab.serving.logs import Sparing, spare


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def written() -> tuple[logging.Logger, io.StringIO, Clock]:
    log, clock, stream = logging.Logger("some"), Clock(), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Sparing(clock))
    log.addHandler(handler)
    return log, stream, clock


def test_one_line_of_the_source_says_little_in_a_minute(written: tuple[logging.Logger, io.StringIO, Clock]) -> None:
    log, stream, clock = written
    for number in range(10_000):
        log.error("client %d sent nonsense", number)  # another text each time, and one line of the source
        log.error("another line")
    assert stream.getvalue().count("sent nonsense") == stream.getvalue().count("another line") == 5
    clock.now += 61
    for number in range(10_000):
        log.error("client %d sent nonsense", number)
    later = stream.getvalue().splitlines()[10:]
    assert len(later) == 5


def test_what_was_left_out_is_counted(written: tuple[logging.Logger, io.StringIO, Clock]) -> None:
    log, stream, clock = written
    for number in range(12):
        if number == 11:
            clock.now += 61
        log.warning("again")
    assert stream.getvalue().splitlines()[-1] == "again (6 more like this were left out)"


def test_long_ones_are_cut_with_their_tracebacks(written: tuple[logging.Logger, io.StringIO, Clock]) -> None:
    log, stream, _ = written
    log.error("begin %s end", "x" * 1_000_000)
    try:
        raise ValueError("y" * 1_000_000)
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert len(text) < 12_000
    assert text.startswith("begin x")
    assert "x end" in text
    assert "Traceback" in text


def test_every_handler_is_spared() -> None:
    log = logging.getLogger("tests.of.a.library")
    handler = logging.StreamHandler(io.StringIO())
    log.addHandler(handler)
    before = list(logging.getLogger().handlers)
    try:
        spare()
        for one in (handler, *before):
            assert any(isinstance(item, Sparing) for item in one.filters)
    finally:
        log.removeHandler(handler)
        for one in before:
            for item in [item for item in one.filters if isinstance(item, Sparing)]:
                one.removeFilter(item)
