"""The one thread that owns the model: requests join and leave the running batch between its steps.

The web layer gives it jobs and gets events; it never touches a tensor. Commands and events cross by queues, one call a
step for the events of all answers.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from trimtab.answers import Step
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.engine import GenerationEngine
from trimtab.decoding.failures import unexpected, without_frames
from trimtab.errors import DeadlineError, ModelError, QueueFullError, StoppedError, TrimtabError
from trimtab.serving.limits import Limits
from trimtab.serving.metrics import Metrics
from trimtab.serving.thread import TensorThread

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One answer to be made, and what has come of it. Only the generation thread writes to it."""

    prompt: Prompt
    params: SamplingParams
    guides: tuple[str, ...]
    """Names of the guides that run."""
    num_prompt_tokens: int
    deliver: Callable[[Event], None]
    """Called in the thread that `BatchThread.post` hands events to."""
    created: float = field(default_factory=time.monotonic)
    request_id: int | None = None
    last_token: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a job: it was taken (`step` and `error` None), grew by a step, or failed."""

    job: Job
    step: Step | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.error is not None or (self.step is not None and self.step.finish_reason is not None)


Post = Callable[[Sequence[Event]], None]


class BatchThread:
    """Runs a decoder in the thread that loaded its model, or in a new one.

    `post` receives the events of each step, in that thread. `on_death` is called where the loop ends by an error.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        limits: Limits,
        metrics: Metrics,
        *,
        post: Post,
        thread: TensorThread | None = None,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self.death: BaseException | None = None
        self._post = post
        self._on_death = on_death
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_open = 0  # answers taken and not ended, those that wait included
        self._closed = False
        self._jobs: dict[int, Job] = {}
        self._events: list[Event] = []
        self._ended: StoppedError | None = None
        self._thread = thread or TensorThread()
        self._loop: Future[None] | None = None
        metrics.watch(lambda: self.num_running, lambda: self.num_open - self.num_running)

    def start(self) -> None:
        """Begin; call it once."""
        self._loop = self._thread.submit(self._run)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue answers, all of them or none. Raises QueueFullError or StoppedError."""
        with self._lock:
            if self._closed or self.death is not None:
                raise StoppedError("The server is ending and takes no new requests.")
            if self._num_open + len(jobs) > self.limits.max_rows + self.limits.max_queue:
                raise QueueFullError(
                    f"{self._num_open} answers are running or waiting, and at most {self.limits.max_queue} may wait. "
                    "Try again later."
                )
            self._num_open += len(jobs)
            for job in jobs:  # inside the lock: whatever is taken before the end is seen by it
                self._commands.put(partial(self._take, job))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget answers that have not ended and free their rows, before the next token. No event follows."""
        for job in jobs:
            self._commands.put(partial(self._drop, job))

    def call(self, function: Callable[[], None]) -> None:
        """Have the generation thread call this between two of its steps. It must not raise."""
        self._commands.put(function)

    def ping(self, timeout_s: float) -> bool:
        """Whether the generation thread answers within so long."""
        answered = threading.Event()
        self.call(answered.set)
        return answered.wait(timeout_s) and self.death is None

    @property
    def num_open(self) -> int:
        """Answers that run or wait."""
        with self._lock:
            return self._num_open

    @property
    def num_running(self) -> int:
        """Answers that are being decoded."""
        return min(self.engine.num_running, self.num_open)

    @property
    def is_open(self) -> bool:
        """Whether new requests are taken."""
        return not self._closed and self.death is None and self._is_alive

    def close(self) -> None:
        """Take no new requests; those that were taken go on."""
        with self._lock:
            self._closed = True

    def stop(self, drain_s: float = 0.0) -> None:
        """Let the answers that run end for at most `drain_s`, then end the thread."""
        self.close()
        until = time.monotonic() + drain_s
        while self.num_open and self._is_alive and time.monotonic() < until:
            time.sleep(0.02)
        self._commands.put(None)
        if self._loop is not None:
            self._loop.result()

    @property
    def _is_alive(self) -> bool:
        return self._loop is not None and not self._loop.done()

    def _run(self) -> None:
        try:
            while self._obey():
                self._step()
        except BaseException as error:
            log.critical("the generation thread has died", exc_info=True)
            self._die(error)
        else:
            self._end_all(StoppedError("The server was stopped before this answer ended."))
        finally:
            self.engine.close()

    def _obey(self) -> bool:
        """Carry out what was asked, waiting for it where nothing runs; False: end."""
        while True:
            try:
                command = self._commands.get(block=not self._jobs)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            if not self._jobs:
                self._flush()

    def _take(self, job: Job) -> None:
        if self._ended is not None:
            self._end(job, Event(job, error=self._ended), "error")
            return
        try:
            job.request_id = self.engine.add(job.prompt, job.params)
        except TrimtabError as error:
            self._end(job, Event(job, error=error), "refused")
            return
        except Exception as error:  # a guide's own template, say: nobody else's affair
            log.error("a request could not be taken: %.500s", repr(error), exc_info=error)
            self._end(job, Event(job, error=unexpected(without_frames(error))), "error")
            return
        self._jobs[job.request_id] = job
        self.metrics.prompt_tokens.inc(job.num_prompt_tokens)
        self._events.append(Event(job))

    def _drop(self, job: Job) -> None:
        if job.request_id is not None and self._jobs.get(job.request_id) is job:
            self.engine.cancel(job.request_id)
            self._end(job, None, "cancelled")

    def _step(self) -> None:
        steps = self.engine.step()
        now = time.monotonic()
        for step in steps:
            self._grow(self._jobs[step.request_id], step, now)
        self._expire(now)
        self.metrics.steps.inc()
        self._flush()

    def _grow(self, job: Job, step: Step, now: float) -> None:
        metrics = self.metrics
        if step.token_id is not None and not job.params.forced:  # a prompt that is scored is no answer
            metrics.tokens.inc()
            timer = metrics.first_token if job.last_token is None else metrics.between_tokens
            timer.observe(now - (job.created if job.last_token is None else job.last_token))
            job.last_token = now
            for name in job.guides:
                metrics.guide_rows.labels(name).inc()
        if step.finish_reason is None:
            self._events.append(Event(job, step))
        elif step.finish_reason == "error":
            self._end(job, Event(job, step, step.error or ModelError("The answer failed.")), "error")
        else:
            self._end(job, Event(job, step), step.finish_reason)

    def _expire(self, now: float) -> None:
        late = [job for job in self._jobs.values() if now - job.created > self.limits.timeout_s]
        for job in late:
            assert job.request_id is not None
            self.engine.cancel(job.request_id)
            error = DeadlineError(f"The answer did not end within {self.limits.timeout_s:g} seconds.")
            self._end(job, Event(job, error=error), "timeout")

    def _end(self, job: Job, event: Event | None, reason: str) -> None:
        if job.request_id is not None:
            self._jobs.pop(job.request_id, None)
        with self._lock:
            self._num_open -= 1
        self.metrics.answers.labels(reason).inc()
        if event is not None:
            self._events.append(event)

    def _flush(self) -> None:
        """Hand over the events so far."""
        events, self._events = self._events, []
        if events:
            self._post(events)

    def _die(self, error: BaseException) -> None:
        with self._lock:
            self.death = error
            self._closed = True
        self._end_all(StoppedError("The generation thread has died; the server is ending."))
        if self._on_death is not None:
            self._on_death(error)

    def _end_all(self, error: StoppedError) -> None:
        """Fail what runs and what was still to be taken."""
        self._ended = error
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command()
        for job in list(self._jobs.values()):
            self._end(job, Event(job, error=error), "error")
        self._flush()
