"""`VLLMEngine` against the built-in engine, on both of vLLM's model runners: tokens, texts, ends and traces."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm.rig import run_program, runner_environment
from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab import Decoder, SamplingParams, VLLMEngine, load_guide, load_model
from trimtab.engines.vllm.packing import pack
from trimtab.errors import CheckpointError, CompatibilityError, OptionError

pytest.importorskip("vllm")

LENGTH = 64
PROMPTS = [[5, 9, 13], "w3 w3 w8 w21", [7], [{"role": "user", "content": "w40 w11 w2"}], [60, 59, 58, 57], [5, 9, 13]]
WEIGHTS = [{"near": 1.0}, {"other": 1.5, "near": -0.5}, {}, {"tuned": 1.0}, {"near": 0.4, "weak": -0.7}, {"near": 0.0}]
NAMES = ("near", "tuned", "other", "weak")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter of it, a tuned policy of it, a model of another shape, and an adapter of that one as a shift;
    all random, with names for ids.
    """
    directory = tmp_path_factory.mktemp("house")
    shape = {"head_dim": 32, "max_position_embeddings": LENGTH}
    module = _save(directory / "base", seed=1, **shape)
    write_lora(directory / "near", module, rank=2, seed=2)
    write_lora(directory / "tuned", module, rank=3, seed=3)
    (directory / "tuned" / "guide.json").write_text(json.dumps({"format": 1, "kind": "policy"}))
    other = _save(directory / "other", seed=4, **{**shape, "hidden_size": 64, "num_hidden_layers": 2})
    write_lora(directory / "weak", other, rank=2, seed=5, base_model_name_or_path=str(directory / "other"))
    (directory / "weak" / "guide.json").write_text(json.dumps({"format": 1, "kind": "arm", "guide_form": "shift"}))
    pack(directory / "base", {name: directory / name for name in NAMES}, directory / "served", weights={"other": 0.25})
    pack(directory / "base", {}, directory / "alone")
    return directory


def _save(directory: Path, *, seed: int, **shape: Any) -> Any:
    words = [f"w{index}" for index in range(58)]  # one id of the model has no token
    module = tiny_module("llama", seed=seed, **shape)
    module.generation_config.eos_token_id = [1, 44]
    module.save_pretrained(directory)
    tiny_tokenizer(words).save_pretrained(directory)
    return module


@pytest.fixture(scope="module")
def decoder(house: Path) -> Decoder:
    model = load_model(house / "base")
    guides = {name: load_guide(house / name, beside=model, weight=0.25 if name == "other" else 0.0) for name in NAMES}
    return Decoder(model, guides)


def requests() -> list[tuple[Any, dict[str, Any]]]:
    common: dict[str, Any] = {"temperature": 0, "max_new_tokens": 16, "trace": True, "num_alternatives": 4}
    found = [(prompt, {**common, "weights": w}) for prompt, w in zip(PROMPTS, WEIGHTS, strict=True)]
    return [*found, ([5, 9, 13], {**common, "ignore_eos": True, "trace": False}), ([2] * (LENGTH - 3), {**common})]


FILTERS = {
    "v1": {"one": {"top_k": 1}, "best": {"min_p": 1.0, "top_k": 3}, "least": {"top_p": 1e-6}, "some": {"top_k": 9}},
    "v2": {"best": {"min_p": 1.0}},  # Triton's interpreter cannot run vLLM's kernel of top-k and top-p
}

REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a guide": ([5], {"weights": {"neer": 1.0}}, "Did you mean 'near'"),
    "a weight": ([5], {"weights": {"near": 1e39}}, "give a finite number"),
    "a negative product": ([5], {"weights": {"near": -1.0}, "temperature": 0}, "Guide near is a product"),
    "plausibility": ([5], {"plausibility": 0.1}, "plausibility masks the base"),
    "a guide's plausibility": ([5], {"guide_plausibility": {"near": 0.1}}, "guide_plausibility masks by"),
    "a penalty": ([5], {"repetition_penalty": 1.2}, "another formula"),
    "forced": ([5], {"forced": [3]}, "no forced tokens"),
    "too hot": ([5], {"temperature": 2.5}, "0 and 0.01 to 2"),
    "too cold": ([5], {"temperature": 0.001}, "0 and 0.01 to 2"),
    "two filters": ([5], {"top_p": 0.9, "min_p": 0.1}, "top_p and min_p together"),
    "too long": ([5] * LENGTH, {}, f"The prompt has {LENGTH} tokens; this engine holds {LENGTH}"),
    "empty": ([], {}, "The prompt is empty"),
    "an id": ([61], {}, "outside the vocabulary"),
}


