"""A judge behind an endpoint that is slow, down, full, forbidding or talks nonsense."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.fake_judge import FakeJudge, Reply, fake_judge, in_turn, prefers, texts_of
from trimtab.errors import ModelError, OptionError
from trimtab.evaluation.chat_judge import ChatJudge, Endpoint, read_mark
from trimtab.evaluation.judges import FIRST, SECOND, TIE, Question, Verdict

pytest.importorskip("openai")

QUESTION = Question("Which is larger?", "first text", "second text")
GOOD = Reply("[[B]]")


def _judge(fake: FakeJudge, **changes: Any) -> ChatJudge:
    options: dict[str, Any] = {"timeout_s": 5.0, "backoff_s": 0.01, "max_attempts": 4, **changes}
    return ChatJudge(Endpoint(model="m", base_url=fake.base_url, **options))


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
        Reply(body="<html>this is no completion</html>", headers={"content-type": "text/html"}),
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
    with pytest.raises(OptionError, match="no address"):
        Endpoint(model="m", base_url="localhost:8000")


def test_the_name_says_where_and_not_who() -> None:
    assert ChatJudge(Endpoint(model="m", base_url="http://me:pass@host:1/v1")).name == "openai:m@host:1/v1"
