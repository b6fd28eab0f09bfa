"""The reward that two sentences are: how much more probable an answer is under one than under the other."""

from __future__ import annotations

import pytest

from tests.guides.test_prompt_guide import ids
from tests.tiny import byte_llama, byte_tokenizer
from trimtab.errors import OptionError
from trimtab.evaluation.sentence_reward import sentence_scorer
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel

BASE = TabularModel.random(9, seed=0)
CHAT = [{"role": "user", "content": "cd"}]


@pytest.mark.parametrize(("name", "away"), [('prompt:"fab"/"gg"', "gg"), ('prompt:"fab"', None)])
def test_it_is_the_ratio_of_two_probabilities_a_token(name: str, away: str | None) -> None:
    """Chat messages of the tabular model end in <; the separator is an empty line, which its letters do not have."""
    scorer = sentence_scorer(name, BASE)
    texts = ["ab", "h", "", "cdefg"]
    found = scorer([CHAT] * 4, texts)
    said = [BASE.tokenizer.encode_chat([{"role": "system", "content": one}, *CHAT]) for one in ("fab", "gg")]  # type: ignore[union-attr]
    assert found[2] == 0.0
    plain = BASE.tokenizer.encode_chat(CHAT)  # type: ignore[union-attr]
    for text, value in zip(texts, found, strict=True):
        if not text:
            continue
        rows = [said[0], said[1] if away else plain]
        logs = []
        for row in rows:
            answer = ids(text)
            logs.append(
                sum(float(BASE.next_logprobs([*row, *answer[:count]])[token]) for count, token in enumerate(answer))
            )
        assert value == pytest.approx((logs[0] - logs[1]) / len(text), abs=1e-5)


def test_an_answer_is_worth_the_same_in_any_company() -> None:
    model = HFModel(byte_llama(byte_tokenizer(), max_length=96), byte_tokenizer())
    scorer = sentence_scorer('prompt:"Be glad."/"Be sad."', model)
    texts = [f"answer {'x' * (index % 5)} {index}" for index in range(11)]
    prompts = [[{"role": "user", "content": f"q{index}"}] for index in range(11)]
    together = scorer(prompts, texts)
    alone = [scorer([prompt], [text])[0] for prompt, text in zip(prompts, texts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    turned = sentence_scorer('prompt:"Be sad."/"Be glad."', model)(prompts, texts)
    assert turned == pytest.approx([-value for value in together], abs=1e-4)


def test_a_model_without_a_tokenizer_cannot_read_it() -> None:
    with pytest.raises(OptionError):
        sentence_scorer("prompt:Be glad.", HFModel(byte_llama(byte_tokenizer(), max_length=96), None))
