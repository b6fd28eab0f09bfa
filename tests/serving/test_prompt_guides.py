"""Sentences that a request brings as guides: over HTTP, where the operator allows it, within limits."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.conftest import GUIDES, Running, Start
from trimtab.decoding.decoder import Decoder
from trimtab.engines.maker import PROMPTS
from trimtab.engines.vllm.maker import VLLMMaker
from trimtab.errors import DataError, OptionError
from trimtab.guides.brought import SentencePlace
from trimtab.guides.prompt import PromptGuide
from trimtab.guides.sentences import Sentences
from trimtab.models.hf import HFModel
from trimtab.serving.asking import Catalogue
from trimtab.serving.config import read_config
from trimtab.serving.limits import Limits
from trimtab.serving.memory import Memory, plan
from trimtab.storage.sentences import read_sentence

PLACES = ("sentence:1", "sentence:2")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 3}
GLAD = {"towards": "Be very glad.", "away": "Be sad."}


@pytest.fixture(scope="module")
def allowing(start: Start, tiny_model: HFModel, guides: dict[str, Any]) -> Iterator[Running]:
    engine = Decoder(tiny_model, {**guides, **{place: SentencePlace(place) for place in PLACES}}, max_rows=8)
    catalogue = Catalogue(tiny_model, "tiny", dict.fromkeys(GUIDES, 0.0), {}, places=PLACES)
    with start(Limits(max_rows=8, max_sentence_tokens=40, max_guides=2), engine=engine, catalogue=catalogue) as server:
        yield server


def ask(server: Running, guidance: dict[str, Any], path: str = "chat/completions", **body: Any) -> tuple[int, str]:
    """The status and the text of a reply."""
    asked = {**(CHAT if path.startswith("chat") else {"model": "tiny", "max_tokens": 8, "seed": 3}), **body}
    return read(server, path, {**asked, "guidance": guidance})


def read(server: Running, path: str, body: Any = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", f"/v1/{path}", data, {"content-type": "application/json"})
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def choice_of(reply: tuple[int, str]) -> dict[str, Any]:
    status, text = reply
    assert status == 200, text
    [choice] = json.loads(text)["choices"]
    return dict(choice)


def expected(model: HFModel, guides: dict[str, Any], weights: dict[str, float], prompt: Any = None, **more: Any) -> str:
    decoder = Decoder(model, guides)
    prompt = CHAT["messages"] if prompt is None else prompt
    return next(decoder.generate([prompt], weights=weights, seed=3, max_new_tokens=8, **more)).text


def test_a_sentence_steers_as_the_guide_that_it_makes(allowing: Running, tiny_model: HFModel) -> None:
    choice = choice_of(ask(allowing, {"prompts": {"glad": GLAD, "short": "Be short."}, "weights": {"glad": 3.0}}))
    made = {"glad": PromptGuide("Be very glad.", "Be sad."), "short": PromptGuide("Be short.")}
    assert choice["message"]["content"] == expected(tiny_model, made, {"glad": 3.0, "short": 1.0})
    assert choice["guidance"]["weights"] == {"up": 0.0, "down": 0.0, "glad": 3.0, "short": 1.0}


def test_beside_the_servers_guides_in_a_completion(
    allowing: Running, tiny_model: HFModel, guides: dict[str, Any]
) -> None:
    guidance = {"prompts": {"glad": {"towards": "Be glad.", "place": "user"}}, "weights": {"glad": -2, "up": 0.5}}
    made = {"up": guides["up"], "glad": PromptGuide("Be glad.")}
    for prompt in ("Once", [70, 71, 72]):
        choice = choice_of(ask(allowing, guidance, "completions", prompt=prompt))
        assert choice["text"] == expected(tiny_model, made, {"up": 0.5, "glad": -2.0}, prompt)


def test_what_explains_a_token_has_the_requests_names(allowing: Running) -> None:
    body = {"stream": True, "logprobs": True, "top_logprobs": 2}
    _, text = ask(allowing, {"prompts": {"glad": "Be glad."}, "weights": {"glad": 2.0}, "explain": True}, **body)
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert chunks[0]["choices"][0]["guidance"]["weights"]["glad"] == 2.0
    tokens = [token for chunk in chunks for token in chunk["choices"][0].get("guidance", {}).get("tokens", [])]
    assert len(tokens) > 2
    for token in tokens:
        assert set(token["scores"]) == set(token["shares"]) == {"glad"}
        assert all(set(rival["shares"]) == {"glad"} for rival in token["alternatives"])
    assert "sentence:" not in text


def test_a_sentence_at_weight_0_is_no_guide(allowing: Running, tiny_model: HFModel) -> None:
    choice = choice_of(ask(allowing, {"prompts": {"glad": GLAD}, "weights": {"glad": 0}}))
    assert choice["message"]["content"] == expected(tiny_model, {}, {})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too many": ({"prompts": dict.fromkeys("abc", "Be glad.")}, "brings 3 guides; this server takes at most 2"),
    "too many with the server's": (
        {"prompts": {"a": "Be glad.", "b": "Be sad."}, "weights": {"up": 1.0}},
        "3 guides would run; at most 2",
    ),
    "too long": ({"prompts": {"a": "glad " * 9}}, "A sentence of a has 45 tokens; this server takes at most 40"),
    "far too long": ({"prompts": {"a": {"towards": "Be glad.", "away": "sad " * 999}}}, "has 3996 characters"),
    "empty": ({"prompts": {"a": " "}}, "empty"),
    "twice the same": ({"prompts": {"a": {"towards": "Be glad.", "away": "Be glad."}}}, "the same"),
    "a name of the server's": ({"prompts": {"up": "Be glad."}}, "has the name 'up'"),
    "a name of a place": ({"prompts": {"sentence:1": "Be glad."}}, "has the name 'sentence:1'"),
    "a name of another place": ({"prompts": {"sentence:2": "Be glad.", "b": "Be sad."}}, "has the name 'sentence:2'"),
    "a weight of a place": ({"weights": {"sentence:1": 1.0}}, "Unknown guide 'sentence:1'"),
    "a weight of a place that is taken": (
        {"prompts": {"a": "Be glad."}, "weights": {"sentence:1": 1.0}},
        "Unknown guide 'sentence:1'",
    ),
    "a weight out of range": ({"prompts": {"a": "Be glad."}, "weights": {"a": 1e9}}, "weight of guide a"),
    "an unknown key": ({"prompts": {"a": {"towards": "Be glad.", "from": "x"}}}, "from"),
    "an unknown place": ({"prompts": {"a": {"towards": "Be glad.", "place": "top"}}}, "place"),
    "no text": ({"prompts": {"a": 7}}, "prompts"),
    "nothing towards": ({"prompts": {"a": {"away": "Be sad."}}}, "towards"),
    "a mask of a place": ({"prompts": {"a": "Be glad."}, "guide_plausibility": {"sentence:1": 0.1}}, "Unknown guide"),
    "a gate of a place": ({"prompts": {"a": "Be glad."}, "gates": {"sentence:1": "entropy:1"}}, "Unknown guide 'sent"),
    "a gate that does not go": ({"prompts": {"a": "Be glad."}, "gates": {"a": "significance:1"}}, "gives guide a sig"),
    "drafts": ({"prompts": {"a": "Be glad."}, "draft": "lookup"}, "Guide a takes no token back"),
}
PLACED = {
    "too many": "guidance.prompts",
    "too many with the server's": "guidance.weights",
    "a name of the server's": "guidance.prompts.up",
    "a name of a place": "guidance.prompts.sentence:1",
    "a name of another place": "guidance.prompts.sentence:2",
    "a weight of a place": "guidance.weights.sentence:1",
    "a weight of a place that is taken": "guidance.weights.sentence:1",
    "a weight out of range": "guidance.weights.a",
    "an unknown key": "guidance.prompts.a.from",
    "an unknown place": "guidance.prompts.a.place",
    "nothing towards": "guidance.prompts.a.towards",
    "drafts": "guidance.draft",
    "a mask of a place": "guidance.guide_plausibility.sentence:1",
    "a gate of a place": "guidance.gates.sentence:1",
    "a gate that does not go": "guidance.gates.a",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_with_the_reason(name: str, allowing: Running) -> None:
    guidance, message = REFUSED[name]
    status, text = ask(allowing, guidance)
    assert status == 400, text
    error = json.loads(text)["error"]
    assert message in error["message"]
    assert error["param"] == PLACED.get(name, "guidance.prompts.a")


@pytest.mark.parametrize(
    "more",
    [
        {"guide_plausibility": {"NAME": 0.3}, "weights": {"NAME": 2.0}},
        {"gates": {"NAME": "entropy:1e9"}, "weights": {"NAME": 2.0}},
        {"gates": {"NAME": "random:0.5"}, "weights": {"NAME": 5.0}},
    ],
)
def test_masks_and_gates_know_sentences_by_the_names_of_the_request(
    more: dict[str, Any], allowing: Running, tiny_model: HFModel
) -> None:
    mine = json.loads(json.dumps(more).replace("NAME", "glad"))
    choice = choice_of(ask(allowing, {"prompts": {"glad": GLAD}, **mine}))
    plain = choice_of(ask(allowing, {"prompts": {"glad": GLAD}, "weights": mine["weights"]}))
    assert choice["message"]["content"] != plain["message"]["content"]
    weights, rest = mine["weights"], {key: value for key, value in mine.items() if key != "weights"}
    if "random:0.5" not in str(more):  # its chances go by the guide's name in the batch
        made = {"glad": PromptGuide("Be very glad.", "Be sad.")}
        assert choice["message"]["content"] == expected(tiny_model, made, weights, **rest)


def test_a_server_that_was_not_told_to_takes_none(server: Running) -> None:
    status, text = ask(server, {"prompts": {"glad": "Be glad."}})
    assert status == 400
    assert "takes none from requests" in text
    assert "--allow-prompt-guides" in text


def test_inside_vllm_there_is_no_place_for_them() -> None:
    with pytest.raises(OptionError, match="--allow-prompt-guides cannot be used with --engine vllm: every guide reads"):
        VLLMMaker.check_features([PROMPTS], what="--allow-prompt-guides")


def test_the_list_of_guides_says_what_may_be_brought(allowing: Running, server: Running) -> None:
    listed = json.loads(read(allowing, "guides")[1])
    assert [guide["id"] for guide in listed["data"]] == list(GUIDES)
    assert listed["prompts"] == {"max_guides": 2, "max_tokens": 40, "max_weight": 100.0}
    assert json.loads(read(server, "guides")[1])["prompts"] is None


def test_sentences_are_counted_in_the_memory_that_is_planned(tiny_model: HFModel) -> None:
    limits = Limits(max_rows=4, max_prompt_tokens=300, max_new_tokens=100, max_sentence_tokens=50)
    memory = Memory(64 << 30, 1 << 28, "a test")
    planned = [
        plan(Decoder(tiny_model, {place: SentencePlace(place) for place in places}), limits, [], memory)
        for places in ((), PLACES)
    ]
    tokens = [one.max_cached_tokens for one in planned if one is not None]
    assert tokens == [4 * 400, 4 * (400 + 2 * 2 * 450)]


CONFIG = """\
model: demo
allow_prompt_guides: true
guides:
  plain: {{path: "prompt:@plain.txt", weight: 2}}
  poet: 'prompt:"Be a poet."/"Be a clerk.":1.5'
  glad: {{towards: "Be glad: always.", away: Be sad., place: user, weight: -1}}
{more}"""


def test_a_configuration_names_sentences(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("No jargon.\n")
    (tmp_path / "serve.yaml").write_text(CONFIG.format(more=""))
    config = read_config(tmp_path / "serve.yaml")
    assert config.allow_prompt_guides
    found = {name: (read_sentence(entry.path), entry.weight) for name, entry in config.guides.items()}
    assert found == {
        "plain": (Sentences("No jargon."), 2.0),
        "poet": (Sentences("Be a poet.", "Be a clerk."), 1.5),
        "glad": (Sentences("Be glad: always.", "Be sad.", place="user"), -1.0),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  bad: 'prompt:@none.txt'", r"guides\.bad: There is no file .*none\.txt"),
        ("  bad: {away: Be sad.}", r"guides\.bad: A sentence of a guide is empty"),
        ("  bad: {towards: Be glad., form: shift}", r"guides\.bad has an unknown key 'form'"),
        ("  bad: {towards: Be glad., place: top}", r"guides\.bad: Unknown place of a sentence 'top'"),
        ("  bad: {weight: 1}", r"guides\.bad\.path is missing"),
    ],
)
def test_sentences_of_a_configuration_that_say_nothing_are_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("No jargon.\n")
    (tmp_path / "serve.yaml").write_text(CONFIG.format(more=line + "\n"))
    with pytest.raises(DataError, match=message):
        read_config(tmp_path / "serve.yaml")
