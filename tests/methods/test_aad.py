"""A mask by a guide's own probabilities, and Alignment-Aware Decoding, against plain loops over the formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.guides.rewards import merged, next_logprobs
from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS, tiny_model
from trimtab.core import LanguageModel, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.engines.vllm.sampling import check_params
from trimtab.errors import OptionError
from trimtab.guides.agent import Agent, AgentNetwork
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.guides.prompt import PromptGuide
from trimtab.methods.catalogue import build_policy, check_method
from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.models.tabular import TabularModel
from trimtab.storage.loading import save_guide

BASE, TUNED = TabularModel.random(9, seed=0), TabularModel.random(9, seed=1)
ASKED = SamplingParams(max_new_tokens=6, ignore_eos=True, trace=True, seed=3)


def masked(scores: torch.Tensor, guide: torch.Tensor, alpha: float) -> torch.Tensor:
    """Scores [V], −inf where the guide's probability is below α times its best."""
    return torch.where(guide.exp() >= alpha * guide.exp().max(), scores, -torch.inf)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
@pytest.mark.parametrize(("form", "weight"), [(PRODUCT, 1.0), (SHIFT, 0.5), (SHIFT, 3.0), (SHIFT, -1.0)])
def test_the_mix_is_the_formula_on_what_the_guide_finds_likely(form: str, weight: float, alpha: float) -> None:
    decoder = Decoder(BASE, {"g": ARM(TUNED, form=form)})
    params = replace(ASKED, weights={"g": weight}, guide_plausibility={"g": alpha})
    [answer] = decoder.answers([([1, 2], params)])
    assert answer.trace is not None
    for count, step in enumerate(answer.trace):
        prefix = (1, 2, *answer.token_ids[:count])
        base, guide = BASE.next_logprobs(prefix), TUNED.next_logprobs(prefix)
        score = guide - base if form == SHIFT else guide
        policy = torch.log_softmax(masked(base + weight * score, guide, alpha), dim=-1)
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id]), abs=1e-5)
        kept = policy.exp() > 0
        assert step.kl == pytest.approx(float((policy.exp() * (policy - base))[kept].sum()), abs=1e-5)


def test_a_mask_of_1_leaves_the_guides_best_token_at_every_weight_but_0() -> None:
    decoder = Decoder(BASE, {"g": ARM(TUNED, form=SHIFT)})
    params = replace(ASKED, guide_plausibility={"g": 1.0})
    free = replace(ASKED, weights={"g": 0.0})
    [steered, off, plain] = decoder.answers(
        [([1, 2], replace(params, weights={"g": 0.25})), ([1, 2], replace(params, weights={"g": 0.0})), ([1, 2], free)]
    )
    prefix = [1, 2]
    for token in steered.token_ids:
        assert token == int(TUNED.next_logprobs(tuple(prefix)).argmax())
        prefix.append(token)
    assert off.token_ids == plain.token_ids  # a guide at weight 0 masks nothing
    assert off.trace == plain.trace


def test_each_request_of_a_batch_has_its_own_masks() -> None:
    guides = {"one": ARM(TUNED), "two": ARM(TabularModel.random(9, seed=2), form=SHIFT)}
    masks: list[dict[str, float]] = [{}, {"one": 0.4}, {"two": 0.6}, {"one": 0.2, "two": 0.2}]
    asked = [replace(ASKED, weights={"one": 1.0, "two": 2.0}, guide_plausibility=mask) for mask in masks]
    together = list(Decoder(BASE, guides).answers([([1, 2], params) for params in asked]))
    alone = [next(Decoder(BASE, guides).answers([([1, 2], params)])) for params in asked]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.trace for answer in together] == [answer.trace for answer in alone]
    assert len({answer.kl for answer in together}) == len(masks)


@pytest.mark.parametrize("draft", ["lookup", "guide"])
def test_drafts_change_nothing(draft: str) -> None:
    decoder = Decoder(BASE, {"g": ARM(TUNED, form=SHIFT)})
    params = replace(ASKED, max_new_tokens=20, weights={"g": 1.0}, guide_plausibility={"g": 0.3})
    [plain] = decoder.answers([([1, 2, 1, 2], params)])
    [drafted] = decoder.answers([([1, 2, 1, 2], replace(params, draft=draft, draft_tokens=3))])
    assert drafted.token_ids == plain.token_ids
    assert [step.kl for step in drafted.trace or ()] == pytest.approx([step.kl for step in plain.trace or ()], abs=1e-5)


