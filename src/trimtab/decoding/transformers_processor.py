"""Guides inside transformers' own `generate`: a logits processor whose guides keep caches of their own.

    processor = GuidanceProcessor(model, {"helpful": guide}, attention_mask=inputs["attention_mask"])
    model.module.generate(**inputs, logits_processor=[processor], do_sample=True)

Greedy search, sampling and beam search work, on left-padded batches too. transformers calls a processor with the ids so
far; rows that beam search reorders are found again by their content, and their caches forked or freed. Any other jump
(a new call, assisted decoding) starts afresh, so no state is ever left over. `Decoder` is faster: there a guide that is
an adapter shares the base's forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.core import Candidates, Guide, GuideSession, LanguageModel, TokenIds
from trimtab.errors import OptionError, unknown_name
from trimtab.mixing.forms import check_negative, forms_of
from trimtab.mixing.rules import Tilt, mix


class GuidanceProcessor:
    """A transformers logits processor that returns the guided policy's log-probabilities.

    `model` is the language model being generated from (for its vocabulary, and as the base of adapters). `weights` is
    one mapping for all prompts, or one for each; a guide left out runs at its own weight. `attention_mask` [B, L] says
    which ids of a padded batch are real; without it no padding is assumed.
    """

    supports_continuous_batching = False
    """What transformers asks of a processor: there rows come and go in one long sequence, and none is found again."""

    def __init__(
        self,
        model: LanguageModel,
        guides: Mapping[str, Guide],
        *,
        weights: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        attention_mask: Tensor | None = None,
    ) -> None:
        self._model = model
        self._guides = {name: guide.bind(model) for name, guide in guides.items()}
        for name, guide in self._guides.items():
            if guide.selection is not None or guide.needs_hidden or guide.needs_context:
                raise OptionError(
                    f"Guide {name} reads the model's states, which transformers does not show to a logits processor. "
                    "Use trimtab's Decoder."
                )
        self._attention_mask = None if attention_mask is None else attention_mask.bool().cpu()
        rows = [weights or {}] if weights is None or isinstance(weights, Mapping) else list(weights)
        self._weights = [self._full_weights(row) for row in rows]
        self._sessions: dict[str, GuideSession] = {}
        self._rows: list[list[int]] = []

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """ids so far [N, L] and scores [N, V] (logits or log-probabilities) -> log-probabilities [N, V] float32."""
        rows: list[list[int]] = input_ids.tolist()
        sources = self._sources(rows)
        if sources is None:
            self._start(rows)
        else:
            self._go_on(rows, sources)
        self._rows = rows
        base = torch.log_softmax(scores.float(), dim=-1)
        ids = torch.arange(base.shape[1], device=base.device).expand(len(base), -1)
        candidates = Candidates(ids, base, complete=True)
        parts = [
            (session.score(candidates), self._column(name, len(rows), base)) for name, session in self._sessions.items()
        ]
        return Tilt().policy(candidates, mix(base, parts)) if parts else base

    def _full_weights(self, given: Mapping[str, float]) -> dict[str, float]:
        for name, weight in given.items():
            if name not in self._guides:
                raise unknown_name("guide", name, self._guides)
            if not math.isfinite(weight):
                raise OptionError(f"The weight of guide {name} is {weight}; give a finite number.")
        weights = {name: float(given.get(name, guide.weight)) for name, guide in self._guides.items()}
        check_negative(weights, forms_of(self._guides), temperature=None, plausibility=None)
        return weights

    def _column(self, name: str, num_rows: int, base: Tensor) -> Tensor:
        """[N] weights of a guide: one a prompt, repeated for its beams."""
        values = [row[name] for row in self._weights]
        if num_rows % len(values):
            raise OptionError(f"There are weights for {len(values)} prompts and {num_rows} rows; give one for each.")
        return torch.tensor(values, device=base.device).repeat_interleave(num_rows // len(values))

    def _sources(self, rows: list[list[int]]) -> list[int] | None:
        """For each row, the old row that it continues by one token; None if some row continues none."""
        found: list[int] = []
        for index, row in enumerate(rows):
            same_place = index < len(self._rows) and self._rows[index] == row[:-1]
            source = index if same_place else next((i for i, old in enumerate(self._rows) if old == row[:-1]), None)
            if source is None:
                return None
            found.append(source)
        return found

    def _start(self, rows: list[list[int]]) -> None:
        prompts = self._unpadded(rows)
        self._sessions = {}
        for name, guide in self._guides.items():
            if any(weights[name] != 0 for weights in self._weights):
                session = guide.open()
                session.admit([guide.prompt_ids(prompt, prompt) for prompt in prompts])
                self._sessions[name] = session

    def _go_on(self, rows: list[list[int]], sources: list[int]) -> None:
        last = torch.tensor([row[-1] for row in rows])
        for session in self._sessions.values():
            if sources != list(range(session.num_rows)):
                session.keep(torch.tensor(sources))
            session.advance(torch.arange(len(rows)), last)

    def _unpadded(self, rows: list[list[int]]) -> list[TokenIds]:
        mask = self._attention_mask
        if mask is None:
            self._refuse_hidden_padding(rows)
            return list(rows)
        if len(rows) % len(mask) or mask.shape[1] > len(rows[0]):
            raise OptionError(
                f"attention_mask is {tuple(mask.shape)} and the ids are ({len(rows)}, {len(rows[0])}). Give the mask "
                "that goes with the ids passed to generate, and a new processor for each batch."
            )
        real = mask.repeat_interleave(len(rows) // len(mask), dim=0).tolist()
        return [
            [token for at, token in enumerate(row) if at >= len(keep) or keep[at]]
            for row, keep in zip(rows, real, strict=True)
        ]

    def _refuse_hidden_padding(self, rows: list[list[int]]) -> None:
        """Padding cannot be told from ids (pad may equal bos or eos); refuse a batch that looks padded."""
        pad = getattr(getattr(self._model.tokenizer, "hf", None), "pad_token_id", None)
        starts = [row[:1] == [pad] for row in rows]
        if pad is not None and (any(row[:2] == [pad, pad] for row in rows) or (any(starts) and not all(starts))):
            raise OptionError(
                "This batch looks left-padded, and padding cannot be told from ids. "
                'Give attention_mask=inputs["attention_mask"].'
            )
