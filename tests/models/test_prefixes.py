"""Prompts that begin alike are fed once, and give what they give alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from trimtab.models.forward import prefixes
from trimtab.models.forward.prefixes import in_common, lend
from trimtab.models.forward.trunk import Trunk
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_guide

TEMPLATE = [7, *range(2, 32)]


class Feeding:
    """What the passes of a trunk have fed since it was last asked."""

    def __init__(self, session: Any) -> None:
        self._trunk: Trunk = session.trunk
        self._before = self._trunk.num_passes, self._trunk.num_fed

    def __call__(self) -> tuple[int, int]:
        """Passes, and tokens in all of them."""
        passes, tokens = self._before
        self._before = self._trunk.num_passes, self._trunk.num_fed
        return self._before[0] - passes, self._before[1] - tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_begin_alike_are_their_own(family: str) -> None:
    module = tiny_module(family)
    session = HFModel(module).open()
    fed = Feeding(session)
    sequences = [[*TEMPLATE, 40 + row, 50 - row] for row in range(6)]
    session.admit([list(ids) for ids in sequences])
    assert_rows(session.logprobs(), module, sequences)
    assert fed() == (2, 33 + 5 * 2)  # one whole, then what is the others' own
    late = [*TEMPLATE[:20], 55]
    session.admit([late])
    sequences.append(late)
    for step, expected in enumerate([(1, 6 + 2), (1, 7), (1, 7)]):  # at first the late one's two own tokens, too
        session.advance(torch.arange(7), torch.tensor([33 + step] * 7))
        for ids in sequences:
            ids.append(33 + step)
        assert_rows(session.logprobs(), module, sequences)
        assert fed() == expected


def test_answers_to_one_prompt_cost_one_prompt() -> None:
    module = tiny_module()
    session = HFModel(module).open()
    fed = Feeding(session)
    session.admit([list(TEMPLATE) for _ in range(8)])
    assert_rows(session.logprobs(), module, [TEMPLATE] * 8)
    assert fed() == (1, 31)
    session.advance(torch.arange(8), torch.arange(8) + 30)
    assert_rows(session.logprobs(), module, [[*TEMPLATE, 30 + row] for row in range(8)])


def test_a_family_of_prompts_within_another_is_fed_in_turn() -> None:
    """Two questions under one system prompt, eight answers each."""
    module = tiny_module()
    session = HFModel(module).open()
    questions = [[*TEMPLATE[:17], *range(first, first + 20)] for first in (30, 35)]
    fed = Feeding(session)
    sequences = [list(question) for question in questions for _ in range(8)]
    session.admit([list(ids) for ids in sequences])
    assert_rows(session.logprobs(), module, sequences)
    assert fed() == (2, 37 + 20)


def test_little_in_common_is_not_waited_for() -> None:
    session = HFModel(tiny_module()).open()
    fed = Feeding(session)
    session.admit([[*TEMPLATE, 40], [*TEMPLATE, 41], [*TEMPLATE[:10], 42]])
    session.logprobs()
    assert fed() == (2, 32 + 32 + 11)  # 31 tokens saved are less than a pass costs


def test_what_another_adapter_made_is_not_taken_over(tmp_path: Path) -> None:
    module = tiny_module()
    model = HFModel(module)
    base = model.open()
    guide = load_guide(write_lora(tmp_path, module)).bind(model)
    session = guide.open(base)
    fed = Feeding(base)
    base.admit([list(TEMPLATE)] * 4)
    session.admit([list(TEMPLATE)] * 4)
    base.logprobs()
    assert fed() == (1, 31 * 2)


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


def test_what_is_known_does_not_count_as_a_piece_of_a_prompt(tmp_path: Path) -> None:
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
