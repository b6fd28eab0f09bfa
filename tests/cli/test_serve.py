"""`trimtab serve` as its user meets it: flags, configuration, signals, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, Tiny
from tests.server_process import serving
from trimtab.serving.config import read_config

pytest.importorskip("fastapi")

CONFIG = """\
model: {model}
name: small
guides:
  kind: {{path: {lora}, weight: 0.5}}
  other: {separate}
presets:
  kinder: {{kind: 2.0}}
limits: {{max_n: 3, drain_s: 20}}
"""


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "serve.yaml"
    path.write_text(CONFIG.format(model=tiny.model, lora=tiny.lora, separate=tiny.separate))
    return path


def call(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, data, {"content-type": "application/json", **headers})
    reply = connection.getresponse()
    content = reply.read()
    return reply.status, json.loads(content)


def stream_of(port: int, **changes: Any) -> http.client.HTTPResponse:
    """A stream that has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": "small", "prompt": "a", "stream": True, "max_tokens": 60, "seed": 1, **changes}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    reply.readline()
    return reply


def test_a_configuration_is_served(config: Path, tiny: Tiny) -> None:
    with serving("--config", str(config), TRIMTAB_API_KEY="secret") as (server, port):
        key = {"authorization": "Bearer secret"}
        assert call(port, "/v1/models")[0] == 401
        models = call(port, "/v1/models", **key)[1]["data"]
        assert {one["id"]: one["guidance"] for one in models} == {
            "small": {"kind": 0.5, "other": 0.0},
            "kinder": {"kind": 2.0},
        }
        body = {"model": "kinder", "prompt": "a", "max_tokens": 8, "seed": 1}
        preset = call(port, "/v1/completions", body, **key)[1]["choices"][0]["text"]
        asked = {**body, "model": "small", "guidance": {"weights": {"kind": 2.0}}}
        assert call(port, "/v1/completions", asked, **key)[1]["choices"][0]["text"] == preset
        assert call(port, "/v1/completions", {**body, "n": 4}, **key)[0] == 400
        guides = {one["id"]: (one["weight"], one["accepts"]) for one in call(port, "/v1/guides", **key)[1]["data"]}
        assert guides == {"kind": (0.5, False), "other": (0.0, False)}
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_sigterm_lets_streams_finish_and_takes_no_new_requests(config: Path) -> None:
    with serving("--config", str(config)) as (server, port):
        stream = stream_of(port)
        server.send_signal(signal.SIGTERM)
        rest = stream.read().decode()
        assert rest.rstrip().endswith("data: [DONE]")
        assert server.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            call(port, "/ready")


def test_it_ends_though_nobody_reads_what_it_says(config: Path) -> None:
    with serving("--config", str(config)) as (server, _):
        assert server.stderr is not None
        server.stderr.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_kill_9_is_a_broken_connection_and_never_a_whole_answer(config: Path) -> None:
    with serving("--config", str(config)) as (server, port):
        stream = stream_of(port, stop=None)
        server.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.read()


def test_a_dead_generation_thread_ends_the_process(config: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom trimtab.decoding import decoder as decoding\nsound = decoding.Decoder.step\n"
        "def step(self):\n    steps = sound(self)\n"
        "    if self.num_running and os.path.exists(os.environ['BREAK']): raise MemoryError('on purpose')\n"
        "    return steps\ndecoding.Decoder.step = step\n"
    )
    broken = tmp_path / "broken"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serving("--config", str(config), PYTHONPATH=path, BREAK=str(broken)) as (server, port):
        assert call(port, "/health")[0] == 200
        broken.touch()
        status, reply = call(port, "/v1/completions", {"model": "small", "prompt": "a", "seed": 1})
        assert (status, reply["error"]["code"]) == (503, "stopping")
        assert server.wait(30) == 1


def test_the_recipe_is_a_configuration(repository: Path) -> None:
    config = read_config(repository / "recipes" / "serve.yaml")
    assert config.model == "demo"
    assert config.guides["positive"].path == "builtin:sentiment"
    assert set(config.presets) == {"demo-cheerful", "demo-gloomy"}


def test_what_cannot_be_served_is_said_before_anything_is_loaded(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    assert "--model NAME" in run("serve").err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = run("serve", "--model", tiny.model, "--port", str(taken.getsockname()[1]))
    assert outcome.code == 1
    assert "cannot listen on 127.0.0.1" in outcome.err
    assert "loading" not in outcome.err
    config = tmp_path / "bad.yaml"
    config.write_text("modle: x\nguides: {a: {wieght: 1}}\npresets: {b: {c: 1}}\nlimits: {max_n: 0, max_rowz: 2}\n")
    err = run("serve", "--config", str(config)).err
    for problem in (
        "unknown key 'modle'; did you mean 'model'?",
        "guides.a has an unknown key 'wieght'; did you mean 'weight'?",
        "guides.a.path is missing",
        "presets.b has an unknown key 'c'",
        "unknown key 'max_rowz'; did you mean 'max_rows'?",
        "max_n is 0",
    ):
        assert problem in err, (problem, err)


def test_memory_is_planned_before_the_first_request_and_what_does_not_fit_is_refused(run: Run, tiny: Tiny) -> None:
    outcome = run("serve", "--model", tiny.model, "--port", "0", "--max-rows", "1000000000")
    assert outcome.code == 2
    assert "Lower --max-rows." in outcome.err
    outcome = run("serve", "--model", tiny.model, "--port", "0", "--max-cached-tokens", str(10**15))
    assert outcome.code == 2
    assert "--max-cached-tokens is 1,000,000,000,000,000" in outcome.err
    with serving("--model", str(tiny.model), "--name", "small", "--max-cached-tokens", "40") as (_, port):
        body = {"model": "small", "prompt": "a b", "max_tokens": 60}
        status, reply = call(port, "/v1/completions", body)
        assert (status, "and 40 fit" in reply["error"]["message"]) == (400, True)
        assert call(port, "/v1/completions", {**body, "max_tokens": 30})[0] == 200
