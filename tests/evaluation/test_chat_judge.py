"""A judge behind an endpoint that is slow, down, full, forbidding or talks nonsense."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.fake_judge import FakeJudge, Reply, fake_judge, in_turn, prefers, texts_of
from trimtab.errors import ModelError, OptionError
from trimtab.evaluation.judging.calls import TimedCalls
from trimtab.evaluation.judging.chat_judge import ChatJudge, Endpoint, read_mark
from trimtab.evaluation.judging.judges import FIRST, SECOND, TIE, Question, Verdict

pytest.importorskip("openai")

QUESTION = Question("Which is larger?", "first text", "second text")
GOOD = Reply("[[B]]")


def _judge(fake: FakeJudge, **changes: Any) -> ChatJudge:
    options: dict[str, Any] = {"timeout_s": 5.0, "backoff_s": 0.01, "max_attempts": 4, **changes}
    return ChatJudge(Endpoint(model="m", base_url=fake.base_url, **options))


def _collect(found: dict[int, Verdict], verdicts: Iterator[tuple[int, Verdict]]) -> None:
    """Those that came are in `found`, whatever ends it."""
    for index, verdict in verdicts:
        found[index] = verdict


def _ask(fake: FakeJudge, **changes: Any) -> Verdict:
    ((index, verdict),) = _judge(fake, **changes).judge([QUESTION])
    assert index == 0
    return verdict


@pytest.mark.parametrize(
    ("reply", "winner"),
    [
        ("[[A]]", FIRST),
        ("I think [[B]].", SECOND),
        ("[[C]]", TIE),
        ("[[A]] and again [[A]]", FIRST),
        ("[[A]] or [[B]]", None),
        ("A", None),
        ("", None),
        ("[[D]]", None),
    ],
)
def test_a_reply_has_exactly_one_mark(reply: str, winner: str | None) -> None:
    assert read_mark(reply) == winner


def test_a_verdict_with_what_it_cost() -> None:
    with fake_judge(in_turn([], GOOD)) as fake:
        assert _ask(fake, api_key="secret") == Verdict(SECOND, "", 1, 0, 10, 3)
    (request,) = fake.requests
    assert texts_of(request) == ("first text", "second text")
    assert "Which is larger?" in request["messages"][-1]["content"]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.0, 256)
    assert fake.keys == ["Bearer secret"]


def test_what_is_not_wanted_is_not_sent() -> None:
    with fake_judge(in_turn([], GOOD)) as fake:
        _ask(fake, temperature=None, max_tokens=None)
    assert {"temperature", "max_tokens"} & set(fake.requests[0]) == set()


@pytest.mark.parametrize(
    "bad",
    [
        Reply("I cannot decide."),
        Reply(status=500, body="{}"),
        Reply(status=503, body="down for repairs"),
        Reply(status=429, body="{}"),
        Reply(body="<html>this is not a completion</html>", headers={"content-type": "text/html"}),
        Reply(body="{}"),
        Reply(body="not json at all"),
        Reply(body='{"choices": [], "usage": null}'),
    ],
    ids=["nonsense", "500", "503", "429", "html", "empty", "not json", "no choices"],
)
def test_it_asks_again_and_counts(bad: Reply) -> None:
    with fake_judge(in_turn([bad, bad], GOOD)) as fake:
        verdict = _ask(fake)
    assert (verdict.winner, verdict.problem) == (SECOND, "")
    assert (verdict.num_calls, verdict.num_retries) == (3, 2)
    assert len(fake.requests) == 3


def test_nonsense_to_the_end_is_no_verdict() -> None:
    with fake_judge(in_turn([], Reply("Both are lovely."))) as fake:
        verdict = _ask(fake)
    assert verdict == Verdict(None, "a reply without one mark: 'Both are lovely.'", 4, 3, 40, 12)


def test_a_slow_judge_is_not_waited_for() -> None:
    with fake_judge(in_turn([Reply("[[A]]", delay_s=4.0)], GOOD)) as fake:
        verdict = _ask(fake, timeout_s=1.0)
    assert (verdict.winner, verdict.num_calls, verdict.num_retries) == (SECOND, 2, 1)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    full = Reply(status=429, body="{}", headers={"retry-after": "0.6" if form == "seconds" else when})
    with fake_judge(in_turn([full], GOOD)) as fake:
        assert _ask(fake).winner == SECOND
    assert fake.times[1] - fake.times[0] >= 0.55


def test_when_one_is_told_to_wait_all_do() -> None:
    full = Reply(status=429, body="{}", headers={"retry-after": "0.5"})
    with fake_judge(in_turn([full], GOOD)) as fake:
        found = dict(_judge(fake, concurrency=1).judge([QUESTION] * 3))
    assert [found[index].winner for index in range(3)] == [SECOND] * 3
    assert all(when - fake.times[0] >= 0.45 for when in fake.times[1:])


def test_a_question_that_is_refused_is_not_asked_again() -> None:
    with fake_judge(in_turn([], Reply(status=400, body='{"error": {"message": "too long"}}'))) as fake:
        verdict = _ask(fake)
    assert (verdict.winner, verdict.num_calls) == (None, 1)
    assert "HTTP 400" in verdict.problem
    assert "too long" in verdict.problem


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_key_stops_the_run_and_is_never_told(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    refusal = Reply(status=status, body='{"error": {"message": "Incorrect API key provided: sk-secret."}}')
    with fake_judge(in_turn([], refusal)) as fake, pytest.raises(ModelError, match=f"HTTP {status}") as caught:
        _ask(fake, api_key="sk-secret")
    assert len(fake.requests) == 1
    assert "sk-secret" not in str(caught.value) + caplog.text
    assert "***" in str(caught.value)


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(status=403, body='{"error": {"message": "flagged by moderation"}}'),
        Reply(status=400, body='{"error": {"message": "content_filter"}}'),
        Reply(status=451, body="not here"),
        Reply("I would rather not."),
        Reply(""),
        Reply(body='{"choices": [{"finish_reason": "content_filter", "message": {"content": null}}]}'),
        Reply(body='{"choices": [{"finish_reason": "stop", "message": {"content": null, "refusal": "no"}}]}'),
        Reply("[[A]] \ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace") + " [[B]]"),
        Reply(body="[" * 100_000),
    ],
    ids=["403", "400", "451", "no mark", "empty", "filtered", "refusal", "two marks", "deep"],
)
def test_what_is_refused_is_that_questions_missing_verdict(refusal: Reply) -> None:
    """The first question asked among them: nothing was answered before it."""
    questions = [Question("forbidden", "a", "b"), *[Question(f"allowed {index}", "a", "b") for index in range(5)]]

    def reply(request: dict[str, Any], number: int) -> Reply:
        return refusal if "forbidden" in request["messages"][-1]["content"] else GOOD

    with fake_judge(reply) as fake:
        found = dict(_judge(fake, max_attempts=2, concurrency=1).judge(questions))
    assert [found[index].winner for index in range(6)] == [None, *[SECOND] * 5]
    assert found[0].problem
    assert len(fake.requests) == 6 + found[0].num_retries


@pytest.mark.parametrize("status", [401, 404])
def test_a_key_that_is_refused_once_in_a_while_stops_nothing(status: int) -> None:
    """A gateway's hiccup; several on end are the key's or the model's."""
    refusal = Reply(status=status, body="{}")

    def hiccup(request: dict[str, Any], number: int) -> Reply:
        return refusal if number in (3, 6) else GOOD

    with fake_judge(hiccup) as fake:
        found = dict(_judge(fake, concurrency=1).judge([QUESTION] * 9))
    assert [found[index].winner for index in range(9)].count(None) == 2
    with fake_judge(lambda request, number: GOOD if number < 2 else refusal) as fake:
        found: dict[int, Verdict] = {}
        with pytest.raises(ModelError, match=f"refuses: HTTP {status}"):
            _collect(found, _judge(fake, concurrency=1).judge([QUESTION] * 20))
    assert sum(verdict.winner == SECOND for verdict in found.values()) == 2
    assert len(fake.requests) == 2 + 5


