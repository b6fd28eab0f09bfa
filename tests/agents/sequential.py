"""MARA's decoding as the paper describes it: one row, one candidate at a time. Slow, and plain enough to be read.

It stands on transformers alone (its cache, its filters) and shares nothing with the decoder but the agent's network and
the random numbers. `benchmarks/agent.py` measures against it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from trimtab.mixing.noise import race_times, step_key


@dataclass
class Sequential:
    """A model, an agent's network and how candidates are chosen among; `rule` is first, last, random or most.

    `last` is `first` with training's fall-back.
    """

    module: Any
    network: nn.Module
    eos_ids: frozenset[int]
    rule: str = "first"
    threshold: float = 0.5
    top_k: int = 40
    top_p: float = 0.95
    crops: bool = True
    """Whether the cache can forget its last column; one with sliding windows cannot, and is copied instead."""
    num_forwards: int = 0

    @torch.inference_mode()
    def answer(
        self, prompt: Sequence[int], max_new_tokens: int, *, seed: int = 0, ignore_eos: bool = False
    ) -> list[int]:
        """The ids of the answer, an end-of-sequence id included."""
        cache = DynamicCache(config=self.module.config)
        output = self._feed(prompt, cache)
        answer: list[int] = []
        while True:
            candidates = self._candidates(output.logits[0, -1])
            key = step_key(seed, len(answer))
            token, output = self._choose(candidates, len(prompt) + len(answer), cache, output, key)
            answer.append(token)
            if len(answer) == max_new_tokens or (token in self.eos_ids and not ignore_eos):
                return answer

    def _candidates(self, logits: torch.Tensor) -> list[int]:
        """The survivors of top-k and top-p, by falling probability; of equals the lower id first."""
        scores = torch.log_softmax(logits.float(), -1)[None]
        filters = LogitsProcessorList([TopKLogitsWarper(self.top_k), TopPLogitsWarper(self.top_p)])
        kept = filters(torch.zeros(1, 1, dtype=torch.long), scores)[0]
        order = kept.sort(descending=True, stable=True).indices
        return order[: int((kept > -torch.inf).sum())].tolist()

    def _choose(
        self, candidates: list[int], length: int, cache: DynamicCache, before: Any, key: int
    ) -> tuple[int, Any]:
        if len(candidates) == 1:
            return candidates[0], self._feed(candidates, cache)
        chances = []
        for token in candidates:
            tried = cache if self.crops else deepcopy(cache)
            output = self._feed([token], tried)
            chances.append(self._chance(output))
            if self.rule in ("first", "last") and chances[-1] > self.threshold:
                return token, output if self.crops else self._feed([token], cache)
            if self.crops:
                tried.crop(length - tried.get_seq_length())  # one column; how crop counts differs between versions
        [times] = race_times(torch.tensor([key]), torch.tensor([candidates])).tolist()
        token = candidates[self._pick(chances, times)]
        return token, self._feed([token], cache)

    def _pick(self, chances: list[float], times: list[float]) -> int:
        accepted = [index for index, chance in enumerate(chances) if chance > self.threshold]
        if not accepted:
            return len(chances) - 1 if self.rule == "last" else 0
        if self.rule == "most":
            return max(accepted, key=lambda index: chances[index])
        return min(accepted, key=lambda index: times[index])

    def _chance(self, output: Any) -> float:
        state = output.hidden_states[-1][0, -1].float()
        return float(torch.softmax(self.network(state[None]), dim=-1)[0, 1])

    def _feed(self, token_ids: Sequence[int], cache: DynamicCache) -> Any:
        self.num_forwards += 1
        ids = torch.tensor([list(token_ids)], device=self.module.device)
        newer = "cache" in inspect.signature(self.module.forward).parameters  # transformers 5.24 renamed it
        named = {"cache" if newer else "past_key_values": cache}
        return self.module(input_ids=ids, use_cache=True, output_hidden_states=True, **named)


def make_accept(network: nn.Module, states: torch.Tensor, share: float) -> None:
    """Set the last bias so that the network accepts this share of states [N, D] at ½."""
    with torch.no_grad():
        logits = network(states)
        odds = (logits[:, 1] - logits[:, 0]).sort().values
        edge = odds[min(int((1 - share) * len(odds)), len(odds) - 1)] if share else odds[-1] + 1
        network.output_linear.bias[1] -= edge - 1e-3
