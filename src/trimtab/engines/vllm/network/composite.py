"""The network of a packed directory: a base and its guides in one forward pass of vLLM, mixed in float32.

next token ∝ π_base · Π_i s_i^(w_i), the weights per request; s_i is π_i of a product (GenARM, arXiv 2410.08193,
equation 6) and π_i / π_ref of a shift (`mixing.forms`). Which networks run, and where each guide is read, is
`layout`'s. The mix is `mixing.rules`' own, applied to logits: a constant added to a row changes no policy, so nothing
has to be normalised first, and a row whose weights are all 0 keeps the base's logits bit for bit.

What it does not do: guides run at weight 0 as well, because a block of the cache without their keys would be handed to
the next request that begins alike. No pipeline parallelism.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model
from vllm.transformers_utils.config import get_config
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from trimtab.engines.vllm.admission import row_of
from trimtab.engines.vllm.manifest import Manifest
from trimtab.engines.vllm.network import rows, streams
from trimtab.engines.vllm.network.layout import Layout, Network
from trimtab.engines.vllm.network.notes import StepTables, scores_of
from trimtab.engines.vllm.processors import ROWS
from trimtab.guides.arm import fit_width
from trimtab.mixing.rules import NEVER, mix, tilt
from trimtab.models.adapters import files as adapter_files


class TrimtabForCausalLM(nn.Module):
    """Base and guides. Hidden states are wide rows (`rows`): [T, ΣD of every block of rows + the weights' columns]."""

    base: Any
    nameless: Tensor | None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self._model_config = vllm_config.model_config
        manifest = Manifest.of(self._model_config.hf_config)
        self.defaults = manifest.weights
        layout = Layout.of(manifest)
        self.networks, self._readings = layout.networks, layout.readings
        self.secondary_weights: list[DefaultModelLoader.Source] = []
        self._deltas: dict[str, adapter_files.Pairs] = {}
        self._sizes: list[int] = []  # of the states, block of rows by block
        for network in self.networks:
            self._add(vllm_config, network, manifest)
        vocab_size = manifest.base_config(self._model_config.hf_config).get_text_config().vocab_size
        self.register_buffer("nameless", _nameless(manifest, vocab_size), persistent=False)
        self.tables = StepTables(list(manifest.weights), self._readings)

    def _add(self, vllm_config: VllmConfig, network: Network, manifest: Manifest) -> None:
        if network.place == 0:
            config = manifest.base_config(self._model_config.hf_config)
        else:
            config = get_config(network.path, trust_remote_code=self._model_config.trust_remote_code)
            source = DefaultModelLoader.Source(network.path, revision=None, prefix=f"{network.name}.")
            self.secondary_weights.append(source)
        setattr(self, network.name, _submodel(vllm_config, config, network.name))
        if network.adapters:
            pairs = [adapter_files.read(Path(path)) for path in network.adapters]
            layers = vllm_config.compilation_config.static_forward_context
            streams.share(getattr(self, network.name), pairs, layers, prefix=network.name)
        if network.merged is not None:
            self._deltas[network.name] = adapter_files.read(Path(network.merged))
        self._sizes += [config.get_text_config().hidden_size] * network.blocks

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.base.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        guide_weights: Tensor | None = None,
    ) -> Tensor:
        """[T] ids and positions -> wide rows. `guide_weights` [T, guides] float32; None on Model Runner V1."""
        states: list[Tensor] = []
        for network in self.networks:
            ids, places = input_ids, positions
            if network.blocks > 1:
                ids, places = input_ids.repeat(network.blocks), positions.repeat(network.blocks)
            states += getattr(self, network.name)(ids, places).chunk(network.blocks)
        if guide_weights is None:
            guide_weights = self._weights_of_v1(len(input_ids), input_ids.device)
        return rows.join(states, guide_weights)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[N, wide] -> [N, V] float32 logits of the mixed policy; None where vLLM gathers them on another rank."""
        states, weights = rows.split(hidden_states, self._sizes, len(self._readings))
        tables: list[Tensor] = []
        for network in self.networks:
            network_states = states[network.place : network.place + network.blocks]
            logits = getattr(self, network.name).compute_logits(
                torch.cat(network_states) if len(network_states) > 1 else network_states[0]
            )
            if logits is not None:
                tables += logits.chunk(network.blocks)
        if not tables:
            return None
        base = tables[0].float()
        if self.nameless is not None:
            base = base.masked_fill(self.nameless, NEVER)
        self.tables.keep(base, tables[1:], weights, self.nameless)
        return self._mixed(base, tables, weights)

    def _mixed(self, base: Tensor, tables: list[Tensor], weights: Tensor) -> Tensor:
        """[N, V] from the base's logits and those of every block of rows, each [N, V']; weights [N, guides]."""
        wait = base.device.type == "cpu"  # asking a GPU would hold up the next step
        if wait and not bool(weights.any()):
            return base
        fitted = [base, *(fit_width(table.float(), base.shape[1]) for table in tables[1:])]
        parts = [(scores_of(reading, fitted), weights[:, number]) for number, reading in enumerate(self._readings)]
        return tilt(base, mix(base, parts, wait=wait), wait=wait)  # a row of zero weights gets the base plus 0

    def _weights_of_v1(self, num_tokens: int, device: torch.device) -> Tensor:
        """[T, guides]: each token's request found by where the requests of the batch begin."""
        table = getattr(self._model_config, ROWS, None)
        metadata = get_forward_context().attn_metadata
        if table is None or not metadata:  # a dummy run
            return torch.zeros(num_tokens, len(self._readings), dtype=torch.float32, device=device)
        starts = next(iter(metadata.values())).query_start_loc
        index = torch.searchsorted(starts[1:], torch.arange(num_tokens, device=device, dtype=starts.dtype), right=True)
        return torch.from_numpy(table).to(device)[index.clamp_(max=len(table) - 1)]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(self._named(weights))
        return loaded

    def _named(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The weights under the names of the parts, adapters added where they are merged."""
        others = {network.name for network in self.networks[1:]}
        for name, weight in weights:
            part, _, inner = name.partition(".")
            if part not in others:
                yield f"base.{name}", weight
                continue
            module = inner.removesuffix(".weight")
            pair = self._deltas.get(part, {}).get(module)
            if pair is not None:
                down, up = (side.to(weight.device) for side in pair)
                weight = (weight.float() + up @ down).to(weight.dtype)
            yield name, weight

    @staticmethod
    def get_model_state_cls() -> type[GuidedState]:
        """Model Runner V2's hook."""
        return GuidedState


class GuidedState(DefaultModelState):  # type: ignore[misc]
    """Model Runner V2's account of the requests: one row of weights for each, one for each token of a step."""

    def __init__(self, vllm_config: VllmConfig, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._defaults: Mapping[str, float] = model.defaults
        self._tables: StepTables = model.tables
        self._rows = np.zeros((self.max_num_reqs, len(self._defaults)), dtype=np.float32)
        # Of one address for good: captured graphs read it there.
        self._tokens = torch.zeros(self.max_num_tokens, len(self._defaults), dtype=torch.float32, device=device)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        self._rows[req_index] = row_of(params.extra_args if params else None, self._defaults)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        self._tables.request_ids = input_batch.req_ids
        inputs = super().prepare_inputs(input_batch, req_states)
        each = self._rows[input_batch.idx_mapping_np].repeat(input_batch.num_scheduled_tokens, axis=0)
        self._tokens[: len(each)].copy_(torch.from_numpy(each), non_blocking=True)
        return {**inputs, "guide_weights": self._tokens[: input_batch.num_tokens_after_padding]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "guide_weights": self._tokens[:num_tokens]}


def _submodel(vllm_config: VllmConfig, config: Any, prefix: str) -> nn.Module:
    with _own_window(vllm_config, config):
        model: nn.Module = init_vllm_registered_model(vllm_config, hf_config=config, prefix=prefix)
    return model


@contextmanager
def _own_window(vllm_config: VllmConfig, config: Any) -> Iterator[None]:
    """Attention layers take a model's one sliding window from the cache's settings, which are the base's."""
    text = config.get_text_config()
    uniform = getattr(text, "layer_types", None) is None
    before = vllm_config.cache_config.sliding_window
    vllm_config.cache_config.sliding_window = getattr(text, "sliding_window", None) if uniform else None
    try:
        yield
    finally:
        vllm_config.cache_config.sliding_window = before


def _nameless(manifest: Manifest, vocab_size: int) -> Tensor | None:
    """[V] bool: the ids that no token has; None where there are none."""
    if not manifest.nameless:
        return None
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    for first, end in manifest.nameless:
        mask[first:end] = True
    return mask
