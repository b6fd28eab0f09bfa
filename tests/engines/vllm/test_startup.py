"""What cannot be honoured is refused when vLLM starts, with a sentence; a wrong request when it comes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm import house as houses
from tests.engines.vllm.rig import run_program, runner_environment

pytest.importorskip("vllm")

PROGRAM = """
import json, sys
from pathlib import Path
from trimtab.engines.vllm import versions
from vllm.engine.arg_utils import EngineArgs

if __name__ == "__main__":
    given, answer = map(Path, sys.argv[1:])
    found = []
    for served, options, supported in json.loads(given.read_text()):
        if supported:
            versions.TESTED, versions.COMPARED = tuple(supported), ()
            versions._check.cache_clear()  # each verdict is reached once in a process
        try:
            config = EngineArgs(model=served, dtype="float32", enforce_eager=True, **options).create_engine_config()
            found.append(config.model_config.max_model_len)
        except Exception as error:
            found.append(str(error))
    answer.write_text(json.dumps(found))
"""
DRAFT = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return houses.build(tmp_path_factory.mktemp("house"))


def starts(version: str, directory: Path, *cases: tuple[Path, dict[str, Any], list[str]]) -> list[Any]:
    """What came of starting with these directories, options and supported versions: the longest length, or words."""
    given = [(str(served), options, supported) for served, options, supported in cases]
    found: list[Any] = run_program(PROGRAM, given, runner_environment(version, directory / "rig"), directory)
    return found


def test_settings_that_cannot_be_honoured(house: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    (short / "base").parent.mkdir(parents=True)
    os.symlink(house / "base", short / "base")
    houses.save(short / "other", "llama", seed=4, **{**houses.OTHER, "max_position_embeddings": 64})
    near = houses.served(house, {"near": "near"}, tmp_path / "near")
    brief = houses.served(short, {"other": "other"}, tmp_path / "brief")
    houses.save(short / "small", "llama", seed=4, **{**houses.SMALL, "max_position_embeddings": 48})
    weak = houses.served(house, {"weak": "weak"}, tmp_path / "weak", bases={"weak": short / "small"})
    found = starts(
        "v1",
        tmp_path,
        (near, {}, []),
        (near, {"speculative_config": DRAFT}, []),
        (near, {"enable_lora": True}, []),
        (brief, {}, []),
        (brief, {"max_model_len": 100}, []),
        (brief, {"max_model_len": 50}, []),
        (weak, {"max_model_len": 100}, []),
        (near, {}, ["0.99", "1.5"]),
    )
    assert found[0] == houses.LENGTH
    assert "Model Runner V1 cannot keep speculative decoding exact under guides" in found[1]
    assert "vLLM's own adapters (--enable-lora)" in found[2]
    assert found[3] == 64
    assert "Guide other holds 64 tokens, fewer than --max-model-len 100. Give at most 64." in found[4]
    assert found[5] == 50
    assert "Guide weak holds 48 tokens, fewer than --max-model-len 100. Give at most 48." in found[6]
    assert "guides were tested inside vLLM 0.99.x, 1.5.x" in found[7]


def test_settings_that_the_second_runner_cannot_honour(house: Path, tmp_path: Path) -> None:
    near = houses.served(house, {"near": "near"}, tmp_path / "near")
    found = starts(
        "v2",
        tmp_path,
        (near, {"speculative_config": DRAFT}, []),
        (near, {"speculative_config": {"method": "suffix", "num_speculative_tokens": 2}}, []),
        (near, {"pipeline_parallel_size": 2}, []),
    )
    assert found[0] == houses.LENGTH
    assert "suffix" in found[1]
    assert "cannot be cut by pipeline parallelism" in found[2]


WRONG = {
    "oops": "which is no JSON",
    '{"near": NaN}': "The weight of guide near is nan; give a finite number.",
    '{"near": 1e39}': "give a finite number",
    '{"near": true}': "give a finite number",
    '{"nearr": 1}': "Unknown guide 'nearr'. Did you mean 'near'?",
    "[1, 2]": "give JSON in a text",
    '{"near": -1}': "Guide near is a product (base · guide^weight), and its weight is -1",
}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_wrong_weight_is_refused_and_others_go_on(house: Path, tmp_path: Path, version: str) -> None:
    out = houses.served(house, {"near": "near"}, tmp_path / "served")
    good = [{"ids": ids, "weights": {"near": 1.0}, "params": {"logprobs": 1}} for ids in houses.prompts(4)]
    bad = [{"ids": [5, 6], "extra_args": {"guidance": text}, "arrive": 2} for text in WRONG]
    bad.append({"ids": [5, 6], "extra_args": {"guidence": json.dumps({"near": 1.0})}, "arrive": 2})
    bad.append({"ids": [5, 6], "extra_args": {"guidance": 3}, "arrive": 2})
    found = houses.run(version, tmp_path, out, [[*good, *bad]])["waves"][0]
    assert houses.differences(found[:4], houses.expected(house, {"near": "near"}, good))[0] == 0
    for answer, words in zip(found[4:], [*WRONG.values(), "Did you mean 'guidance'?", "guidance is 3"], strict=True):
        assert words in answer["error"]
