"""Answers that share a row: the numbers of TRL's own pass, which gives each a row of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from trl import RLOOTrainer

from trimtab.training.rl.packing import pack
from trimtab.training.rl.train import RLSettings
from trimtab.training.rl.trainer import Panel, PolicyTrainer, rl_config, rl_parts, together
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.prompt_data import PromptIds
from trimtab.training.run.rating import Rater
from trimtab.training.run.rewards import AgentReward
from trimtab.training.run.trainer import build_trainer

SETTINGS = RLSettings(temperature=0.7, batch_size=4, gradient_accumulation=2, num_generations=2, lora_rank=2)


def trainer_of(host: Any, workspace: Path) -> PolicyTrainer:
    config = rl_config(SETTINGS, workspace, [1.0])
    rater = Rater([AgentReward("a", lambda prompts, texts: [0.0] * len(texts))])
    panel = Panel(host, [PromptIds("a", (1, 40)), PromptIds("b", (1, 41))], rater, ["a"])
    parts = rl_parts(host, panel, SETTINGS, config.generation_batch_size)
    trainer = build_trainer(parts, SETTINGS, config, RunArguments(out=workspace))
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return trainer


def batch() -> tuple[Tensor, Tensor, int]:
    """Two prompts of other lengths, one of them a single token, with answers of other lengths, out of order."""
    generator = torch.Generator().manual_seed(0)
    long = [1, *torch.randint(6, 200, (19,), generator=generator).tolist()]
    prompts, lengths = [long, [1], long, long, [1]], [7, 1, 24, 3, 12]
    width, columns = len(long), max(lengths)
    ids, mask = torch.zeros(5, width + columns, dtype=torch.long), torch.zeros(5, width + columns, dtype=torch.long)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        answer = torch.randint(6, 200, (length,), generator=generator)
        ids[row, width - len(prompt) : width] = torch.tensor(prompt)
        ids[row, width : width + length] = answer
        mask[row, width - len(prompt) : width + length] = 1
    return ids, mask, columns


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_numbers_and_the_gradient_are_those_of_rows_of_their_own(
    family: str, chunk: int | None, host: Callable[[str], Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Gemma 2 has soft caps and a window of 16 tokens, shorter than these rows."""
    trainer = trainer_of(host(request.getfixturevalue(family)), tmp_path)
    ids, mask, columns = batch()
    real = mask[:, -columns:].bool()
    weights = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for method in (PolicyTrainer._get_per_token_logps_and_entropies, RLOOTrainer._get_per_token_logps_and_entropies):
        trainer.model.zero_grad()
        logps, entropies, _ = method(trainer, trainer.model, ids, mask, columns, chunk, compute_entropy=True)
        (logps * weights * real).sum().backward()
        gradients = [weight.grad.clone() for weight in trainer.model.parameters() if weight.requires_grad]
        found.append((logps * real, entropies * real, *gradients))
    assert len(found[0]) > 10
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_prompt_is_run_once_for_all_its_answers() -> None:
    ids, mask, columns = batch()
    packed = pack(ids, mask, columns)
    # 19 tokens shared, then the prompt's last token and all but the last of 7, 24 and 3.
    assert packed.input_ids.shape == (2, 19 + 7 + 24 + 3)
    assert int(packed.predicting.sum()) == len(packed.token_ids) == 7 + 1 + 24 + 3 + 12
    restored = packed.unpack(packed.token_ids, (5, columns))
    assert torch.equal(restored, ids[:, -columns:] * mask[:, -columns:])


def test_an_answer_sees_its_prompt_and_itself_alone() -> None:
    ids = torch.tensor([[1, 5, 7, 8], [1, 5, 9, 6]])
    packed = pack(ids, torch.ones_like(ids), 2)
    assert packed.input_ids.tolist() == [[1, 5, 7, 5, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 1, 2]]
    assert packed.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_a_steps_rows_are_regrouped_and_none_is_lost() -> None:
    prompts, rows = torch.tensor([[3], [1], [2], [1], [3], [2]]), torch.arange(6)
    batches = [{"prompt_ids": prompts[:3], "row": rows[:3]}, {"prompt_ids": prompts[3:], "row": rows[3:]}]
    first, second = together(batches)
    assert (first["prompt_ids"].flatten().tolist(), second["prompt_ids"].flatten().tolist()) == ([1, 1, 2], [2, 3, 3])
    assert sorted([*first["row"].tolist(), *second["row"].tolist()]) == list(range(6))
    assert torch.equal(
        torch.cat([first["prompt_ids"], second["prompt_ids"]]), prompts[torch.cat([first["row"], second["row"]])]
    )
