"""A language model as a judge, behind any endpoint that speaks OpenAI's chat completions (arXiv 2306.05685, section 3).

It is asked for one of three marks, [[A]], [[B]] or [[C]], as in MT-Bench; the wording is ours. A reply without exactly
one of them is nonsense. Nonsense, a full house (429), a fault of the server (5xx) and silence are tried again, each
time after a longer wait with a random share, or after what Retry-After asks for; every call and every retry is counted,
and after the last attempt there is no verdict. What is refused for its content (403, 400, a content filter) is that
question's missing verdict. A refused key or an unknown model stops the run, and so does an endpoint that does not
answer `GIVE_UP` questions on end; calls that are under way then come to their end first, and their verdicts are kept.

What it does not know: prices, and whether a model behind a name has changed. The key is read, sent and never written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from trimtab.errors import MissingExtraError, ModelError, OptionError, PromptError
from trimtab.evaluation.judging.calls import TimedCalls
from trimtab.evaluation.judging.judges import FIRST, SECOND, TIE, Question, Verdict, conversation

log = logging.getLogger(__name__)

GIVE_UP = 5
TEMPERATURE, MAX_TOKENS = 0.0, 256
LONGEST_WAIT_S = 60.0
_RETRIED = (408, 409, 425, 429)
_OF_ALL = (401, 404)
"""The key, or the model: what one question is told, all are."""
_OPENAI = "api.openai.com/v1"
_MARKS = {"A": FIRST, "B": SECOND, "C": TIE}

INSTRUCTION = (
    "You compare two answers that two assistants gave to the same prompt, and say which one is better for the person "
    "who wrote the prompt: more helpful, correct, honest, harmless and clear. Neither the order of the answers nor "
    "their length is a merit. Reply with exactly one mark and nothing else: [[A]] if answer A is better, [[B]] if "
    "answer B is better, [[C]] if they are equally good."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a judge is, and how it is asked."""

    model: str
    base_url: str | None = None
    """None: OpenAI's own."""
    api_key: str | None = None
    """None: the endpoint asks for none."""
    concurrency: int = 4
    timeout_s: float = 60.0
    """How long one call may take, from the look-up of the name to the last byte of the reply."""
    max_attempts: int = 5
    backoff_s: float = 1.0
    """The wait before the second attempt; it doubles from then on."""
    temperature: float | None = TEMPERATURE
    """None: not sent, for models that refuse it."""
    max_tokens: int | None = MAX_TOKENS
    """None: not sent."""

    def __post_init__(self) -> None:
        if self.base_url is not None and urlsplit(self.base_url).scheme not in ("http", "https"):
            raise OptionError(
                f"{self.base_url!r} is not the address of an endpoint; give http://HOST/v1 or https://HOST/v1."
            )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One call: a winner, or why there is none and how long to wait before the next."""

    verdict: Verdict
    wait_s: float | None = None
    hopeless: bool = False
    """Whether asking this question again is of no use."""
    unanswered: bool = False
    """Whether nobody took the question: silence, a fault of the server, a full house."""
    answered: bool = False
    """Whether a completion came, whatever it said."""
    refusal: str = ""
    """What a status says that is about the key or the model; empty for any other."""


class ChatJudge:
    """A judge behind an endpoint. Raises MissingExtraError where the `openai` package is not installed."""

    sees_order = True

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("openai", "judge", "A judge behind an endpoint") from error
        self._openai = openai
        self._endpoint = endpoint
        self._address = urlsplit(str(self._client().base_url))
        where = self._address.netloc.rpartition("@")[2] + self._address.path.rstrip("/")
        self.name = f"openai:{endpoint.model}" + ("" if where == _OPENAI else f"@{where}") + _unusual(endpoint)
        sampled = "" if endpoint.temperature is None else f" at temperature {endpoint.temperature:g}"
        self.description = f"the language model {endpoint.model}{sampled}, asked in both orders"
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._num_unanswered = 0
        self._num_refused = 0
        self._has_answered = False
        self._random = random.Random()

    @property
    def settings(self) -> dict[str, object]:
        """What its verdicts depend on: where it is, what it is asked, and how its reply is drawn."""
        example = json.dumps(_messages(Question("prompt", "first", "second")), sort_keys=True)
        address = self._address
        return {
            "address": f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}",
            "query": _digest(address.query) if address.query else None,  # it may hold a key
            "model": self._endpoint.model,
            "temperature": self._endpoint.temperature,
            "max_tokens": self._endpoint.max_tokens,
            "wording": _digest(example),
        }

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """Verdicts as they come, `concurrency` questions at a time.

        Raises ModelError where it makes no sense to go on, and KeyboardInterrupt, both after the verdicts of the calls
        that were under way (at most `timeout_s` later; a second Ctrl-C does not wait).
        """
        self._stopping.clear()
        self._num_unanswered = self._num_refused = 0
        finished: SimpleQueue[Future[Verdict | None]] = SimpleQueue()
        stop: BaseException | None = None
        with TimedCalls(self._client, self._endpoint.timeout_s) as calls:
            pool = ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="judge")
            left = {pool.submit(self._ask, calls, question): index for index, question in enumerate(questions)}
            try:
                for future in left:
                    future.add_done_callback(finished.put)
                while left:
                    try:
                        future = finished.get()
                    except KeyboardInterrupt as interrupt:
                        if stop is not None:
                            raise
                        stop = interrupt
                        log.warning("waiting for the calls that are under way; again ends at once")
                        self._stop(left)
                        continue
                    index = left.pop(future)
                    error = None if future.cancelled() else future.exception()
                    if error is not None:
                        stop = stop or error
                        self._stop(left)
                    elif not future.cancelled() and (verdict := future.result()) is not None:
                        yield index, verdict
            finally:  # an error, a second Ctrl-C, or a reader that has had enough
                self._stop(left)
                calls.cancel()
                pool.shutdown()
        if stop is not None:
            raise stop

    def _stop(self, futures: Iterable[Future[Any]]) -> None:
        """Ask nothing more; what is under way goes on."""
        self._stopping.set()
        for future in list(futures):
            future.cancel()

    def _client(self) -> Any:
        return self._openai.AsyncOpenAI(
            base_url=self._endpoint.base_url,
            api_key=self._endpoint.api_key or "none",
            timeout=self._endpoint.timeout_s,
            max_retries=0,  # ours are counted
        )

    def _ask(self, calls: TimedCalls, question: Question) -> Verdict | None:
        """The verdict on one question, after as many attempts as it takes or are allowed; None where none was made."""
        endpoint = self._endpoint
        give_up = time.monotonic() + endpoint.max_attempts * (endpoint.timeout_s + LONGEST_WAIT_S)
        total: Verdict | None = None
        trial: _Trial | None = None
        for attempt in range(endpoint.max_attempts):
            if not self._wait_for_turn(give_up):
                return total
            trial = self._call(calls, question)
            total = _added(total or Verdict(None), trial.verdict, is_retry=attempt > 0)
            self._note(trial)
            if total.winner is not None or trial.hopeless:
                return total
            if attempt + 1 < endpoint.max_attempts:
                self._back_off(attempt, trial)
        assert total is not None
        assert trial is not None
        log.warning("no verdict after %d attempts: %s", endpoint.max_attempts, total.problem)
        if trial.unanswered:
            self._note_unanswered(trial)
        return total

    def _wait_for_turn(self, give_up: float) -> bool:
        """Wait until the endpoint takes calls again; False where the run was stopped, or that takes too long."""
        while (left := self._not_before - time.monotonic()) > 0 and time.monotonic() < give_up:
            if self._stopping.wait(min(left, max(0.0, give_up - time.monotonic()))):
                break
        return not self._stopping.is_set() and time.monotonic() < give_up

    def _back_off(self, attempt: int, trial: _Trial) -> None:
        if trial.wait_s is not None:  # it said how long, to all of us
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + trial.wait_s)
            return
        longest = min(LONGEST_WAIT_S, self._endpoint.backoff_s * 2**attempt)
        self._stopping.wait(longest * self._random.uniform(0.5, 1.0))

    def _call(self, calls: TimedCalls, question: Question) -> _Trial:
        openai, endpoint = self._openai, self._endpoint
        try:
            request: dict[str, object] = {"model": endpoint.model, "messages": _messages(question)}
        except PromptError as error:
            return _Trial(Verdict(None, str(error)), hopeless=True)
        if endpoint.temperature is not None:
            request["temperature"] = endpoint.temperature
        if endpoint.max_tokens is not None:
            request["max_tokens"] = endpoint.max_tokens
        try:
            reply = calls.complete(request)
        except openai.APIStatusError as error:
            return self._refused(error)
        except (TimeoutError, openai.APITimeoutError):
            return _Trial(Verdict(None, f"no reply within {endpoint.timeout_s:g} s", 1), unanswered=True)
        except openai.APIConnectionError as error:
            return _Trial(
                Verdict(None, self._clean(f"cannot be reached ({error.__cause__ or error})"), 1), unanswered=True
            )
        except CancelledError:
            return _Trial(Verdict(None, "the run was stopped", 1), hopeless=True)
        except Exception as error:  # not JSON, or not a completion, in one of many ways
            return _Trial(Verdict(None, self._clean(f"a reply that is not a completion ({error})"), 1))
        return self._read(reply)

    def _refused(self, error: Any) -> _Trial:
        """What a status other than 200 means: try again, leave the question, or stop."""
        status = int(error.status_code)
        text = self._clean(f"HTTP {status}: {error.message}")
        verdict = Verdict(None, text, 1)
        if status in _OF_ALL:
            return _Trial(verdict, hopeless=True, refusal=text)
        if status in _RETRIED or status >= 500:
            wait_s = _retry_after(error.response.headers.get("retry-after"))
            return _Trial(verdict, wait_s, unanswered=True)
        return _Trial(verdict, hopeless=True)

    def _read(self, reply: Any) -> _Trial:
        """The mark in a reply, with the tokens that it cost."""
        usage = getattr(reply, "usage", None)
        tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        counts = [value if isinstance(value, int) else 0 for value in tokens]
        filtered = False
        try:
            choice = reply.choices[0]
            filtered = choice.finish_reason == "content_filter" or bool(getattr(choice.message, "refusal", None))
            content = choice.message.content or ""
        except (AttributeError, IndexError, TypeError):
            content = ""
        winner = read_mark(content) if isinstance(content, str) else None
        problem = f"a reply without one mark: {str(content)[:80]!r}"
        if filtered:
            problem = "the endpoint's content filter refused it"
        verdict = Verdict(winner, "" if winner else self._clean(problem), 1, 0, *counts)
        return _Trial(verdict, hopeless=filtered, answered=True)

    def _note(self, trial: _Trial) -> None:
        """Stop where the key or the model is refused: at first, or for a while."""
        with self._lock:
            self._has_answered |= trial.answered
            self._num_refused = self._num_refused + 1 if trial.refusal else 0
            if not trial.unanswered:
                self._num_unanswered = 0
            stops = self._num_refused >= (GIVE_UP if self._has_answered else 1)
        if stops:
            self._stopping.set()
            raise ModelError(
                f"The judge refuses: {trial.refusal}. Check --judge, --base-url and the key in OPENAI_API_KEY; what "
                "has been judged is kept, and the same command goes on."
            )

    def _note_unanswered(self, trial: _Trial) -> None:
        """Stop where nobody has been there for a while."""
        with self._lock:
            self._num_unanswered += 1
            gone = self._num_unanswered >= GIVE_UP
        if gone:
            self._stopping.set()
            raise ModelError(
                f"The judge at {self._address.hostname} has not answered {GIVE_UP} questions on end: "
                f"{trial.verdict.problem}. What has been judged is kept; run the same command when it is back."
            )

    def _clean(self, text: str) -> str:
        """A text from outside, short, and without the key."""
        key = self._endpoint.api_key
        return (text.replace(key, "***") if key else text)[:200]


def read_mark(reply: str) -> str | None:
    """FIRST, SECOND or TIE if the reply has [[A]], [[B]] or [[C]] and no other of them; else None."""
    found = set(re.findall(r"\[\[([ABC])\]\]", reply))
    return _MARKS[found.pop()] if len(found) == 1 else None


def _unusual(endpoint: Endpoint) -> str:
    """What of the sampling is not as it is unless somebody asks for it, for a judge's name."""
    said = []
    if endpoint.temperature != TEMPERATURE:
        sent = endpoint.temperature is not None
        said.append(f"temperature {endpoint.temperature:g}" if sent else "no temperature sent")
    if endpoint.max_tokens != MAX_TOKENS:
        said.append("no max_tokens sent" if endpoint.max_tokens is None else f"{endpoint.max_tokens} tokens")
    return f" ({', '.join(said)})" if said else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _messages(question: Question) -> list[dict[str, str]]:
    content = (
        f"<prompt>\n{conversation(question.prompt)}\n</prompt>\n\n<answer_A>\n{question.first}\n</answer_A>\n\n"
        f"<answer_B>\n{question.second}\n</answer_B>"
    )
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]


def _added(total: Verdict, new: Verdict, *, is_retry: bool) -> Verdict:
    return replace(
        new,
        num_calls=total.num_calls + new.num_calls,
        num_retries=total.num_retries + is_retry,
        prompt_tokens=total.prompt_tokens + new.prompt_tokens,
        completion_tokens=total.completion_tokens + new.completion_tokens,
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds that a server asks to wait, as a number or a date; at most `LONGEST_WAIT_S`."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (when - datetime.now(UTC)).total_seconds() if when.tzinfo else 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if seconds == seconds else None