def test_verdicts_of_calls_under_way_come_before_the_error() -> None:
    """They were paid for."""
    answered = []

    def reply(request: dict[str, Any], number: int) -> Reply:
        if "wrong" in request["messages"][-1]["content"]:
            return Reply(status=401, body="{}")
        answered.append(number)
        return Reply("[[B]]", delay_s=0.4)

    questions = [*[Question(f"right {index}", "a", "b") for index in range(3)], Question("wrong", "a", "b")]
    with fake_judge(reply) as fake:
        found: dict[int, Verdict] = {}
        with pytest.raises(ModelError, match="HTTP 401"):
            _collect(found, _judge(fake, concurrency=4).judge([*questions, *questions[:1] * 30]))
    assert len(answered) == sum(verdict.winner == SECOND for verdict in found.values()) >= 3
    assert len(fake.requests) <= 4 + 3


def test_ctrl_c_waits_for_the_calls_under_way() -> None:
    questions = [Question(f"q {index}", "a", "b") for index in range(40)]
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGINT])
    with fake_judge(in_turn([], Reply("[[B]]", delay_s=0.3))) as fake:
        found: dict[int, Verdict] = {}
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            _collect(found, _judge(fake, concurrency=4).judge(questions))
    assert len(found) == len(fake.requests) < 40
    assert {verdict.winner for verdict in found.values()} == {SECOND}


