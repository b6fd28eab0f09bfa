"""`--engine vllm` as its user meets it: what the commands print, and the server, on Model Runner V1."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm.rig import runner_environment
from tests.tiny import byte_tokenizer, tiny_module, write_lora

pytest.importorskip("vllm")

LENGTH = 256
VLLM = ("--engine", "vllm", "--engine-option", "enforce_eager=true")
SAMPLING = ("--temperature", "0", "--max-new-tokens", "6", "--ignore-eos")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of bytes and an adapter of it."""
    directory = tmp_path_factory.mktemp("house")
    tokenizer = byte_tokenizer()
    shape = {"vocab_size": len(tokenizer), "head_dim": 32, "max_position_embeddings": LENGTH}
    module = tiny_module("llama", seed=1, **{**shape, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0})
    module.save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    write_lora(directory / "near", module, rank=2, seed=2)
    return directory


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return runner_environment("v1", tmp_path_factory.mktemp("rig"))


def command(environment: Mapping[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab.cli.main", *argv], env=environment, capture_output=True, text=True
    )


def test_generate_prints_answers_alone_and_the_same_ones(house: Path, environment: Mapping[str, str]) -> None:
    prompts = house / "prompts.jsonl"
    rows = [{"prompt": "Hello"}, {"prompt": "Bye", "weights": {"near": 2.0}}, {"prompt": "x" * LENGTH}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ("generate", "--model", str(house / "base"), "--guide", f"near={house / 'near'}", "--prompts", str(prompts))
    more = (*SAMPLING, "--skip-bad-lines", "--trace", "--num-alternatives", "2")
    ours = command(environment, *argv, *more, *VLLM)
    assert ours.returncode == 0, ours.stderr[-4000:]
    theirs = command(environment, *argv, *more)
    mine, other = ([json.loads(line) for line in done.stdout.splitlines()] for done in (ours, theirs))
    assert len(mine) == 3
    for name in ("prompt", "token_ids", "text", "finish_reason", "weights"):
        assert [row[name] for row in mine] == [row[name] for row in other]
    assert mine[0]["weights"] == {"near": 1.0}
    assert f"this engine holds {LENGTH}" in mine[2]["error"]
    for here, there in zip(mine, other, strict=True):
        kls = [step["kl"] for step in here["trace"]]
        assert kls == pytest.approx([step["kl"] for step in there["trace"]], abs=1e-3)


@pytest.fixture(scope="module")
def server(house: Path, environment: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    pytest.importorskip("fastapi")
    packed = house / "served"
    argv = ("--model", str(house / "base"), "--guide", f"near={house / 'near'}:0.5", "--out", str(packed))
    done = command(environment, "vllm", "pack", *argv)
    assert done.returncode == 0, done.stderr
    argv = ("serve", "--model", str(packed), "--name", "small", "--port", "0", "--max-rows", "4", *VLLM)
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab.cli.main", *argv, "--prefill-chunk", "32"],
        env=dict(environment),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("serving "):
            break
    else:
        pytest.fail("".join(lines[-40:]))
    yield process, int(lines[-1].split("127.0.0.1:")[1].split("/")[0])
    process.kill()
    process.wait(10)


def call(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, {"content-type": "application/json"})
    reply = connection.getresponse()
    content = reply.read().decode()
    return reply.status, json.loads(content) if content.startswith("{") else content


ASK = {"model": "small", "prompt": "Hello", "max_tokens": 8, "temperature": 0}


def test_the_server_answers_lists_and_explains(server: tuple[Any, int]) -> None:
    _, port = server
    assert call(port, "/v1/guides")[1]["data"][0]["id"] == "near"
    assert call(port, "/v1/guides")[1]["data"][0]["weight"] == 0.5
    assert call(port, "/v1/guides")[1]["data"][0]["selects"] is False
    status, plain = call(port, "/v1/completions", ASK)
    assert status == 200, plain
    _, off = call(port, "/v1/completions", {**ASK, "guidance": {"weights": {"near": 0}}})
    _, on = call(port, "/v1/completions", {**ASK, "guidance": {"weights": {"near": 2.0}}})
    assert len({reply["choices"][0]["text"] for reply in (plain, off, on)}) == 3
    guidance = {"weights": {"near": 1.0}, "explain": True, "alternatives": 3}
    status, told = call(port, "/v1/completions", {**ASK, "guidance": guidance, "logprobs": 2})
    assert status == 200, told
    assert json.dumps(told).count('"kl"') >= 8


def test_the_server_refuses_what_vllm_cannot_honour_and_goes_on(server: tuple[Any, int]) -> None:
    _, port = server
    for change, sentence in (
        ({"repetition_penalty": 1.5}, "another formula"),
        ({"top_p": 0.5, "min_p": 0.1, "temperature": 1}, "top_p and min_p together"),
        ({"guidance": {"weights": {"neer": 1}}}, "Unknown guide 'neer'"),
        ({"guidance": {"weights": {"near": -1}}}, "Guide near is a product"),
        ({"prompt": "x" * LENGTH}, "this engine holds"),
    ):
        status, reply = call(port, "/v1/completions", {**ASK, **change})
        assert (status, sentence in json.dumps(reply)) == (400, True), reply
    assert call(port, "/v1/completions", ASK)[0] == 200
    assert call(port, "/health") == (200, {"status": "ok"})
    assert "trimtab" in call(port, "/metrics")[1]


def test_the_server_streams_and_ends_when_told(server: tuple[Any, int]) -> None:
    process, port = server
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body = {**ASK, "stream": True, "max_tokens": 100, "stop": ["\u0000never"]}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    process.send_signal(signal.SIGTERM)
    assert reply.read().strip().endswith(b"data: [DONE]")
    assert process.wait(60) == 0