@pytest.fixture(scope="module", params=["v1", "v2"])
def found(request: pytest.FixtureRequest, house: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    directory = tmp_path_factory.mktemp(request.param)
    source = Path(__file__).with_name("ask.py").read_text(encoding="utf-8")
    given = {
        "served": str(house / "served"),
        "requests": [*requests(), *stopping(house)],
        "refused": {name: [prompt, how] for name, (prompt, how, _) in REFUSED.items()},
        "filters": FILTERS[request.param],
        "options": {"max_num_batched_tokens": 24},
    }
    answer = run_program(source, given, runner_environment(request.param, directory / "rig"), directory)
    assert answer["version"] == request.param
    return dict(answer)


def stopping(house: Path) -> list[tuple[Any, dict[str, Any]]]:
    """Requests that a stop string ends: a word, one that spans tokens, a part of a word."""
    model = load_model(house / "base")
    (answer,) = Decoder(model).generate([[7, 8]], max_new_tokens=8, temperature=0, ignore_eos=True)
    words = answer.text.split()
    stops = [words[2], f"{words[1]} {words[2]}", words[3][-1]]
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True, "weights": {"other": 0}}
    return [([7, 8], {**how, "stop": [stop]}) for stop in stops]


@pytest.fixture(scope="module")
def wanted(house: Path, decoder: Decoder) -> list[dict[str, Any]]:
    asked = [(prompt, _params(how)) for prompt, how in [*requests(), *stopping(house)]]
    return [json.loads(json.dumps(dataclasses.asdict(answer))) for answer in decoder.answers(asked)]


def _params(how: Mapping[str, Any]) -> SamplingParams:
    return SamplingParams(**{**how, "stop": tuple(how.get("stop", ()))})


def test_greedy_answers_are_those_of_the_built_in_engine(
    found: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]
) -> None:
    same = ("prompt", "prompt_ids", "token_ids", "text", "finish_reason", "weights", "temperature")
    ours = [{name: answer[name] for name in same} for answer in found["answers"]]
    assert ours == [{name: answer[name] for name in same} for answer in wanted]
    assert {answer["finish_reason"] for answer in ours} == {"eos", "stop", "length"}


