"""`vllm serve` on a packed directory, asked by the openai client as a user would."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm import house as houses
from tests.engines.vllm.rig import runner_environment

pytest.importorskip("vllm")
openai = pytest.importorskip("openai")

START_S = 300


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return houses.build(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def client(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server with two guides."""
    here = tmp_path_factory.mktemp("serve")
    with serving(houses.served(house, {"near": "near", "other": "other"}, here / "served"), here) as found:
        yield found


@contextmanager
def serving(out: Path, here: Path) -> Iterator[Any]:
    """A client of `vllm serve` on a packed directory; its log is in `here`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(out), "--served-model-name", "served"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    with (here / "log").open("w") as log:
        server = subprocess.Popen(command, env=runner_environment("v1", here / "rig"), stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, here / "log")
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.terminate()
        server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def ask(client: Any, ids: list[int], weights: Any, **options: Any) -> Any:
    extra = {"vllm_xargs": {"guidance": weights if isinstance(weights, str) else json.dumps(weights)}}
    how = {"max_tokens": 10, "temperature": 0, **options}
    return client.completions.create(
        model="served", prompt=ids, extra_body={**extra, "ignore_eos": True, "return_token_ids": True}, **how
    )


def test_streams_carry_each_requests_own_weights(client: Any, house: Path) -> None:
    requests = [
        {"ids": ids, "weights": {"near": near, "other": 0.5}, "params": {"max_tokens": 10}}
        for ids in houses.prompts(3)
        for near in (0.0, 1.0, -0.5)
    ]
    answers = houses.expected(house, {"near": "near", "other": "other"}, requests)
    streams = [ask(client, request["ids"], request["weights"], stream=True) for request in requests]
    for stream, answer in zip(streams, answers, strict=True):
        chunks = list(stream)
        assert [token for chunk in chunks for token in chunk.choices[0].token_ids or ()] == list(answer.token_ids)
        assert len(chunks) > 1


def test_a_wrong_weight_is_a_400_while_others_go_on(client: Any, house: Path) -> None:
    stream = ask(client, [5, 6, 7], {"near": 1.0}, stream=True, max_tokens=120)
    tokens = list(next(stream).choices[0].token_ids)
    for wrong in ("oops", {"near": "1"}, {"nearr": 1.0}, '{"near": Infinity}'):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, [5, 6], wrong)
        assert "give" in str(caught.value) or "Did you mean 'near'?" in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="Did you mean 'guidance'"):
        client.completions.create(model="served", prompt=[5], extra_body={"vllm_xargs": {"guidances": "{}"}})
    tokens += [token for chunk in stream for token in chunk.choices[0].token_ids or ()]
    request = {"ids": [5, 6, 7], "weights": {"near": 1.0}, "params": {"max_tokens": 120}}
    assert tokens == list(houses.expected(house, {"near": "near", "other": "other"}, [request])[0].token_ids)


def test_chat_goes_through_the_bases_template(client: Any, house: Path) -> None:
    messages = [{"role": "user", "content": "w5 w6"}]
    answer = client.chat.completions.create(
        model="served",
        messages=messages,
        max_tokens=8,
        temperature=0,
        logprobs=True,
        extra_body={"vllm_xargs": {"guidance": '{"near": 1.0}'}, "ignore_eos": True, "return_token_ids": True},
    )
    request = {"ids": messages, "weights": {"near": 1.0}}
    mine = houses.expected(house, {"near": "near", "other": "other"}, [request])[0]
    assert tuple(answer.choices[0].token_ids) == mine.token_ids
