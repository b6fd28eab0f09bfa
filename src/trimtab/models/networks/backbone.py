"""The decoder stack of a transformers model, driven row by row; what is read off its states is another's affair."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from trimtab.core import ModelSession
from trimtab.errors import CompatibilityError
from trimtab.models.adapters.row_lora import routed
from trimtab.models.forward.row_cache import Layout, RowCache
from trimtab.models.forward.trunk import RowAdapter, Trunk, TrunkSession
from trimtab.models.networks.kinds import cache_argument, decoder_of, longest, reaches, refusing
from trimtab.models.quantize.layers import packed_bytes
from trimtab.models.trained_on import ModelFacts


class Backbone:
    """Token ids to states, with a cache whose rows have their own length. A causal model adds the `head`.

    It takes the module over: from here on the module is in evaluation mode (no dropout) and none of its weights ask for
    a gradient, also for whoever else holds it. Weights, buffers and config stay as they were.
    """

    def __init__(self, module: Any) -> None:
        module.eval().requires_grad_(False)
        self.module = module
        self.name = str(module.config.name_or_path)
        with refusing(module):
            self._decoder = decoder_of(module)
            self._cache_argument = cache_argument(self._decoder)
            self.config = self._decoder.config.get_text_config()
            self.reaches = reaches(self.config)
            """Kind of attention layer -> how far back it sees; the kind is "" where one mask does for all layers."""
            self._held = longest(self._decoder)
            self.vocab_size = int(module.get_input_embeddings().weight.shape[0])
            self.num_embeddings = self.vocab_size
            """Ids that it can be fed, from 0 on; a causal model's output may be wider or narrower."""
            self.hidden_size = int(self.config.hidden_size)

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.get_input_embeddings().weight.device)

    @cached_property
    def weight_bytes(self) -> int:
        """What a forward pass reads of weights: all but the table of embeddings, of which it reads a row a token."""
        table = self.module.get_input_embeddings().weight
        plain: int = sum(weight.nbytes for weight in self._decoder.parameters() if weight is not table)
        return plain + packed_bytes(self._decoder)

    @cached_property
    def token_bytes(self) -> int:
        """What one token of one row takes in the cache: read off one forward pass over one token."""
        cache, layout = RowCache(), Layout.extend([0], [0], 1, self.device)
        cache.begin(layout)
        self.forward(torch.zeros(1, 1, dtype=torch.int64, device=self.device), layout, cache, [])
        return cache.token_bytes

    @property
    def max_length(self) -> int | None:
        return self._held

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
        positions = layout.positions
        if self._held is not None:
            positions = positions.clamp(max=self._held - 1)  # what pads a row may stand past the end of the context
        with routed(adapters, (token_ids.shape[0], token_ids.shape[1])):
            return self._pass(token_ids, positions, layout, cache)

    def head(self, hidden: Tensor, adapters: Sequence[tuple[RowAdapter, list[int]]] = ()) -> Tensor:
        """[N, D] states -> [N, V] float32 log-probabilities. Raises CompatibilityError for a model without any."""
        raise CompatibilityError(f"A {type(self.module).__name__} gives states and no log-probabilities.")

    def describe(self) -> ModelFacts:
        """What tells these weights from others: see `describe`."""
        return describe(self.module, self.vocab_size)

    @contextlib.contextmanager
    def shortened(self, windows: Collection[str], length: int) -> Iterator[None]:
        """Let the windows that the config names so be of this length for a while, on the model's side and on this."""
        before = {name: getattr(self.config, name) for name in windows}
        try:
            self._set_windows(dict.fromkeys(windows, length))
            yield
        finally:
            self._set_windows(before)

    def hold(self, length: int) -> None:
        """Let no row be longer than this."""
        self._held = length

    @torch.inference_mode()
    def states(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """[B, Q] ids at [B, Q] positions -> [B, Q, D] states after the final norm, of rows that begin here.

        The cache is empty, and says that the longest row ends where the largest position stands.
        """
        size, width = token_ids.shape
        layout = Layout.extend(range(size), [0] * size, width, self.device)
        return self._pass(token_ids, positions, layout, _SeeminglyFull(int(positions.max()) + 1 - width))

    def _pass(self, token_ids: Tensor, positions: Tensor, layout: Layout, cache: Cache) -> Tensor:
        """[B, Q] ids at [B, Q] positions -> [B, Q, D], with the masks of a layout."""
        output = self._decoder(
            input_ids=token_ids,
            attention_mask=self._masks(layout),
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: cache},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _set_windows(self, windows: Mapping[str, int]) -> None:
        for name, length in windows.items():
            setattr(self.config, name, length)
        self.reaches = reaches(self.config)

    def _masks(self, layout: Layout) -> Tensor | dict[str, Tensor]:
        """What each query may see, as numbers to be added: one conversion here instead of one in each layer."""
        lowest = torch.finfo(self.module.dtype).min
        masks = {
            kind: torch.zeros_like(seen, dtype=self.module.dtype).masked_fill_(~seen, lowest)
            for kind, seen in ((kind, layout.visible(reach)) for kind, reach in self.reaches.items())
        }
        return masks.get("", masks)


class _SeeminglyFull(DynamicCache):  # type: ignore[misc]  # transformers is not typed here
    """An empty cache that says that so many tokens are in it, as one does whose longest row has them."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def get_seq_length(self, *_: object, **__: object) -> int:
        return self._length


def describe(module: Any, vocab_size: int) -> ModelFacts:
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