def test_a_sentence_masks_by_what_the_base_says_that_has_read_it() -> None:
    decoder = Decoder(BASE, {"s": PromptGuide("fab", "cab", separator="")})
    params = replace(ASKED, weights={"s": 2.0}, guide_plausibility={"s": 1.0})
    [answer] = decoder.answers([("cd", params)])
    said = next(Decoder(BASE).answers([("fabcd", replace(ASKED, temperature=0))]))
    assert answer.token_ids == said.token_ids


def greedy(base: Any, tuned: Any, prefix: list[int], num: int, alpha: float) -> list[int]:
    """AAD's released rule: the largest log d − log s among d ≥ α · max d, the tuned policy being d and s the base."""
    tokens: list[int] = []
    for _ in range(num):
        d, s = next_logprobs(tuned, [*prefix, *tokens]), next_logprobs(base, [*prefix, *tokens])
        tokens.append(int(masked(d - s, d, alpha).argmax()))
    return tokens


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_at_the_end_of_the_dial_it_is_the_papers_greedy_rule(alpha: float, tmp_path: Any) -> None:
    model = tiny_model("llama")
    adapter = random_lora(model, 3)
    save_guide(AdapterARM(adapter, form=SHIFT), tmp_path / "tuned")
    policy = build_policy(model, "aad", {"path": str(tmp_path / "tuned"), "alpha": alpha})
    params = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True, trace=True)
    tuned = merged(model, adapter.pairs)
    for prompt in PROMPTS:
        answer = next(policy.answer([prompt], 10_000.0, params, [0]))
        assert list(answer.token_ids) == greedy(model.module, tuned, list(prompt), 8, alpha)


def test_at_1_it_draws_from_the_policys_own_likely_tokens(tmp_path: Any) -> None:
    model = tiny_model("llama")
    adapter = random_lora(model, 3)
    save_guide(AdapterARM(adapter, form=SHIFT), tmp_path / "tuned")
    policy = build_policy(model, "aad", {"path": str(tmp_path / "tuned")})
    answer = next(policy.answer([PROMPTS[0]], 1.0, ASKED, [3]))
    tuned, prefix = merged(model, adapter.pairs), list(PROMPTS[0])
    assert policy.kl_kind == "exact"
    assert answer.trace is not None
    for step in answer.trace:
        own = next_logprobs(tuned, prefix)
        drawn_from = torch.log_softmax(masked(own, own, 0.1), dim=-1)
        assert step.chosen.mixed_logprob == pytest.approx(float(drawn_from[step.chosen.token_id]), abs=1e-4)
        prefix.append(step.chosen.token_id)


@pytest.mark.parametrize(
    ("plausibility", "words"),
    [
        ({"other": 0.1}, "other"),
        ({"agent": 0.1}, "no probabilities of its own"),
        ({"g": 1.5}, "at most 1"),
        (3, "names"),
    ],
)
def test_masks_that_mean_nothing_are_refused(plausibility: Any, words: str) -> None:
    model: LanguageModel = tiny_model("llama")
    decoder = Decoder(model, {"g": AdapterARM(random_lora(model, 3)), "agent": Agent(AgentNetwork(model.hidden_size))})
    with pytest.raises(OptionError, match=words):
        list(decoder.generate([PROMPTS[0]], guide_plausibility=plausibility, max_new_tokens=2))


def test_vllm_refuses_by_name() -> None:
    with pytest.raises(OptionError, match="guide_plausibility"):
        check_params(SamplingParams(guide_plausibility={"g": 0.1}))
    check_params(SamplingParams(guide_plausibility={"g": 0}))


def test_a_share_out_of_range_is_a_problem_of_the_method() -> None:
    assert check_method("aad", {"path": "x", "alpha": 0.2}, [2.0]) == []
    [problem] = check_method("aad", {"path": "x", "alpha": 2}, [2.0])
    assert "alpha" in problem


def test_an_unknown_guide_is_said_under_the_fields_name() -> None:
    decoder = Decoder(BASE, {"g": ARM(TUNED)})
    with pytest.raises(OptionError, match=r"^guide_plausibility: Unknown guide 'h'"):
        list(decoder.generate(["ab"], guide_plausibility={"h": 0.1}))
