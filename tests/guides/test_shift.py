"""A language model as a shift: the tuned model at 1, realignment between, the other way below 0, and its exact KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from tests.guides.rewards import merged, next_logprobs
from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS, tiny_model
from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.mixing.forms import SHIFT
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.testing import check_guide


@pytest.mark.parametrize("weight", [1.0, 0.4, 1.7])
def test_the_mix_is_the_geometric_path_from_the_base_to_the_policy(weight: float) -> None:
    model = tiny_model("llama")
    adapter = random_lora(model, 3)
    module = merged(model, adapter.pairs)
    guide = AdapterARM(adapter, form=SHIFT)
    answer = next(
        Decoder(model, {"p": guide}).generate(
            [PROMPTS[0]], weights={"p": weight}, seed=1, max_new_tokens=4, ignore_eos=True, trace=True
        )
    )
    prefix = list(PROMPTS[0])
    assert answer.trace is not None
    for step in answer.trace:
        base, tuned = next_logprobs(model.module, prefix), next_logprobs(module, prefix)
        policy = torch.log_softmax((1 - weight) * base + weight * tuned, dim=-1)
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id]), abs=1e-4)
        assert step.kl == pytest.approx(float((policy.exp() * (policy - base)).sum()), abs=1e-4)
        prefix.append(step.chosen.token_id)


def test_the_laws_where_either_forbids() -> None:
    model = tiny_model("llama")
    check_guide(AdapterARM(random_lora(model, 3), form=SHIFT), model, PROMPTS, num_steps=3)
    base = TabularModel.of_table(torch.zeros(6, 6).masked_fill(torch.eye(6) == 1, -torch.inf))
    check_guide(ARM(TabularModel.random(6, seed=1), form=SHIFT), base)
    check_guide(ARM(base, form=SHIFT), TabularModel.random(6, seed=1))


def test_at_minus_one_a_shift_takes_away_what_training_added() -> None:
    base, tuned = TabularModel.random(6, seed=1), TabularModel.random(6, seed=2)
    decoder = Decoder(base, {"g": ARM(tuned, form=SHIFT)})
    answer = next(decoder.generate([[1, 2]], weights={"g": -1.0}, seed=0, max_new_tokens=5, trace=True))
    assert answer.trace is not None
    for count, step in enumerate(answer.trace):
        prefix = (1, 2, *answer.token_ids[:count])
        policy = torch.log_softmax(2 * base.next_logprobs(prefix) - tuned.next_logprobs(prefix), -1)
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id]), abs=1e-5)


@pytest.mark.parametrize("weight", [-1.0, 0.5, 2.0])
def test_from_weak_to_strong_a_shift_is_measured_from_the_small_model(weight: float) -> None:
    """Proxy tuning (arXiv 2401.08565): π_large · (π_tuned small / π_small)^w, the two small ones in one pass."""
    large, small = tiny_model("gemma2"), tiny_model("llama")
    adapter = random_lora(small, 3)
    tuned = merged(small, adapter.pairs)
    decoder = Decoder(large, {"g": AdapterARM(adapter, form=SHIFT).on(small)})
    how = {"weights": {"g": weight}, "seed": 1, "max_new_tokens": 4, "ignore_eos": True, "trace": True}
    answer = next(decoder.generate([PROMPTS[0]], **how))
    assert answer.trace is not None
    prefix = list(PROMPTS[0])
    for step in answer.trace:
        tables = [next_logprobs(module, prefix) for module in (large.module, tuned, small.module)]
        policy = torch.log_softmax(tables[0] + weight * (tables[1] - tables[2]), dim=-1)
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id]), abs=1e-4)
        prefix.append(step.chosen.token_id)


def test_guides_of_one_small_model_share_its_passes() -> None:
    """Two guides and the reference of both are rows of one pass of the small model, not passes of their own."""
    large, small = tiny_model("gemma2"), tiny_model("llama")
    one, two = (AdapterARM(random_lora(small, seed), form=SHIFT).on(small) for seed in (3, 4))
    alone, together = passes(large, small, {"one": one}), passes(large, small, {"one": one, "two": two})
    assert together == alone
    assert alone[1] == 5  # a prompt, then a token each


def passes(large: HFModel, small: HFModel, guides: Mapping[str, ARM]) -> tuple[int, int]:
    """Forward passes of both models while five tokens are decoded."""
    counts = [0, 0]

    def count(which: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[which] += 1

        return hook

    hooks = [model.module.model.register_forward_hook(count(which)) for which, model in enumerate((large, small))]
    decoder = Decoder(large, guides)
    list(decoder.generate([PROMPTS[0]], seed=1, max_new_tokens=5, ignore_eos=True))
    for hook in hooks:
        hook.remove()
    return counts[0], counts[1]


def test_the_base_itself_as_a_reference_costs_no_row() -> None:
    model = tiny_model("llama")
    guide = AdapterARM(random_lora(model, 3), form=SHIFT).on(model).bind(model)
    assert guide.reference is None


def test_a_product_has_no_reference_and_a_form_is_one_of_two() -> None:
    base = TabularModel.random(6, seed=1)
    with pytest.raises(OptionError, match="has no reference; give the form shift"):
        ARM(base, reference=base)
    with pytest.raises(OptionError, match="Unknown form of a guide 'shifted'"):
        AdapterARM(random_lora(tiny_model("llama"), 3), form="shifted")


REFUSED = {"alone": {"g": -1.0}, "a little": {"g": -0.2}, "not made up for": {"g": -1.0, "other": 0.5}}


@pytest.mark.parametrize("weights", REFUSED.values(), ids=REFUSED)
def test_a_negative_weight_on_a_product_is_refused(weights: dict[str, float]) -> None:
    decoder = Decoder(TabularModel.random(6, seed=1), {name: ARM(TabularModel.random(6, seed=2)) for name in weights})
    with pytest.raises(OptionError, match=r"Guide g is a product .*the form shift.*plausibility above 0"):
        decoder.add([1, 2], SamplingParams(weights=weights))
    for more in ({"plausibility": 0.1}, {"weights": {**weights, "g": 0.0}}):
        decoder.add([1, 2], SamplingParams(**{"weights": weights, **more}))


def test_an_expert_makes_up_for_its_anti_expert() -> None:
    guides = {name: ARM(TabularModel.random(6, seed=seed)) for seed, name in enumerate(("expert", "anti"), 2)}
    decoder = Decoder(TabularModel.random(6, seed=1), guides)
    decoder.add([1, 2], SamplingParams(weights={"expert": 1.0, "anti": -1.0}))