def test_traces_are_those_of_the_built_in_engine(found: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> None:
    num_steps = 0
    for ours, theirs in zip(found["answers"], wanted, strict=True):
        assert (ours["trace"] is None) == (theirs["trace"] is None)
        for mine, other in zip(ours["trace"] or (), theirs["trace"] or (), strict=True):
            assert _flat(mine) == pytest.approx(_flat(other), abs=1e-3)
            num_steps += 1
    assert num_steps > 40


def test_drawn_tokens_are_explained_at_their_temperature(found: Mapping[str, Any], decoder: Decoder) -> None:
    """The built-in engine is made to take the same tokens, and asked about them."""
    for batch in found["traced"]:
        for ours in batch:
            how = SamplingParams(
                weights=ours["weights"],
                temperature=0.7,
                forced=tuple(ours["token_ids"]),
                max_new_tokens=len(ours["token_ids"]),
                ignore_eos=True,
                trace=True,
                num_alternatives=2,
            )
            (theirs,) = decoder.answers([(ours["prompt"], how)])
            wanted = json.loads(json.dumps(dataclasses.asdict(theirs)))["trace"]
            assert _flat(ours["trace"]) == pytest.approx(_flat(wanted), abs=1e-3)
    assert any(step["kl"] > 0.1 for step in found["traced"][1][0]["trace"])
    # Without a guide the temperature alone moves the policy away from the base.
    assert all(step["kl"] > 1e-4 for step in found["traced"][0][0]["trace"])


def _flat(value: Any, place: str = "") -> dict[str, float]:
    """Every number of a trace by its place; the names of the places are compared too."""
    if isinstance(value, Mapping):
        return {key: item for name in value for key, item in _flat(value[name], f"{place}.{name}").items()}
    if isinstance(value, list):
        return {key: item for at, part in enumerate(value) for key, item in _flat(part, f"{place}.{at}").items()}
    return {place: -1e9 if value is None or value == float("-inf") else float(value)}


def test_requests_join_and_leave_between_steps(found: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> None:
    joined = found["joined"]
    for index in (0, 2, 3):
        assert joined["tokens"][index] == wanted[index]["token_ids"]
        assert joined["texts"][index] == wanted[index]["text"]
        assert joined["ends"][index] == wanted[index]["finish_reason"]
    assert joined["tokens"][1] == wanted[1]["token_ids"][: len(joined["tokens"][1])]
    assert 1 <= len(joined["tokens"][1]) < len(wanted[1]["token_ids"])
    assert joined["ends"][1] is None
    assert joined["after"] == []


def test_an_added_request_goes_on_beside_answers(found: Mapping[str, Any], wanted: Sequence[Mapping[str, Any]]) -> None:
    beside = found["beside"]
    assert beside["first"] == wanted[1]["token_ids"]
    assert beside["ids"] == [beside["added"]]
    assert beside["tokens"] == wanted[0]["token_ids"]


def test_what_has_no_row_waits(found: Mapping[str, Any]) -> None:
    assert found["queued"] == [8, 3, 0, 0, 0]  # the last: what vLLM itself has left


def test_a_seed_gives_the_same_answer_again(found: Mapping[str, Any]) -> None:
    drawn = found["drawn"]
    assert drawn["alone"] == drawn["again"] == drawn["crowd"][3]
    assert drawn["generate"] == drawn["crowd"][2:5]
    assert len({tuple(ids) for ids in drawn["crowd"]}) == 6
    assert drawn["unseeded"] == drawn["named"]


def test_filters_filter(found: Mapping[str, Any], decoder: Decoder) -> None:
    (greedy,) = decoder.generate([[5, 9, 13]], weights={"near": 0.5}, max_new_tokens=12, temperature=0, ignore_eos=True)
    filtered = dict(found["drawn"]["filtered"])
    assert filtered.pop("some", None) != list(greedy.token_ids)
    assert filtered
    assert all(ids == list(greedy.token_ids) for ids in filtered.values())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_with_a_sentence(found: Mapping[str, Any], name: str) -> None:
    kind, sentence = found["refused"][name]
    assert kind in ("OptionError", "PromptError")
    assert REFUSED[name][2] in sentence


def test_it_knows_what_a_server_asks(found: Mapping[str, Any], decoder: Decoder) -> None:
    known, model = found["known"], decoder.model
    assert known["guides"] == {
        "near": [0.0, None, "product"],
        "tuned": [0.0, None, "shift"],
        "other": [0.25, None, "product"],
        "weak": [0.0, None, "shift"],
    }
    assert known["eos"] == sorted(model.eos_ids) == [1, 44]
    assert [known[name] for name in ("vocab_size", "hidden_size", "max_length")] == [61, 32, LENGTH]
    assert known["chat"] is True
    described = {key: value for key, value in known["described"].items() if key != "name"}
    assert described == {key: value for key, value in model.describe().items() if key != "name"}  # type: ignore[attr-defined]
    assert known["opened"][0] == "CompatibilityError"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt option": ({"options": {"gpu_memory_utilisation": 0.5}}, "Did you mean 'gpu_memory_utilization'"),
    "a parameter": ({"options": {"max_num_seqs": 3}}, "give it as max_rows"),
    "a fixed one": ({"options": {"async_scheduling": True}}, "async_scheduling is False in this engine"),
    "no row": ({"max_rows": 0}, "max_rows is 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_is_refused_before_anything_starts(house: Path, name: str) -> None:
    options, sentence = WRONG[name]
    with pytest.raises(OptionError, match=sentence):
        VLLMEngine(house / "served", **options)


def test_a_directory_that_was_not_packed_is_refused(house: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="trimtab vllm pack"):
        VLLMEngine(house / "base")
    with pytest.raises(CheckpointError, match="not a packed directory"):
        VLLMEngine(tmp_path)


def test_an_agent_is_refused(house: Path, tmp_path: Path) -> None:
    content = json.loads((house / "served" / "config.json").read_text())
    content["architectures"] = ["TrimtabAgentForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CompatibilityError, match="engine of its own"):
        VLLMEngine(tmp_path)
