"""vLLM's own structured outputs beside guides: its grammar forbids tokens of the mix, whatever a request's weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm import house as houses
from tests.engines.vllm.test_vllm_serve import serving
from tests.tiny import byte_tokenizer, tiny_module, write_lora
from trimtab import Constraint, Decoder, SamplingParams, load_guide, load_model

pytest.importorskip("vllm")
pytest.importorskip("openai")

FORMS: dict[str, tuple[dict[str, Any], Constraint]] = {
    "a choice": ({"choice": ["yes", "no", "never"]}, Constraint.choice(["yes", "no", "never"])),
    "an expression": ({"regex": "[ab]{3}-[0-9]{2}"}, Constraint.regex("[ab]{3}-[0-9]{2}")),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokens are bytes, which can write any text, and an adapter of it."""
    directory = tmp_path_factory.mktemp("bytes")
    tokenizer = byte_tokenizer()
    module = tiny_module("llama", seed=1, **houses.SHAPE, vocab_size=len(tokenizer))
    module.save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    write_lora(directory / "near", module, rank=2, seed=2)
    return directory


@pytest.fixture(scope="module")
def client(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    here = tmp_path_factory.mktemp("serve")
    with serving(houses.served(house, {"near": "near"}, here / "served"), here) as found:
        yield found


@pytest.mark.parametrize("what", FORMS)
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_an_answer_of_a_form_is_the_built_in_engines(client: Any, house: Path, what: str, weight: float) -> None:
    form, constraint = FORMS[what]
    model = load_model(house / "base")
    decoder = Decoder(model, {"near": load_guide(house / "near", beside=model)})
    ids = [5, 40, 41]
    answer = client.completions.create(
        model="served",
        prompt=ids,
        max_tokens=12,
        temperature=0,
        extra_body={
            "vllm_xargs": {"guidance": json.dumps({"near": weight})},
            "structured_outputs": form,
            "return_token_ids": True,
        },
    )
    params = SamplingParams(weights={"near": weight}, temperature=0, max_new_tokens=12, constraint=constraint)
    [mine] = decoder.answers([(ids, params)])
    assert answer.choices[0].text == mine.text
    assert answer.choices[0].finish_reason == "stop"
    accepted = form.get("choice") or [form["regex"]]
    assert any(re.fullmatch(one, mine.text) for one in accepted)
