"""The decoder stack of a transformers model, driven row by row; what is read off its states is another's affair."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.core import ModelSession
from trimtab.errors import CompatibilityError
from trimtab.models.lora import routed
from trimtab.models.rows import Layout, RowCache
from trimtab.models.trunk import RowAdapter, Trunk, TrunkSession


class Backbone:
    """Token ids to states, with a cache whose rows have their own length. A causal model adds the `head`."""

    def __init__(self, module: Any) -> None:
        module.eval().requires_grad_(False)
        self.module = module
        self._decoder = module.get_decoder() if hasattr(module, "get_decoder") else module.base_model
        self._cache_argument = cache_argument(self._decoder)
        self._config = module.config.get_text_config()
        self.windows = _windows(self._config)
        """Kind of attention layer -> its sliding window; the kind is "" where one mask does for all layers."""
        self.vocab_size = int(module.get_input_embeddings().weight.shape[0])
        self.num_embeddings = self.vocab_size
        """Ids that it can be fed, from 0 on; a causal model's output may be wider or narrower."""
        self.hidden_size = int(self._config.hidden_size)

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.get_input_embeddings().weight.device)

    @property
    def max_length(self) -> int | None:
        limit = getattr(self._config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def open_rows(
        self, beside: ModelSession | None, adapter: RowAdapter | None, *, tables: bool = True
    ) -> TrunkSession:
        """A session whose rows run with `adapter`; shares forward passes with `beside` if that is one of these weights,
        and with what else was opened beside it on these weights.

        Without `tables`, nobody will ask its rows for log-probabilities, so that a shared pass need not make them.
        """
        trunk = beside.trunk.of(self) if isinstance(beside, TrunkSession) else Trunk(self)
        return TrunkSession(trunk, adapter, tables=tables)

    @torch.inference_mode()
    def forward(
        self, token_ids: Tensor, layout: Layout, cache: RowCache, adapters: Sequence[tuple[RowAdapter, list[int]]]
    ) -> Tensor:
        """[B, Q] ids -> [B, Q, D] states after the final norm."""
        with routed(adapters):
            output = self._decoder(
                input_ids=token_ids,
                attention_mask=self._masks(layout),
                position_ids=layout.positions,
                use_cache=True,
                **{self._cache_argument: cache},
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """[N, D] states -> [N, V] float32 log-probabilities. Raises CompatibilityError for a model without any."""
        raise CompatibilityError(f"A {type(self.module).__name__} gives states and no log-probabilities.")

    def describe(self) -> dict[str, Any]:
        """What tells these weights from others: see `describe`."""
        return describe(self.module, self.vocab_size)

    def probe_states(self, token_ids: Tensor) -> Tensor:
        """[1, D]: the state after [1, 6] ids by our road (cache, positions, masks), in two passes.

        A longer row runs beside it: a model that counts positions by its cache would be right for one row alone.
        """
        cache = RowCache()
        beside = torch.cat([token_ids.flip(1), token_ids], dim=1)
        for lengths, width in (((0, 0), 5), ((4, 5), 2)):
            layout = Layout.extend([0, 1], lengths, width, self.device)
            cache.begin(layout)
            rows = [ids[start : start + width] for ids, start in zip((token_ids[0], beside[0]), lengths, strict=True)]
            hidden = self.forward(torch.stack(rows), layout, cache, [])
        return hidden[:1, -1]

    def _masks(self, layout: Layout) -> Tensor | dict[str, Tensor]:
        """What each query may see, as numbers to be added: one conversion here instead of one in each layer."""
        lowest = torch.finfo(self.module.dtype).min
        masks = {
            kind: torch.zeros_like(seen, dtype=self.module.dtype).masked_fill_(~seen, lowest)
            for kind, seen in ((kind, layout.visible(window)) for kind, window in self.windows.items())
        }
        return masks.get("", masks)


def cache_argument(decoder: Any) -> str:
    """The name by which a decoder takes its cache: transformers 5.24 calls it `cache`, and `past_key_values` before."""
    names = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in names and "past_key_values" not in names else "past_key_values"


def describe(module: Any, vocab_size: int) -> dict[str, Any]:
    """What tells a network's weights from others: shapes, and the mean of some norm weights (the same in any dtype)."""
    config = module.config.get_text_config()
    norms = [round(float(weight.float().mean()), 6) for _, weight in norm_weights(module)]
    return {
        "architecture": type(module).__name__,
        "num_layers": int(config.num_hidden_layers),
        "hidden_size": int(config.hidden_size),
        "vocab_size": vocab_size,
        "norms": norms[:: max(1, len(norms) // 8)],
    }


def norm_weights(module: Any) -> list[tuple[str, Any]]:
    """The weights of a network's norms, by name, in its own order."""
    return [
        (name, weight)
        for name, weight in module.named_parameters()
        if weight.ndim == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight")
    ]


def _windows(config: Any) -> dict[str, int | None]:
    """Kind of attention layer -> its sliding window; the kind is "" where a model takes one mask for all layers."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        return {"": int(window) if window else None}
    known: dict[str, int | None] = {"full_attention": None, "sliding_attention": int(window) if window else None}
    unknown = sorted(set(kinds) - set(known))
    if unknown:
        raise CompatibilityError(
            f"This model has layers of kind {', '.join(unknown)}, whose memory is not one column a token. "
            f"Accepted: {', '.join(known)}."
        )
    return known
