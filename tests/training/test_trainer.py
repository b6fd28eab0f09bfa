"""The seam: rewards and gradients of a batch against one sequence at a time through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from trimtab.errors import OptionError
from trimtab.training.arm.trainer import ArmTrainer, arm_config, arm_parts
from trimtab.training.pairs.batches import packed_length, training_order
from trimtab.training.pairs.losses import arm_loss
from trimtab.training.pairs.tokens import TokenData, TokenPair
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.output_head import head_at
from trimtab.training.run.settings import ArmSettings
from trimtab.training.run.trainer import build_trainer

PAIRS = (
    TokenPair((1, 40, 41), (50, 51, 3), (60, 61, 62, 63, 3)),
    TokenPair((1, 40, 41), (50, 51, 3), (70, 3)),
    TokenPair((1, *range(80, 110)), (52, 53, 3), (50, 3)),
    TokenPair((1, 42), (60, 3), (50, 51, 3)),
)
SEQUENCES = [(pair.prompt_ids, ids) for pair in PAIRS for ids in (pair.chosen_ids, pair.rejected_ids)]
SETTINGS = ArmSettings(batch_size=4, gradient_accumulation=1, beta=0.5, gamma=0.1, warmup_share=0.0)


@pytest.fixture
def make(host: Callable[[str], Any], tmp_path: Path) -> Callable[..., ArmTrainer]:
    def build(model: str, settings: ArmSettings = SETTINGS, pairs: tuple[TokenPair, ...] = PAIRS) -> ArmTrainer:
        data = TokenData(pairs, 0, 0, 0)
        config = arm_config(settings, tmp_path / "work")
        parts = arm_parts(host(model), data, data, settings, config.world_size)
        return build_trainer(parts, settings, config, RunArguments(out=tmp_path))

    return build


def sum_of_logprobs(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """One sequence, no padding, every logit."""
    ids = torch.tensor([[*prompt, *response]])
    logprobs = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response)]).sum()


def logits_of(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """[T, V]: what the tokens of one response are predicted by."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits.float()[0]
    return logits[len(prompt) - 1 : -1]


def batch(trainer: ArmTrainer, pairs: tuple[TokenPair, ...] = PAIRS) -> dict[str, Tensor]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return dict(trainer.data_collator([{name: list(getattr(pair, name)) for name in names} for pair in pairs]))


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("full", [False, True])
def test_loss_and_gradient_are_those_of_one_sequence_at_a_time(
    family: str, full: bool, make: Callable[..., ArmTrainer], request: pytest.FixtureRequest
) -> None:
    trainer = make(request.getfixturevalue(family), ArmSettings(full=full, beta=0.5, gamma=0.1))
    model = trainer.model
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))
    inputs = batch(trainer)
    assert len(inputs["input_ids"]) == 3, "three prompts are run once each"
    assert int(inputs["rows"].max()) == 6, "a response that two pairs share is run once; another prompt makes another"
    check_step(trainer, inputs, [partial(sum_of_logprobs, model, *sequence) for sequence in SEQUENCES])


def check_step(trainer: ArmTrainer, inputs: dict[str, Tensor], rewards: Sequence[Callable[[], Tensor]]) -> None:
    """A batch's loss and gradient are those of these rewards, one for each of `SEQUENCES`."""
    model = trainer.model
    trainer.compute_loss(model, inputs).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    sums = torch.stack([reward() for reward in rewards])
    loss = arm_loss(sums[::2], sums[1::2], beta=0.5, gamma=0.1).mean()
    loss.backward()

    torch.testing.assert_close(trainer.compute_loss(model, inputs), loss, rtol=1e-5, atol=1e-5)
    assert found
    for name, weight in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)


AGAINST: dict[str, dict[str, Any]] = {
    "the base": {"reference": "base", "form": "shift"},
    "the mix as a product": {"through_mix": 0.5},
    "the mix as a shift": {"through_mix": 2.0, "form": "shift"},
}


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("what", AGAINST)
def test_loss_and_gradient_beside_the_base_are_those_of_one_sequence_at_a_time(
    what: str, full: bool, family: str, make: Callable[..., ArmTrainer], request: pytest.FixtureRequest
) -> None:
    settings = ArmSettings(full=full, beta=0.5, gamma=0.1, **AGAINST[what])
    trainer = make(request.getfixturevalue(family), settings)
    model, inputs = trainer.model, batch(trainer)
    with torch.no_grad():  # nothing is trained yet: the model is its base
        before = [logits_of(model, *sequence).log_softmax(-1) for sequence in SEQUENCES]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or full:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))

    def reward(sequence: tuple[tuple[int, ...], tuple[int, ...]], base: Tensor) -> Tensor:
        guide = logits_of(model, *sequence).log_softmax(-1)
        if what == "the base":
            scores = guide - base
        else:
            score = guide - base if settings.form == "shift" else guide
            scores = (base + settings.through_mix * score).log_softmax(-1)
        return scores.gather(1, torch.tensor(sequence[1])[:, None]).sum()

    check_step(trainer, inputs, [partial(reward, *both) for both in zip(SEQUENCES, before, strict=True)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True])
