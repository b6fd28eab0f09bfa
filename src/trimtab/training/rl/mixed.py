"""A guide trained by reinforcement through the mix that decoding draws from: base and guide together, the base frozen.

UniR (arXiv 2505.19075, ICML 2026): answers are sampled from the mix, and the clipped ratio is of the mix's
log-probabilities, while the gradient goes into the guide alone. The guide is a LoRA of the base here, so that the base
is the model with its adapter off, for sampling, for log-probabilities and for the KL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from trimtab.training.pairs.losses import mixed_logits
from trimtab.training.pairs.packing import Packed
from trimtab.training.rl.trainer import PolicyTrainer


class MixedTrainer(PolicyTrainer):
    """`PolicyTrainer` of a guide at `weight` in its `form`, beside its base; the other options are its own."""

    def __init__(self, *, weight: float, form: str, **options: Any) -> None:
        super().__init__(**options)
        self._mix = partial(mixed_logits, weight=weight, form=form)

    def _generate_single_turn(self, *given: Any) -> list[list[int]]:
        """TRL's answers, drawn from the mix."""
        plain = self.accelerator.unwrap_model(self.model)
        with _beside_base(plain, _BesideBase(plain, self._mix)):
            answers: list[list[int]] = super()._generate_single_turn(*given)
        return answers

    def _answer_logits(self, model: nn.Module, packed: Packed) -> Tensor:
        """[M, V] float32 of the mix, or of the base where the adapter is off; divided by the temperature."""
        logits = super()._answer_logits(model, packed)
        plain = self.accelerator.unwrap_model(model)
        if _is_off(plain):  # what the KL is to
            return logits
        with torch.no_grad(), plain.disable_adapter():
            base = super()._answer_logits(model, packed)
        # Both are divided already, and the mix is linear in them.
        return self._mix(logits, base)


class _BesideBase(LogitsProcessor):  # type: ignore[misc]  # transformers carries no types here
    """Mixes a generation's logits with those of the base, which reads the same tokens into a cache of its own."""

    def __init__(self, plain: PeftModel, mix: Any) -> None:
        self._plain, self._mix = plain, mix
        self._cache: Any = None
        self._mask: Tensor | None = None

    def begin(self, attention_mask: Tensor) -> None:
        """Read a new batch of prompts, padded where the mask [N, P] is 0."""
        self._cache, self._mask = None, attention_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[N, V]: the mix, from the adapted model's `scores` after `input_ids` [N, L]."""
        assert self._mask is not None
        num_new = input_ids.shape[1] - self._mask.shape[1]
        self._mask = torch.nn.functional.pad(self._mask, (0, num_new), value=1)
        fed = input_ids if self._cache is None else input_ids[:, -1:]
        positions = (self._mask.long().cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
        with self._plain.disable_adapter():
            output = self._plain(
                input_ids=fed,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = output.past_key_values
        mixed: Tensor = self._mix(scores, output.logits[:, -1])
        return mixed


@contextmanager
def _beside_base(plain: PeftModel, beside: _BesideBase) -> Iterator[None]:
    """Inside, what the model generates is drawn from the mix: TRL calls `generate` itself and takes no processor."""
    generate = plain.generate

    def mixed(*given: Any, attention_mask: Tensor, **options: Any) -> Any:
        beside.begin(attention_mask)
        return generate(
            *given, attention_mask=attention_mask, logits_processor=LogitsProcessorList([beside]), **options
        )

    plain.generate = mixed
    try:
        yield
    finally:
        del plain.generate


def _is_off(plain: PeftModel) -> bool:
    """Whether the model is as it was, its adapter off."""
    layer = next(layer for layer in plain.modules() if isinstance(layer, BaseTunerLayer))
    return bool(layer.disable_adapters)
