"""The generation thread: jobs from any thread, cancelled, late, too many, and what happens when it ends or dies."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.server_process import until
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DeadlineError, OptionError, PromptError, QueueFullError, StoppedError
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel
from trimtab.serving.batch_thread import BatchThread, Event, Job
from trimtab.serving.limits import Limits
from trimtab.serving.metrics import Metrics

BASE = TabularModel.random(61, seed=0)
GUIDES = {"one": ARM(TabularModel.random(61, seed=1))}


class Watched(Decoder):
    """A decoder whose steps can be held, and made to fail."""

    def __init__(self, **options: Any) -> None:
        super().__init__(BASE, GUIDES, **options)
        self.may_step = threading.Event()
        self.may_step.set()
        self.failure: BaseException | None = None

    def step(self) -> Any:
        self.may_step.wait(10)
        if self.failure is not None:
            raise self.failure
        return super().step()


Begin = Callable[..., BatchThread]


@pytest.fixture
def begin() -> Iterator[Begin]:
    batches: list[BatchThread] = []

    def start(limits: Limits | None = None, **options: Any) -> BatchThread:
        limits = limits or Limits()
        decoder = Watched(max_rows=limits.max_rows)
        batch = BatchThread(decoder, limits, Metrics(), post=deliver, **options)
        batch.start()
        batches.append(batch)
        return batch

    yield start
    for batch in batches:
        batch.engine.may_step.set()  # type: ignore[attr-defined]
        batch.stop()


def deliver(events: Sequence[Event]) -> None:
    for event in events:
        event.job.deliver(event)


def a_job(mail: queue.Queue[Event], **how: Any) -> Job:
    params = SamplingParams(**{"max_new_tokens": 5, "seed": 1, "ignore_eos": True, **how})
    return Job([1, 2, 3], params, ("one",), 3, mail.put)


def read(mail: queue.Queue[Event]) -> list[Event]:
    """Events up to a job's last one."""
    found = [mail.get(timeout=10)]
    while not found[-1].is_last:
        found.append(mail.get(timeout=10))
    return found


def alone(**how: Any) -> list[int]:
    [answer] = Decoder(BASE, GUIDES).generate([1, 2, 3], max_new_tokens=5, ignore_eos=True, **how)
    return list(answer.token_ids)


def test_jobs_from_many_threads_are_each_its_own(begin: Begin) -> None:
    batch = begin(Limits(max_rows=4))
    found: dict[int, list[int | None]] = {}

    def ask(seed: int) -> None:
        mail: queue.Queue[Event] = queue.Queue()
        batch.submit([a_job(mail, seed=seed, weights={"one": 0.5 * seed})])
        first, *rest = read(mail)
        assert first.step is None
        found[seed] = [event.step.token_id for event in rest if event.step is not None]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {seed: alone(seed=seed, weights={"one": 0.5 * seed}) for seed in range(12)}
    until(lambda: batch.num_open == 0)
    assert batch.engine.num_running == batch.engine.num_rows == 0


def test_a_request_that_cannot_run_is_told_why(begin: Begin) -> None:
    batch, mail = begin(), queue.Queue()
    batch.submit([Job([], SamplingParams(), (), 0, mail.put), a_job(mail, weights={"none": 1.0})])
    assert isinstance(mail.get(timeout=10).error, PromptError)
    assert isinstance(mail.get(timeout=10).error, OptionError)
    assert batch.num_open == 0


def test_a_cancelled_answer_frees_its_row_before_the_next_token(begin: Begin) -> None:
    batch, mail, other = begin(Limits(max_rows=2)), queue.Queue(), queue.Queue()
    jobs = [a_job(mail, max_new_tokens=1000), a_job(mail, max_new_tokens=1000)]
    batch.submit(jobs)
    assert [mail.get(timeout=10).step for _ in range(2)] == [None, None]
    mail.get(timeout=10)
    batch.engine.may_step.clear()  # type: ignore[attr-defined]
    batch.submit([a_job(other)])
    batch.cancel(jobs)
    batch.cancel(jobs)  # twice does nothing
    batch.engine.may_step.set()  # type: ignore[attr-defined]
    assert [event.step.token_id for event in read(other) if event.step] == alone(seed=1)
    until(lambda: batch.num_open == 0)
    assert batch.engine.num_rows == 0
    assert batch.metrics.answers.labels("cancelled")._value.get() == 2


def test_too_many_are_refused_and_none_of_a_request_is_taken(begin: Begin) -> None:
    batch, mail = begin(Limits(max_rows=2, max_queue=1)), queue.Queue()
    batch.engine.may_step.clear()  # type: ignore[attr-defined]
    batch.submit([a_job(mail), a_job(mail)])
    with pytest.raises(QueueFullError, match="at most 1 may wait"):
        batch.submit([a_job(mail), a_job(mail)])
    batch.submit([a_job(mail)])
    assert batch.num_open == 3


def test_an_answer_that_takes_too_long_fails(begin: Begin) -> None:
    batch, mail = begin(Limits(timeout_s=0.05)), queue.Queue()
    batch.submit([a_job(mail, max_new_tokens=10**6)])
    assert isinstance(read(mail)[-1].error, DeadlineError)
    until(lambda: batch.engine.num_running == 0)


def test_a_stop_lets_answers_end_and_takes_no_new_ones(begin: Begin) -> None:
    batch, mail = begin(), queue.Queue()
    batch.submit([a_job(mail, max_new_tokens=200)])
    batch.close()
    with pytest.raises(StoppedError):
        batch.submit([a_job(mail)])
    batch.stop(drain_s=10)
    assert read(mail)[-1].step.finish_reason == "length"
    assert not batch.is_open


def test_a_stop_at_the_deadline_fails_what_is_left(begin: Begin) -> None:
    batch, mail = begin(), queue.Queue()
    batch.submit([a_job(mail, max_new_tokens=10**6)])
    batch.stop(drain_s=0.05)
    assert isinstance(read(mail)[-1].error, StoppedError)
    assert batch.num_open == 0


def test_a_dead_thread_fails_everything_and_says_so(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    deaths: list[BaseException] = []
    batch, mail = begin(on_death=deaths.append), queue.Queue()
    assert batch.ping(5)
    batch.engine.failure = MemoryError("no memory")  # type: ignore[attr-defined]
    batch.submit([a_job(mail), a_job(mail)])
    assert [isinstance(read(mail)[-1].error, StoppedError) for _ in range(2)] == [True, True]
    until(lambda: bool(deaths))
    assert isinstance(deaths[0], MemoryError)
    assert not batch.is_open
    assert not batch.ping(0.2)
    assert "died" in caplog.text
    with pytest.raises(StoppedError):
        batch.submit([a_job(mail)])