def test_no_call_begins_once_calls_are_cancelled() -> None:
    """A thread may be on its way to its next call when the others are ended."""
    client = pytest.importorskip("openai").AsyncOpenAI
    with fake_judge(in_turn([], GOOD)) as fake:
        request = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
        with TimedCalls(lambda: client(base_url=fake.base_url, api_key="none"), timeout_s=60.0) as calls:
            calls.complete(request)
            calls.cancel()
            with pytest.raises(CancelledError):
                calls.complete(request)
    assert len(fake.requests) == 1


def test_a_reader_that_has_had_enough_waits_for_nobody() -> None:
    closed, answered = threading.Event(), []

    def reply(request: dict[str, Any], number: int) -> Reply:
        if number > 0:
            closed.wait(10.0)
        answered.append(number)
        return GOOD

    with fake_judge(reply) as fake:
        verdicts = _judge(fake, concurrency=2, timeout_s=60.0).judge([QUESTION] * 9)
        assert next(verdicts)[1].winner == SECOND
        verdicts.close()  # type: ignore[attr-defined]
        assert answered == [0]
        assert [thread for thread in threading.enumerate() if thread.name.startswith("judge")] == []
        closed.set()


PLAIN = {"model": "m", "base_url": "http://host:1/v1"}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"base_url": "http://host:2/v1"},
        {"base_url": "http://host:1/v2"},
        {"base_url": "https://host:1/v1"},
        {"base_url": "http://other:1/v1"},
        {"base_url": "http://host:1/v1?deployment=x"},
        {"temperature": 1.0},
        {"temperature": None},
        {"max_tokens": 8},
        {"max_tokens": None},
    ],
    ids=str,
)
def test_what_makes_another_judge(change: dict[str, Any]) -> None:
    plain, other = ChatJudge(Endpoint(**PLAIN)), ChatJudge(Endpoint(**{**PLAIN, **change}))
    assert plain.settings != other.settings
    assert json.loads(json.dumps(other.settings)) == other.settings


@pytest.mark.parametrize(
    "change",
    [{"timeout_s": 1.0}, {"max_attempts": 1}, {"concurrency": 9}, {"api_key": "k"}, {"backoff_s": 9.0}],
    ids=str,
)
def test_what_makes_no_other_judge(change: dict[str, Any]) -> None:
    plain, other = ChatJudge(Endpoint(**PLAIN)), ChatJudge(Endpoint(**{**PLAIN, **change}))
    assert (plain.settings, plain.name) == (other.settings, other.name)


def test_another_wording_is_another_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.evaluation.judging import chat_judge

    before = ChatJudge(Endpoint(**PLAIN)).settings
    monkeypatch.setattr(chat_judge, "INSTRUCTION", "Which is better?")
    assert ChatJudge(Endpoint(**PLAIN)).settings != before


def test_an_address_from_the_environment_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ChatJudge(Endpoint(model="m")).name == "openai:m"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://host:9/v1")
    judge = ChatJudge(Endpoint(model="m"))
    assert (judge.name, judge.settings["address"]) == ("openai:m@host:9/v1", "http://host:9/v1")


def test_what_is_secret_in_an_address_is_not_kept() -> None:
    judge = ChatJudge(Endpoint(model="m", base_url="http://me:pass@host:1/v1?key=secret"))
    said = json.dumps(judge.settings) + judge.name
    assert "pass" not in said
    assert "secret" not in said


def test_a_judge_that_is_down_stops_the_run() -> None:
    with fake_judge(in_turn([], GOOD)) as fake:
        pass
    judge = _judge(fake, backoff_s=0.001)
    with pytest.raises(ModelError, match=r"has not answered 5 questions on end: cannot be reached"):
        list(judge.judge([QUESTION] * 40))


def test_every_question_gets_its_own_verdict() -> None:
    questions = [Question("p", "x" * first, "x" * second) for first in range(1, 7) for second in range(1, 7)]
    with fake_judge(prefers(len)) as fake:
        found = dict(_judge(fake, concurrency=8).judge(questions))
    assert [found[index].winner for index in range(36)] == [
        FIRST if len(q.first) > len(q.second) else SECOND if len(q.second) > len(q.first) else TIE for q in questions
    ]


def test_calls_at_a_time_are_limited() -> None:
    running, most = [0], [0]

    def count(request: dict[str, Any], number: int) -> Reply:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.03)
        running[0] -= 1
        return GOOD

    with fake_judge(count) as fake:
        list(_judge(fake, concurrency=3).judge([QUESTION] * 12))
    assert 2 <= most[0] <= 3


def test_an_address_is_checked() -> None:
    with pytest.raises(OptionError, match="not the address"):
        Endpoint(model="m", base_url="localhost:8000")


def test_the_name_says_where_and_not_who() -> None:
    assert ChatJudge(Endpoint(model="m", base_url="http://me:pass@host:1/v1")).name == "openai:m@host:1/v1"
