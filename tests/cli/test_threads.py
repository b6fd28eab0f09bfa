"""--threads: so many, or as many as a measurement finds fastest; without it nothing is touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trimtab.models import threads

from .conftest import Run, Tiny


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_command_computes_with_the_threads_that_it_is_given(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    short = ("generate", "--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "1")
    assert run(*short).code == 0
    assert asked == []
    assert run(*short, "--threads", "3").code == 0
    assert asked == [3]
    monkeypatch.setattr(threads, "quickest", lambda most: 2)
    outcome = run(*short, "--threads", "auto")
    assert outcome.code == 0
    assert asked == [3, 2]
    assert "computing with 2 threads" in outcome.err


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5", "100000"])
def test_what_is_not_a_number_of_threads_is_refused(run: Run, tiny: Tiny, wrong: str) -> None:
    outcome = run("generate", "--model", tiny.model, "--prompt", "Hi", f"--threads={wrong}")
    assert outcome.code == 2
    assert "give 1 to 1024, or auto" in outcome.err


@pytest.mark.parametrize(
    ("seconds", "most", "best"),
    [
        ({1: 1.0, 2: 3.0}, 2, 1),
        ({1: 1.0, 2: 0.95}, 2, 1),
        ({1: 1.0, 2: 0.6}, 2, 2),
        ({1: 1.0, 2: 0.6, 4: 0.4, 6: 0.3}, 6, 6),
        ({1: 1.0, 2: 0.6, 4: 0.9, 8: 0.2}, 8, 8),
        ({1: 1.0}, 1, 1),
    ],
)
def test_more_threads_are_taken_where_they_pay(
    seconds: dict[int, float], most: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_seconds", lambda layers, num: seconds[num])
    before = torch.get_num_threads()
    assert threads.quickest(most) == best
    assert torch.get_num_threads() == before


def test_the_measurement_itself_runs() -> None:
    assert threads.quickest(1) == 1
