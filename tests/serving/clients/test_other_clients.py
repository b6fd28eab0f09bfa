"""Clients that build on OpenAI's: what they send by themselves is understood, and their extras reach the sampler.

None of them is among the development extras, since they pin openai's client; where one is installed it is tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Running
from tests.serving.test_http import call

HELLO = [{"role": "user", "content": "Say something."}]
WEIGHTS = {"guidance": {"weights": {"up": 1.5}}}


def expected(server: Running, **how: Any) -> str:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "seed": 3, **how}
    return str(call(server, "/v1/chat/completions", body)[2]["choices"][0]["message"]["content"])


def test_litellm(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm", reason="pip install litellm")
    how: dict[str, Any] = {
        "model": "openai/tiny",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": HELLO,
        "max_tokens": 12,
        "seed": 3,
        "presence_penalty": 1.5,
        "logit_bias": {"70": 3},
        "user": "somebody",
        "extra_body": WEIGHTS,
    }
    text = expected(server, presence_penalty=1.5, logit_bias={"70": 3}, **WEIGHTS)
    assert litellm.completion(**how).choices[0].message.content == text
    chunks = litellm.completion(**how, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    with pytest.raises(litellm.BadRequestError, match="reasoning_effort is not supported"):
        litellm.completion(**{**how, "extra_body": {"reasoning_effort": "low"}})


def test_langchain(server: Running) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    how: dict[str, Any] = {"model": "tiny", "base_url": f"{server.url}/v1", "api_key": "none", "seed": 3}
    chat = langchain_openai.ChatOpenAI(**how, max_tokens=12, frequency_penalty=-0.5, extra_body=WEIGHTS)
    text = expected(server, frequency_penalty=-0.5, **WEIGHTS)
    assert chat.invoke("Say something.").content == text
    assert "".join(chunk.content for chunk in chat.stream("Say something.")) == text
    turns = chat.invoke([("user", "Say something."), ("assistant", text), ("user", "More.")])
    said = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "More."}]
    assert turns.content == expected(server, messages=said, frequency_penalty=-0.5, **WEIGHTS)
    newer = langchain_openai.ChatOpenAI(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="none",
        max_tokens=12,
        use_responses_api=True,
        extra_body={**WEIGHTS, "seed": 3},
    )
    assert newer.invoke("Say something.").text == expected(server, **WEIGHTS)


def test_instructor(server: Running) -> None:
    instructor = pytest.importorskip("instructor", reason="pip install instructor")
    pytest.importorskip("llguidance")
    import openai
    from pydantic import BaseModel

    class Colour(BaseModel):
        red: bool
        blue: bool

    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    found = client.chat.completions.create(
        model="tiny", messages=HELLO, response_model=Colour, max_retries=0, seed=3, max_tokens=200, extra_body=WEIGHTS
    )
    assert isinstance(found, Colour)


SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.env.URL + "/v1", apiKey: "none", maxRetries: 0 });
const how = { model: "tiny", messages: [{ role: "user", content: "Say something." }], max_tokens: 12, seed: 3,
  guidance: { weights: { up: 1.5 } } };
const whole = await client.chat.completions.create(how);
let pieces = "";
for await (const chunk of await client.chat.completions.create({ ...how, stream: true }))
  pieces += chunk.choices[0]?.delta?.content ?? "";
const response = await client.responses.create({ model: "tiny", input: "Say something.", max_output_tokens: 12, seed: 3,
  guidance: { weights: { up: 1.5 } } });
console.log(JSON.stringify([whole.choices[0].message.content, pieces, response.output_text]));
"""


def test_openais_client_for_node(server: Running, tmp_path: Path) -> None:
    """`TRIMTAB_NODE_MODULES` names a directory in which `npm install openai` was run."""
    import json

    modules = os.environ.get("TRIMTAB_NODE_MODULES")
    if shutil.which("node") is None or not modules:
        pytest.skip("needs node, and TRIMTAB_NODE_MODULES=DIR with `npm install openai` in it")
    (tmp_path / "node_modules").symlink_to(Path(modules) / "node_modules")
    (tmp_path / "ask.mjs").write_text(SCRIPT)
    environment = {**os.environ, "URL": server.url}
    done = subprocess.run(
        ["node", "ask.mjs"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected(server, **WEIGHTS)] * 3
