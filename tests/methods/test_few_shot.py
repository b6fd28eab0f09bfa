"""Examples as earlier turns: at weight 1 the base that has read them, with its exact KL to the base that has not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DataError, OptionError, PromptError
from trimtab.methods.catalogue import build_policy
from trimtab.models.hf import HFModel

MODEL = HFModel(tiny_module(), tokenizer=tiny_tokenizer())
PARAMS = SamplingParams(max_new_tokens=4, ignore_eos=True, trace=True, seed=5)
EXAMPLES = (
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w5"},
    {"role": "user", "content": "w3"},
    {"role": "assistant", "content": "w6 w7"},
)
QUESTION: Prompt = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w8"}]
READ: Prompt = [QUESTION[0], *EXAMPLES, QUESTION[1]]  # type: ignore[list-item]


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(
        tmp_path / "examples.jsonl",
        {"prompt": "w1 w2", "completion": "w5"},
        {
            "prompt": [{"role": "user", "content": "w3"}],
            "chosen": [{"role": "assistant", "content": "w6 w7"}],
            "rejected": [{"role": "assistant", "content": "w1"}],
        },
        {"prompt": "w4", "completion": "w4"},
    )


def test_at_weight_1_it_is_the_base_that_has_read_the_examples(file: str) -> None:
    policy = build_policy(MODEL, "few-shot", {"examples": file, "num": 2})
    expected = next(Decoder(MODEL).answers([(READ, PARAMS)]))
    answer = next(policy.answer([QUESTION], 1.0, PARAMS, [5]))
    assert answer.token_ids == expected.token_ids
    assert policy.kl_kind == "exact"
    assert policy.kl(answer, 1.0) == pytest.approx(answer.kl)
    assert answer.kl is not None
    assert answer.kl > 0.01
    unread = next(policy.answer([QUESTION], 0.0, PARAMS, [5]))
    assert unread.token_ids == next(Decoder(MODEL).answers([(QUESTION, PARAMS)])).token_ids


def test_at_another_weight_what_the_examples_change_is_raised(file: str) -> None:
    policy = build_policy(MODEL, "few-shot", {"examples": file, "num": 2})
    answer = next(policy.answer([QUESTION], 2.0, PARAMS, [5]))
    assert answer.trace is not None
    read = next(Decoder(MODEL).answers([(READ, replace(PARAMS, forced=answer.token_ids))]))
    assert read.trace is not None
    for step, with_examples in zip(answer.trace, read.trace, strict=True):
        expected = with_examples.chosen.base_logprob - step.chosen.base_logprob
        assert step.chosen.guide_scores["examples"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds 0 examples, and num is 1"),
        ([{"prompt": "w1"}], "line 1.*completion, response, answer or chosen"),
        ([{"prompt": "w1", "completion": "w2", "answer": "w3"}], "line 1.*both completion and answer"),
        ([{"completion": "w1"}], "line 1.*no prompt"),
        ([{"prompt": " ", "completion": "w2"}], "line 1.*prompt"),
        ([{"prompt": "w1", "completion": ""}], "line 1.*completion"),
        ([{"prompt": [{"role": "system", "content": "w1"}], "completion": "w2"}], "line 1.*user"),
        ([{"prompt": "w1", "chosen": [{"role": "user", "content": "w2"}]}], "line 1.*chosen"),
    ],
)
def test_what_is_no_example_is_refused_by_its_line(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        build_policy(MODEL, "few-shot", {"examples": write(tmp_path / "e.jsonl", *rows), "num": 1})


def test_a_file_that_is_not_there_or_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        build_policy(MODEL, "few-shot", {"examples": str(tmp_path / "none.jsonl")})
    (tmp_path / "e.jsonl").write_text("w1\nw2\n")
    with pytest.raises(DataError, match="line 1"):
        build_policy(MODEL, "few-shot", {"examples": str(tmp_path / "e.jsonl"), "num": 2})


@pytest.mark.parametrize("prompt", ["w8", [8, 9]])
def test_examples_are_turns_of_a_chat(prompt: Prompt, file: str) -> None:
    policy = build_policy(MODEL, "few-shot", {"examples": file, "num": 1})
    with pytest.raises(PromptError, match="turns of a chat"):
        list(policy.answer([prompt], 1.0, PARAMS, [5]))
    with pytest.raises(OptionError, match="no chat template"):
        build_policy(HFModel(tiny_module()), "few-shot", {"examples": file, "num": 1})
