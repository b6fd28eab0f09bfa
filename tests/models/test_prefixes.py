"""Prompts that begin alike are fed once, and give what they give alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.laws.test_decoder_laws import WORLDS, check_company
from tests.models.test_hf import assert_rows
from tests.tiny import FAMILIES, tiny_module, write_lora
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.guides.arm import ARM
from trimtab.models import hf
from trimtab.models.forward import prefixes
from trimtab.models.forward.prefixes import in_common, lend
from trimtab.models.forward.trunk import Row, Trunk
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_guide

TEMPLATE = [7, *range(2, 32)]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that each pass feeds, but for those of the probe when a model is loaded."""
    found: list[int] = []
    monkeypatch.setattr(hf, "probe", lambda *_: None)
    sound = Trunk._extend

    def counting(self: Trunk, rows: Sequence[Row]) -> None:
        found.append(sum(row.num_pending for row in rows))
        sound(self, rows)

    monkeypatch.setattr(Trunk, "_extend", counting)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_begin_alike_are_their_own(family: str, fed: list[int]) -> None:
    module = tiny_module(family)
    session = HFModel(module).open()
    sequences = [[*TEMPLATE, 40 + row, 50 - row] for row in range(6)]
    session.admit([list(ids) for ids in sequences])
    assert_rows(session.logprobs(), module, sequences)
    assert fed == [33, 5 * 2]  # one whole, then what is the others' own
    late = [*TEMPLATE[:20], 55]
    session.admit([late])
    sequences.append(late)
    for step in range(3):
        session.advance(torch.arange(7), torch.tensor([33 + step] * 7))
        for ids in sequences:
            ids.append(33 + step)
        assert_rows(session.logprobs(), module, sequences)
    assert fed[2:] == [6, 2, 7, 7]  # with the first token of the six, the late one's two own tokens


def test_answers_to_one_prompt_cost_one_prompt(fed: list[int]) -> None:
    module = tiny_module()
    session = HFModel(module).open()
    session.admit([list(TEMPLATE) for _ in range(8)])
    assert_rows(session.logprobs(), module, [TEMPLATE] * 8)
    assert fed == [31]
    session.advance(torch.arange(8), torch.arange(8) + 30)
    assert_rows(session.logprobs(), module, [[*TEMPLATE, 30 + row] for row in range(8)])


def test_a_family_of_prompts_within_another_is_fed_in_turn(fed: list[int]) -> None:
    """Two questions under one system prompt, eight answers each."""
    module = tiny_module()
    session = HFModel(module).open()
    questions = [[*TEMPLATE[:17], *range(first, first + 20)] for first in (30, 35)]
    sequences = [list(question) for question in questions for _ in range(8)]
    session.admit([list(ids) for ids in sequences])
    assert_rows(session.logprobs(), module, sequences)
    assert fed == [37, 20]


def test_little_in_common_is_not_waited_for(fed: list[int]) -> None:
    session = HFModel(tiny_module()).open()
    session.admit([[*TEMPLATE, 40], [*TEMPLATE, 41], [*TEMPLATE[:10], 42]])
    session.logprobs()
    assert fed == [32 + 32, 11] or fed == [11, 32 + 32]  # 31 tokens saved are less than a pass costs


def test_what_another_adapter_made_is_not_taken_over(tmp_path: Path, fed: list[int]) -> None:
    module = tiny_module()
    model = HFModel(module)
    base = model.open()
    guide = load_guide(write_lora(tmp_path, module)).bind(model)
    session = guide.open(base)
    fed.clear()  # of what binding measured
    base.admit([list(TEMPLATE)] * 4)
    session.admit([list(TEMPLATE)] * 4)
    base.logprobs()
    assert fed == [31 * 2]


@pytest.mark.parametrize("world", ["llama", "mistral"])
def test_whatever_is_shared_no_answer_changes(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 1)
    monkeypatch.setattr(prefixes, "WORTH_A_PASS", 1)
    for seed in range(3):
        assert check_company(*WORLDS[world](), seed) > 30
        assert check_company(*WORLDS[world](), seed, 3) > 30


@dataclass(eq=False)
class Given:
    tokens: list[int]
    length: int = 0
    adapter: object | None = field(default=None)


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@given(tokens, tokens)
def test_in_common_is_the_longest_beginning(one: list[int], other: list[int]) -> None:
    expected = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert in_common(one, other) == (expected if expected >= prefixes.LEAST else 0)


@given(st.lists(tokens, max_size=8), st.lists(tokens, max_size=4))
def test_loans_are_of_what_has_been_fed(fresh: list[list[int]], fed_rows: list[list[int]]) -> None:
    new = [Given([*[5] * 20, *ids]) for ids in fresh]
    old = [Given([*[5] * 20, *ids], 18) for ids in fed_rows]
    loans, later = lend(new, old)
    assert all(row not in later for row, *_ in loans)
    assert not new or new[0] not in later  # somebody begins
    for row, donor, shared in loans:
        assert donor in old
        assert shared == 18
        assert row.tokens[:shared] == donor.tokens[:shared]


def test_what_is_known_does_not_count_as_a_piece_of_a_prompt(tmp_path: Path, fed: list[int]) -> None:
    """A request whose beginning is there already joins at once, however small the pieces; a stranger waits."""
    module = tiny_module()
    model = HFModel(module)
    guides = {"arm": load_guide(write_lora(tmp_path, module)), "other": ARM(HFModel(tiny_module(seed=1)))}
    decoder = Decoder(model, guides, prefill_chunk=4)
    how = SamplingParams(weights={"arm": 1.0, "other": 0.5}, max_new_tokens=20, ignore_eos=True, seed=0)
    decoder.add([*TEMPLATE, 40], how)
    while not decoder.step():
        pass
    alike = decoder.add([*TEMPLATE, 41, 42], how)
    stranger = decoder.add([50, *TEMPLATE], how)
    first = [step.request_id for step in decoder.step()]
    assert alike in first
    assert stranger not in first
