"""A language model as a judge, behind any endpoint that speaks OpenAI's chat completions (arXiv 2306.05685, section 3).

It is asked for one of three marks, [[A]], [[B]] or [[C]], as in MT-Bench; the wording is ours. A reply without exactly
one of them is nonsense. Nonsense, a full house (429), a fault of the server (5xx) and silence are tried again, each
time after a longer wait with a random share, or after what Retry-After asks for; every call and every retry is counted,
and after the last attempt there is no verdict. A refused key or an unknown model stops the run, and so does an endpoint
that cannot be reached for `GIVE_UP` questions on end: what has been judged is kept.

What it does not know: prices, and whether a model behind a name has changed. The key is read, sent and never written.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from trimtab.errors import MissingExtraError, ModelError, OptionError
from trimtab.evaluation.judges import FIRST, SECOND, TIE, Question, Verdict, conversation

log = logging.getLogger(__name__)

GIVE_UP = 5
LONGEST_WAIT_S = 60.0
_RETRIED = (408, 409, 425, 429)
_FATAL = (401, 403, 404)
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
    """Of one call."""
    max_attempts: int = 5
    backoff_s: float = 1.0
    """The wait before the second attempt; it doubles from then on."""
    temperature: float | None = 0.0
    """None: not sent, for models that refuse it."""
    max_tokens: int | None = 256
    """None: not sent."""

    def __post_init__(self) -> None:
        if self.base_url is not None and urlsplit(self.base_url).scheme not in ("http", "https"):
            raise OptionError(
                f"{self.base_url!r} is no address of an endpoint; give http://HOST/v1 or https://HOST/v1."
            )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One call: a winner, or why there is none and how long to wait before the next."""

    verdict: Verdict
    wait_s: float | None = None
    hopeless: bool = False
    """Whether asking this question again is of no use."""
    unreachable: bool = False


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
        host = urlsplit(endpoint.base_url).hostname if endpoint.base_url else None
        self.name = f"openai:{endpoint.model}" + (f"@{host}" if host else "")
        heat = "" if endpoint.temperature is None else f" at temperature {endpoint.temperature:g}"
        self.description = f"the language model {endpoint.model}{heat}, asked in both orders"
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key or "none",
            timeout=endpoint.timeout_s,
            max_retries=0,  # ours are counted
        )
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._num_unreachable = 0
        self._dice = random.Random()

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """Verdicts as they come, `concurrency` questions at a time.

        Raises ModelError where it makes no sense to go on.
        """
        self._stopping.clear()
        self._num_unreachable = 0
        with ThreadPoolExecutor(self._endpoint.concurrency, thread_name_prefix="judge") as pool:
            futures = {pool.submit(self._ask, question): index for index, question in enumerate(questions)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:  # an error, Ctrl-C, or a reader that has had enough
                self._stopping.set()
                for future in futures:
                    future.cancel()

    def _ask(self, question: Question) -> Verdict:
        """The verdict on one question, after as many attempts as it takes or are allowed."""
        total = Verdict(None, "the run was stopped")
        for attempt in range(self._endpoint.max_attempts):
            if self._wait_for_turn():
                return total
            trial = self._call(question)
            total = _added(total, trial.verdict, is_retry=attempt > 0)
            self._note(trial)
            if total.winner is not None or trial.hopeless:
                return total
            if attempt + 1 < self._endpoint.max_attempts:
                self._back_off(attempt, trial)
        log.warning("no verdict after %d attempts: %s", self._endpoint.max_attempts, total.problem)
        return total

    def _wait_for_turn(self) -> bool:
        """Wait until the endpoint takes calls again; whether the run was stopped meanwhile."""
        while (left := self._not_before - time.monotonic()) > 0:
            if self._stopping.wait(left):
                break
        return self._stopping.is_set()

    def _back_off(self, attempt: int, trial: _Trial) -> None:
        if trial.wait_s is not None:  # it said how long, to all of us
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + trial.wait_s)
            return
        longest = min(LONGEST_WAIT_S, self._endpoint.backoff_s * 2**attempt)
        self._stopping.wait(longest * self._dice.uniform(0.5, 1.0))

    def _call(self, question: Question) -> _Trial:
        openai, endpoint = self._openai, self._endpoint
        options: dict[str, Any] = {}
        if endpoint.temperature is not None:
            options["temperature"] = endpoint.temperature
        if endpoint.max_tokens is not None:
            options["max_tokens"] = endpoint.max_tokens
        try:
            reply = self._client.chat.completions.create(model=endpoint.model, messages=_messages(question), **options)
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APITimeoutError:
            return _Trial(Verdict(None, f"no reply within {endpoint.timeout_s:g} s", 1), unreachable=True)
        except openai.APIConnectionError as error:
            return _Trial(Verdict(None, f"cannot be reached ({error.__cause__ or error})", 1), unreachable=True)
        except (openai.APIError, ValueError) as error:  # not JSON, or not a completion
            return _Trial(Verdict(None, self._clean(f"a reply that is no completion ({error})"), 1))
        return _Trial(self._read(reply))

    def _refused(self, error: Any) -> _Trial:
        """What a status other than 200 means: try again, leave the question, or stop."""
        status = int(error.status_code)
        text = self._clean(f"HTTP {status}: {error.message}")
        if status in _FATAL:
            raise ModelError(
                f"The judge refuses: {text}. Check --judge, --base-url and the key in OPENAI_API_KEY; what has been "
                "judged is kept, and the same command goes on."
            )
        if status in _RETRIED or status >= 500:
            wait_s = _retry_after(error.response.headers.get("retry-after"))
            return _Trial(Verdict(None, text, 1), wait_s, unreachable=status >= 500)
        return _Trial(Verdict(None, text, 1), hopeless=True)

    def _read(self, reply: Any) -> Verdict:
        """The mark in a reply, with the tokens that it cost."""
        usage = getattr(reply, "usage", None)
        tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        counts = [value if isinstance(value, int) else 0 for value in tokens]
        try:
            content = reply.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            content = ""
        winner = read_mark(content) if isinstance(content, str) else None
        problem = "" if winner else self._clean(f"a reply without one mark: {str(content)[:80]!r}")
        return Verdict(winner, problem, 1, 0, *counts)

    def _note(self, trial: _Trial) -> None:
        """Stop where nobody has been there for a while."""
        with self._lock:
            self._num_unreachable = self._num_unreachable + 1 if trial.unreachable else 0
            gone = self._num_unreachable >= GIVE_UP * self._endpoint.max_attempts
        if gone:
            where = self._client.base_url.host
            raise ModelError(
                f"The judge at {where} has not answered {self._num_unreachable} calls on end: {trial.verdict.problem}. "
                "What has been judged is kept; run the same command when it is back."
            )

    def _clean(self, text: str) -> str:
        """A text from outside, short, and without the key."""
        key = self._endpoint.api_key
        return (text.replace(key, "***") if key else text)[:200]


def read_mark(reply: str) -> str | None:
    """FIRST, SECOND or TIE if the reply has [[A]], [[B]] or [[C]] and no other of them; else None."""
    found = set(re.findall(r"\[\[([ABC])\]\]", reply))
    return _MARKS[found.pop()] if len(found) == 1 else None


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
