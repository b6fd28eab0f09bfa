"""A request that breaks a step gets an error; the streams beside it, and the server, go on as if it were not there."""

from __future__ import annotations

import json
import queue
import threading
from typing import Any

import pytest

from tests.faults import FIRST, STAGES, always, faulty_request, planted, sound_requests
from tests.serving.conftest import Start
from tests.serving.test_http import call
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import UnexpectedError
from trimtab.guides.arm import ARM
from trimtab.models.tabular import TabularModel
from trimtab.serving.asking import Catalogue
from trimtab.serving.batch_thread import BatchThread, Event, Job
from trimtab.serving.limits import Limits
from trimtab.serving.metrics import Metrics


def deliver(events: Any) -> None:
    for event in events:
        event.job.deliver(event)


def last_of(mail: queue.Queue[Event], tokens: list[int]) -> Event:
    """The last event of a job, its tokens before."""
    while True:
        event = mail.get(timeout=20)
        if event.step is not None and event.step.token_id is not None:
            tokens.append(event.step.token_id)
        if event.is_last:
            return event


@pytest.mark.parametrize("stage", STAGES)
def test_the_generation_thread_outlives_an_error_in_any_stage(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        expected = [list(answer.token_ids) for answer in planted("", always, patch).answers(sound_requests())]
    batch = BatchThread(planted(stage, always, monkeypatch, max_rows=8), Limits(max_rows=8), Metrics(), post=deliver)
    batch.start()
    mails: list[queue.Queue[Event]] = [queue.Queue() for _ in range(7)]

    def job(request: tuple[Prompt, SamplingParams], mail: queue.Queue[Event]) -> Job:
        return Job(request[0], request[1], (), 3, mail.put)

    batch.submit([job(request, mail) for request, mail in zip(sound_requests()[:3], mails[:3], strict=True)])
    batch.submit([job(faulty_request(stage), mails[5])])
    batch.submit([job(request, mail) for request, mail in zip(sound_requests()[3:], mails[3:5], strict=True)])
    found: list[list[int]] = [[] for _ in mails]
    ends = [last_of(mail, tokens) for mail, tokens in zip(mails[:6], found[:6], strict=True)]
    assert found[:5] == expected
    if not stage.endswith(" keep"):
        assert isinstance(ends[5].error, UnexpectedError)
    assert batch.ping(5)
    assert batch.is_open
    batch.submit([job(sound_requests()[0], mails[6])])
    last_of(mails[6], found[6])
    assert found[6] == expected[0]
    batch.stop()


def test_a_guide_whose_own_prompt_cannot_be_made_refuses_one_request(start: Start) -> None:
    def own_prompt(prompt: Prompt) -> Prompt:
        if "bad" in str(prompt):
            raise KeyError("no such thing")
        return "a"

    model = TabularModel.random(61, seed=0)
    decoder = Decoder(model, {"odd": ARM(TabularModel.random(61, seed=1), prompt=own_prompt)})
    with start(engine=decoder, catalogue=Catalogue(model, "tiny", {"odd": 1.0}, {})) as server:
        body = {"model": "tiny", "max_tokens": 3, "seed": 1}
        assert call(server, "/v1/completions", {**body, "prompt": "abc"})[0] == 200
        status, _, reply = call(server, "/v1/completions", {**body, "prompt": "bad"})
        assert status == 500
        assert "no such thing" not in reply["error"]["message"]
        assert call(server, "/v1/completions", {**body, "prompt": "abc"})[0] == 200
        assert call(server, "/health")[0] == call(server, "/ready")[0] == 200


@pytest.mark.parametrize("stage", ["model admit", "guide logprobs", "filters"])
def test_streams_beside_a_broken_one_are_whole(start: Start, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = planted(stage, always, monkeypatch, max_rows=8)
    guides = {"arm": 0.0, "agent": 0.0}
    text = decoder.model.tokenizer.token_text  # type: ignore[union-attr]

    def body(first: int, **changes: Any) -> dict[str, Any]:
        chosen = {"guidance": {"weights": {"arm": 1.0}}, "temperature": 1.0, "seed": 3, **changes}
        return {"model": "tiny", "prompt": text(first) + "b", "max_tokens": 40, "stream": True, **chosen}

    def streamed(server: Any, first: int, **changes: Any) -> list[dict[str, Any]]:
        status, _, reply = call(server, "/v1/completions", body(first, **changes))
        lines = [line.removeprefix("data: ") for line in reply.decode().splitlines() if line]
        assert status == 200
        return [json.loads(line) if line != "[DONE]" else {"done": True} for line in lines]

    with start(Limits(max_rows=8), engine=decoder, catalogue=Catalogue(decoder.model, "tiny", guides, {})) as server:
        expected = ["".join(piece["choices"][0]["text"] for piece in streamed(server, 3)[:-1])]
        found: list[list[dict[str, Any]]] = []
        threads = [threading.Thread(target=lambda: found.append(streamed(server, 3))) for _ in range(4)]
        for thread in threads:
            thread.start()
        broken = streamed(server, FIRST, temperature=0.77)
        for thread in threads:
            thread.join(20)
        assert broken[-1]["error"]["type"] == "server_error"
        assert all(events[-1] == {"done": True} for events in found)
        texts = ["".join(piece["choices"][0]["text"] for piece in events[:-1]) for events in found]
        assert texts == expected * 4
        assert call(server, "/health")[0] == call(server, "/ready")[0] == 200