def test_an_untrained_guide_adds_nothing_to_its_base(
    full: bool, dtype: str, tiny: str, make: Callable[..., ArmTrainer]
) -> None:
    trainer = make(tiny, ArmSettings(reference="base", form="shift", full=full, dtype=dtype))
    rewards = trainer.compute_loss(trainer.model, batch(trainer), return_outputs=True)[1]
    for sums in rewards.values():
        torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-5)


def test_padding_and_company_change_no_reward(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    trainer = make(tiny)
    together = trainer.compute_loss(trainer.model, batch(trainer), return_outputs=True)[1]
    for index, pair in enumerate(PAIRS):
        alone = trainer.compute_loss(trainer.model, batch(trainer, (pair,)), return_outputs=True)[1]
        torch.testing.assert_close(together["chosen"][index], alone["chosen"][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together["rejected"][index], alone["rejected"][0], rtol=1e-5, atol=1e-5)


def test_the_head_runs_where_a_response_is_predicted_and_nowhere_else(
    tiny: str, make: Callable[..., ArmTrainer]
) -> None:
    trainer = make(tiny)
    seen = []
    head = trainer.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    inputs = batch(trainer)
    trainer.compute_loss(trainer.model, inputs)
    assert seen == [(len(inputs["token_ids"]), 262)]


def test_the_head_is_whole_again_afterwards_even_after_an_error() -> None:
    head = torch.nn.Linear(3, 5)
    hidden = torch.randn(2, 4, 3)
    with head_at(head, torch.ones(2, 4, dtype=torch.bool)):
        assert head(hidden).shape == (8, 5)
    with pytest.raises(IndexError), head_at(head, torch.ones(3, 9, dtype=torch.bool)):
        head(hidden)
    assert head(hidden).shape == (2, 4, 5)


def test_there_is_no_reference_model_and_only_the_adapter_learns(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    trainer = make(tiny)
    assert not hasattr(trainer, "ref_model")
    learns = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert learns
    assert all("lora_" in name for name in learns)
    assert not any("lm_head" in name for name in learns)


def test_only_the_last_blocks_are_adapted_on_request(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    trainer = make(tiny, ArmSettings(lora_last_layers=1))
    learns = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert learns
    assert all(".layers.1." in name for name in learns)
    with pytest.raises(OptionError, match="has 2 blocks"):
        make(tiny, ArmSettings(lora_last_layers=3))


def test_layers_that_do_not_exist_are_refused(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    with pytest.raises(OptionError, match="lora_targets query_key_value"):
        make(tiny, ArmSettings(lora_targets=("query_key_value",)))


def test_what_trl_asks_of_a_config_does_not_stay(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    config = make(tiny, ArmSettings(full=True)).model.config
    assert config.num_labels == 2
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}


def test_pairs_come_in_the_order_of_training(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    pairs = tuple(TokenPair((1,), (40 + i,), (90,) * (i % 7) + (3,)) for i in range(40))
    settings = ArmSettings(batch_size=4, gradient_accumulation=2)
    batches = list(make(tiny, settings, pairs).get_train_dataloader())
    first = [dict(zip(batch["rows"].tolist(), batch["token_ids"].tolist(), strict=True)) for batch in batches]
    chosen = [batch["chosen_rows"].tolist() for batch in batches]
    found = [tokens[number] - 40 for tokens, numbers in zip(first, chosen, strict=True) for number in numbers]
    assert found == training_order(pairs, num_pairs=40, step_size=8, micro_size=4, seed=0, length=packed_length)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_adapter_drops_out_when_asked_to_and_the_base_never(
    dropout: float, make: Callable[..., ArmTrainer], tiny: str
) -> None:
    trainer = make(tiny, ArmSettings(lora_dropout=dropout))
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    trainer.model.train()
    losses = {float(trainer.compute_loss(trainer.model, batch(trainer)).detach()) for _ in range(4)}
    assert (len(losses) > 1) == (dropout > 0)
    chances = {part.p for part in trainer.model.modules() if isinstance(part, torch.nn.Dropout)}
    assert chances <= {dropout}


def test_gradient_accumulation_changes_nothing(tiny: str, make: Callable[..., ArmTrainer]) -> None:
    curves = [_curve(make, tiny, batch_size, accumulation) for batch_size, accumulation in ((4, 1), (2, 2), (1, 4))]
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[2] == pytest.approx(curves[0], rel=1e-4)


def _curve(make: Callable[..., ArmTrainer], model: str, batch_size: int, accumulation: int) -> list[float]:
    settings = ArmSettings(
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        beta=0.5,
        epochs=3,
        logging_steps=1,
        save_steps=0,
        learning_rate=0.05,
        warmup_share=0,
    )
    trainer = make(model, settings)
    Path(trainer.args.output_dir).mkdir(exist_ok=True)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["num_pairs"] for line in lines] == [4, 4, 4]
    return [line["loss"] for line in lines]
