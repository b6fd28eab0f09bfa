from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from trimtab.decoding.decoder import Decoder
from trimtab.storage.loading import load_guide, load_model

from .conftest import Run, Tiny


@pytest.fixture
def argv(tiny: Tiny) -> list[str]:
    guides = ["--guide", f"a={tiny.lora}:0.7", "--guide", f"b={tiny.separate}:-0.3"]
    sampling = ["--max-new-tokens", "5", "--seed", "2", "--ignore-eos", "--num-alternatives", "4"]
    return ["explain", "--model", tiny.model, *guides, "--prompt", "Hi", *sampling]


def test_json_adds_up_and_agrees_with_the_decoder(run: Run, argv: list[str], tiny: Tiny) -> None:
    outcome = run(*argv, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    decoder = Decoder(load_model(tiny.model), {"a": load_guide(tiny.lora), "b": load_guide(tiny.separate)})
    weights = {"a": 0.7, "b": -0.3}
    (answer,) = decoder.generate(
        [[{"role": "user", "content": "Hi"}]],
        weights=weights,
        max_new_tokens=5,
        seed=2,
        ignore_eos=True,
        trace=True,
        num_alternatives=4,
    )
    assert answer.trace is not None
    assert (report["text"], report["weights"], report["seed"]) == (answer.text, weights, 2)
    assert report["kl"] == pytest.approx(answer.kl)
    assert [token["token_id"] for token in report["tokens"]] == list(answer.token_ids)
    for token, trace in zip(report["tokens"], answer.trace, strict=True):
        assert (token["base_rank"], token["mixed_rank"]) == (trace.chosen.base_rank, trace.chosen.mixed_rank)
        assert token["base_logprob"] == trace.chosen.base_logprob
        assert len(token["alternatives"]) >= 3
        for item in (token, *token["alternatives"]):
            parts = item["base_logprob"] + sum(item["shares"].values()) + item["rest"]
            assert parts == pytest.approx(item["mixed_logprob"], abs=1e-4)
            assert item["rest"] == pytest.approx(token["rest"], abs=1e-4), "not the same for every token of a step"


def test_what_is_forbidden_is_null(run: Run, argv: list[str]) -> None:
    outcome = run(*argv, "--json", "--plausibility", "0.6")
    rivals = [rival for token in json.loads(outcome.out)["tokens"] for rival in token["alternatives"]]
    assert any(rival["mixed_logprob"] is None for rival in rivals)
    assert "Infinity" not in outcome.out


def test_text_has_one_line_for_each_token(run: Run, argv: list[str]) -> None:
    outcome = run(*argv)
    assert outcome.code == 0, outcome.err
    table = outcome.out[outcome.out.index("token ") :].splitlines()
    assert table[0].split() == ["token", "base", "a", "b", "mixed", "rank", "KL"]
    assert all(line.count("%") == 2 and "→" in line for line in table[1:6])
    assert "5 tokens, ended by length; seed 2" in outcome.out


def test_without_guides_nothing_moves(run: Run, tiny: Tiny) -> None:
    argv = ["explain", "--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "3", "--seed", "2"]
    tokens = json.loads(run(*argv, "--json").out)["tokens"]
    assert all(token["shares"] == {} and token["base_logprob"] == token["mixed_logprob"] for token in tokens)
    assert run(*argv).code == 0


def test_the_page_is_written_once(run: Run, argv: list[str], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    outcome = run(*argv, "--html", str(page), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["page"] == str(page)
    first = page.read_text()
    assert first.startswith("<!doctype html>")
    refused = run(*argv, "--html", str(page))
    assert refused.code == 2
    assert "already exists. Give --overwrite" in refused.err
    assert "loading" not in refused.err
    assert run(*argv, "--html", str(page), "--overwrite", "--raw").code == 0
    assert page.read_text() != first


def test_an_empty_prompt_is_refused(run: Run, tiny: Tiny) -> None:
    outcome = run("explain", "--model", tiny.model, "--prompt", "")
    assert outcome.code == 2
    assert "--prompt is empty" in outcome.err


def test_kl_is_the_sum_over_tokens(run: Run, argv: list[str]) -> None:
    report = json.loads(run(*argv, "--json").out)
    assert report["kl"] == pytest.approx(math.fsum(token["kl"] for token in report["tokens"]))
    assert report["kl"] > 0


@pytest.fixture
def agent(tiny: Tiny, tmp_path: Path) -> str:
    import torch

    from trimtab.guides.agent import Agent, AgentNetwork
    from trimtab.storage.loading import save_guide

    torch.manual_seed(3)
    network = AgentNetwork(32, 16)
    torch.nn.init.normal_(network.output_linear.weight, std=3.0)
    return str(save_guide(Agent(network), tmp_path / "agent"))


def test_the_choice_of_an_agent_is_told(run: Run, tiny: Tiny, agent: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    argv = [
        "explain",
        "--model",
        tiny.model,
        "--guide",
        f"agent={agent}:0.9",
        "--prompt",
        "Hi",
        "--max-new-tokens",
        "12",
    ]
    outcome = run(*argv, "--ignore-eos", "--json", "--html", str(page))
    assert outcome.code == 0, outcome.err
    tokens = json.loads(outcome.out)["tokens"]
    for token in tokens:
        choice = token["choice"]
        assert (choice["guide"], choice["threshold"]) == ("agent", 0.9)
        taken = choice["candidates"][choice["index"]]
        assert taken["token_id"] == token["token_id"]
        assert all(rival["base_rank"] < 10 for rival in token["alternatives"]), "a token that cannot happen as a rival"
        if choice["reason"] == "accepted":
            assert taken["accept_probability"] > 0.9
            before = choice["candidates"][: choice["index"]]
            assert all(one["accept_probability"] <= 0.9 and not one["accepted"] for one in before)
    assert any(token["choice"]["index"] > 0 for token in tokens)
    assert '"reason":"accepted"' in page.read_text()
    gated = tmp_path / "gated.html"
    outcome = run(*argv, "--ignore-eos", "--json", "--gates", "agent=significance:1e9", "--html", str(gated))
    first, *others = (token["choice"] for token in json.loads(outcome.out)["tokens"])
    assert first["least_significance"] == 0
    assert all((one["reason"], one["index"]) == ("insignificant", 0) for one in others)
    assert all(one["significance"] < one["least_significance"] for one in others)
    assert "taken: the gate was closed" in gated.read_text()
    assert "the first: its gate was closed" in " ".join(
        run(*argv, "--ignore-eos", "--gates", "agent=significance:1e9").out.split()
    )
    text = run(*argv, "--ignore-eos").out
    assert "passed over" in text
    assert "seen" in text


def test_rules_are_for_agents(run: Run, tiny: Tiny, agent: str) -> None:
    argv = ["generate", "--model", tiny.model, "--prompt", "Hi", "--max-new-tokens", "8", "--ignore-eos", "--seed", "1"]
    texts = {}
    for rule in ("first", "random", "most"):
        outcome = run(*argv, "--guide", f"agent={agent}", "--rule", rule, "--json")
        assert outcome.code == 0, outcome.err
        texts[rule] = json.loads(outcome.out)["token_ids"]
        assert json.loads(outcome.out)["weights"] == {"agent": 0.5}
    assert len({tuple(ids) for ids in texts.values()}) > 1
    refused = run(*argv, "--guide", f"a={tiny.lora}", "--rule", "most")
    assert refused.code == 2
    assert "none of the guides is one" in refused.err
    threshold = run(*argv, "--guide", f"agent={agent}:1.5")
    assert threshold.code == 2
    assert "not an acceptance threshold" in threshold.err
