"""What is reported about distillation: how far the student is from the target, beside how far the base is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.statistics import mean_interval
from trimtab.storage.card_values import BASE_KL, KL
from trimtab.training.pairs.losses import sequence_logprobs
from trimtab.training.run.identity import Facts
from trimtab.training.run.meter import Meter

if TYPE_CHECKING:
    from transformers import Trainer

    from trimtab.training.pairs.packing import Packed


class KLMeter(Meter):
    """Collects the KL of answers from the target to student and base, and makes lines of the curve of them."""

    unit = "answers"

    def __init__(self) -> None:
        super().__init__()
        self.held: Tensor | None = None
        """[N, 3] of the last evaluation: KL of the student, of the base, tokens of each answer."""

    def add(self, trainer: Trainer, mine: Tensor, base: Tensor, rows: Packed, num_tokens: int) -> None:
        """[M] nats of the tokens of a batch's answers, and how many tokens went through the model."""
        count = int(rows.rows.max()) + 1
        columns = [mine.detach(), base.detach(), torch.ones_like(mine)]
        table = torch.stack([sequence_logprobs(column, rows.rows, count) for column in columns], dim=1)
        self.collect(trainer, table, num_tokens)

    def evaluated(self, table: Tensor) -> None:
        """Keep the evaluation's answers."""
        self.held = table

    def measures(self, table: Tensor) -> dict[str, float]:
        """From [N, 3]: `loss` in nats a token; `kl` and `base_kl` in nats an answer; tokens an answer."""
        mine, base, tokens = table.double().sum(dim=0).tolist()
        return {
            "loss": mine / tokens,
            "kl": mine / len(table),
            "base_kl": base / len(table),
            "base_loss": base / tokens,
            "length": tokens / len(table),
        }

    def facts(self) -> Facts:
        """The last evaluation for `guide.json`: nats an answer with their 95 % intervals over prompts."""
        assert self.held is not None
        measured = self.measures(self.held)
        found: dict[str, float | int] = {"num_eval_prompts": len(self.held)}
        for name, column in ((KL, 0), (BASE_KL, 1)):
            found[name] = measured[name.removeprefix("eval_")]
            if len(self.held) > 1:
                interval = mean_interval(self.held[:, column].tolist())
                found |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        base = measured["base_kl"]
        return {
            **found,
            "eval_loss": measured["loss"],
            "eval_base_loss": measured["base_loss"],
            **({"eval_share_learnt": 1 - measured["kl"] / base} if base else {}),
        }
