"""The method palc: a head in the decoding loop, its KL, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.guides.test_head import random_head
from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.core import SamplingParams
from trimtab.engines.builtin import BuiltinMaker
from trimtab.engines.vllm.maker import VLLMMaker
from trimtab.engines.vllm.packing import pack
from trimtab.errors import CompatibilityError, OptionError
from trimtab.guides.head import Head
from trimtab.methods.catalogue import build_policy, check_engine, check_method
from trimtab.methods.checking import source_problem
from trimtab.models.tabular import TabularModel
from trimtab.storage.checking import check_files
from trimtab.storage.loading import save_guide

BASE = TabularModel.random(9, seed=0)


@pytest.fixture
def guide(tmp_path: Path) -> str:
    """The directory of a head."""
    return str(save_guide(Head(random_head(BASE)), tmp_path / "head"))


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0, -1.0])
def test_it_draws_from_the_formula_and_its_kl_is_exact(guide: str, strength: float) -> None:
    policy = build_policy(BASE, "palc", {"guide": guide})
    params = SamplingParams(max_new_tokens=6, ignore_eos=True, trace=True)
    [answer] = policy.answer(["ab"], strength, params, seeds=[1])
    head, kl = random_head(BASE), 0.0
    assert answer.trace is not None
    for at, step in enumerate(answer.trace):
        prefix = (*answer.prompt_ids, *answer.token_ids[:at])
        base = BASE.next_logprobs(prefix)
        mixed = torch.log_softmax(base + strength * (head.up @ (head.down @ BASE.state(prefix))), dim=-1)
        assert step.chosen.mixed_logprob == pytest.approx(float(mixed[step.chosen.token_id]), abs=1e-5)
        kl += float((mixed.exp() * (mixed - base)).sum())
    assert policy.kl_kind == "exact"
    assert policy.kl(answer, strength) == pytest.approx(kl, abs=1e-4)


def test_another_kind_of_guide_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    said = source_problem("palc", {"guide": "builtin:sentiment"}, [1.0])
    assert "builtin:sentiment holds a guide of kind 'arm', and palc runs a low-rank head" in said
    with pytest.raises(OptionError, match="palc runs a low-rank head"):
        build_policy(BASE, "palc", {"guide": "builtin:sentiment"})
    assert check_method("palc", {}, [1.0]) != []


def test_vllm_refuses_it_by_name(guide: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--engine vllm cannot run palc: .* no state of the base is handed to them"):
        check_engine(["palc"], VLLMMaker)
    check_engine(["palc"], BuiltinMaker)
    tiny_module().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(CompatibilityError, match=r"Guide near adds to the logits .* no state is handed .* Accepted in"):
        pack(tmp_path / "base", {"near": guide}, tmp_path / "served")


def test_its_files_are_checked(guide: str) -> None:
    found = {one.what: one for one in check_files(guide).findings}
    assert found["head"].holds
    assert "rank 3, from states of 4 numbers to 9 logits" in found["head"].said


def test_a_card_that_says_another_shape_does_not_hold(guide: str) -> None:
    card = Path(guide) / "guide.json"
    card.write_text(card.read_text().replace('"rank": 3', '"rank": 2'))
    found = {one.what: one for one in check_files(guide).findings}
    assert found["head"].holds is False
    assert "its rank is 3, and the card says 2" in found["head"].said
