"""Why vLLM chose a token: a step's tables, kept in the worker while somebody asks, read by `tracing.traces`.

The offline engine runs one step at a time in its own process and asks after each, so the tables are those of the tokens
that it has just got. While nobody asks, nothing is kept and nothing is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from trimtab.answers import TokenTrace
from trimtab.core import Candidates
from trimtab.engines.vllm.network.layout import Reading
from trimtab.guides.arm import fit_width
from trimtab.mixing.rules import NEVER, Tilt, mix
from trimtab.mixing.sampling import final_policy
from trimtab.mixing.tracing import StepTensors, traces

Asked: TypeAlias = tuple[str, int, tuple[float, int, float, float], int]
"""vLLM's request id, the token it got, its temperature, top-k, top-p and min-p, the number of alternatives."""


@dataclass(slots=True)
class StepTables:
    """The base's logits and the guides' of the last step, with who was in it."""

    names: Sequence[str]
    readings: Sequence[Reading]
    """Where each guide is read."""
    watching: bool = False
    request_ids: Sequence[str] = ()
    """The requests that the rows belong to, where the model is told (Model Runner V2)."""
    _kept: tuple[Tensor, list[Tensor], Tensor, Tensor | None] | None = field(default=None, repr=False)

    def watch(self, on: bool) -> None:
        """Keep the tables of the steps to come, or stop and forget."""
        self.watching, self._kept = on, None

    def keep(self, base: Tensor, others: Sequence[Tensor], weights: Tensor, nameless: Tensor | None) -> None:
        """[N, V] float32 logits of the base, [N, V'] of each other block of rows, [N, guides] weights, [V] bool ids
        without a token.

        The base's are copied, because samplers write into what a model returns.
        """
        if self.watching:
            self._kept = base.clone(), list(others), weights, nameless

    @torch.inference_mode()
    def explain(self, asked: Sequence[Asked], request_ids: Sequence[str]) -> list[TokenTrace] | None:
        """The traces of some rows of the last step; None on a rank that has no logits."""
        if self._kept is None:
            return None
        base, others, weights, nameless = self._kept
        places = {request_id: row for row, request_id in enumerate(request_ids)}
        rows = torch.tensor([places[request_id] for request_id, *_ in asked], device=base.device)
        other_tables = [_normalised(table[rows], base.shape[1], nameless) for table in others]
        step = self._tensors([torch.log_softmax(base[rows], dim=-1), *other_tables], weights[rows])
        _, tokens, filters, rivals = zip(*asked, strict=True)
        temperature, top_k, top_p, min_p = (
            torch.tensor(column, device=base.device) for column in zip(*filters, strict=True)
        )
        final = final_policy(
            step.mixed, temperature=temperature.double(), top_k=top_k, top_p=top_p.double(), min_p=min_p
        )
        return traces(replace(step, final=final), tokens, range(len(asked)), rivals)

    def _tensors(self, tables: Sequence[Tensor], weights: Tensor) -> StepTensors:
        """The rows as the built-in engine's step has them: everything normalised, float32, at temperature 1."""
        logprobs = tables[0]
        ids = torch.arange(logprobs.shape[1], device=logprobs.device).expand(len(logprobs), -1)
        candidates = Candidates(ids, logprobs, complete=True)
        scores = [scores_of(reading, tables) for reading in self.readings]
        columns = [weights[:, number] for number in range(len(scores))]
        tilted = Tilt().policy(candidates, mix(logprobs, list(zip(scores, columns, strict=True))))
        guided = (weights != 0).any(dim=-1, keepdim=True)
        return StepTensors(
            logprobs,
            torch.where(guided, tilted, logprobs),
            dict(zip(self.names, scores, strict=True)),
            {name: column != 0 for name, column in zip(self.names, columns, strict=True)},
        )


class TraceExtension:
    """What the offline engine adds to vLLM's workers; it is mixed into their class."""

    model_runner: Any

    def watch_steps(self, on: bool) -> None:
        """See `StepTables.watch`."""
        self.model_runner.get_model().tables.watch(on)

    def explain_step(self, asked: Sequence[Asked]) -> list[TokenTrace] | None:
        """The traces of requests that got a token in the last step."""
        tables: StepTables = self.model_runner.get_model().tables
        on_v1 = getattr(self.model_runner, "input_batch", None)
        return tables.explain(asked, on_v1.req_ids if on_v1 is not None else tables.request_ids)


def _normalised(table: Tensor, width: int, nameless: Tensor | None) -> Tensor:
    """[N, width] float32 log-probabilities, the ids that no token has at −inf."""
    wide = fit_width(table.float(), width)
    return torch.log_softmax(wide if nameless is None else wide.masked_fill(nameless, NEVER), dim=-1)


def scores_of(reading: Reading, tables: Sequence[Tensor]) -> Tensor:
    """[N, V] scores of a guide from logits or log-probabilities [N, V] of every block of rows, the base's own first.

    As in `guides.arm`: a product's own; of a shift those less its reference's, 0 where the steered base is the
    reference and forbids, −inf where another reference does.
    """
    guide_table = tables[reading.own]
    if reading.reference is None:
        return guide_table
    reference = tables[reading.reference]
    return (guide_table - reference).masked_fill(torch.isneginf(reference), 0.0 if reading.reference == 0 else NEVER)
