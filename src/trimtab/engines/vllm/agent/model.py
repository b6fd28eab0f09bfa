"""An accept-reject agent inside vLLM: the base as vLLM runs it, and a verdict on every token before it counts.

MARA's decoding (arXiv 2505.19743), the same as the built-in engine's, on Model Runner V2: each step feeds one candidate
a request, the agent reads the state after it, and vLLM keeps or takes back its key and value. So a candidate costs a
step of the engine, where the built-in engine looks at several in one pass. What it does not do: other rules than
`FirstAccepted`, other guides in the same engine, log-probabilities, and what vLLM denies diffusion models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from trimtab.engines.vllm.admission import row_of
from trimtab.engines.vllm.agent.requests import neutralise
from trimtab.engines.vllm.agent.sampler import AgentSampler
from trimtab.engines.vllm.agent.settings import MOST_CANDIDATES, EngineBase, read_agent
from trimtab.engines.vllm.agent.settings import check_agent_engine as check_agent_engine
from trimtab.engines.vllm.agent.walks import Walks
from trimtab.engines.vllm.manifest import Manifest
from trimtab.errors import OptionError
from trimtab.mixing.rules import NEVER

log = logging.getLogger(__name__)


class TrimtabAgentForCausalLM(nn.Module):
    """The base alone; the agent belongs to `AgentState`, which reads it in float32 and keeps it so.

    The base's layers keep their own names, so that a quantised checkpoint's exceptions still name them.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self._manifest = Manifest.of(config)
        base_config = self._manifest.base_config(config)
        self.base = init_vllm_registered_model(vllm_config, hf_config=base_config, prefix=prefix)
        self._states: Tensor | None = None

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.base.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """[T] ids and positions -> [T, D] states."""
        states: Tensor = self.base(input_ids, positions, intermediate_tensors, inputs_embeds)
        return states

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """[N, D] -> [N, V] logits, −inf for ids that no token has; the states are kept for `take_states`."""
        self._states = hidden_states
        logits: Tensor | None = self.base.compute_logits(hidden_states)
        if logits is not None:
            for first, end in self._manifest.nameless:
                logits[:, first:end] = NEVER
        return logits

    def take_states(self) -> Tensor:
        """[N, D]: the states of the last `compute_logits`."""
        states, self._states = self._states, None
        assert states is not None, "vLLM asks for logits before it samples"
        return states

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights((f"base.{name}", weight) for name, weight in weights)
        return loaded

    @staticmethod
    def get_model_state_cls() -> type[AgentState]:
        """Model Runner V2's hook."""
        return AgentState


class AgentState(DefaultModelState):  # type: ignore[misc]
    """Model Runner V2's account of the requests, and the agent."""

    num_new_sampled_tokens_per_step = 0
    """No token is drawn beside the candidates."""

    def __init__(self, vllm_config: VllmConfig, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        model_config = vllm_config.model_config
        manifest = Manifest.of(model_config.hf_config)
        self._defaults = manifest.weights
        base = EngineBase(model_config.hf_text_config.hidden_size, str(model_config.model), torch.device(device))
        with set_default_torch_dtype(torch.float32):  # whatever the base's is while vLLM loads
            self._agent = read_agent(manifest, base)
        self._walks = Walks(
            self.max_num_reqs,
            self._agent.selection,
            last_id=_last_id(model_config.hf_text_config),
            seed=model_config.seed,
            device=device,
        )

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        neutralise(params)
        (threshold,) = row_of(params.extra_args, self._defaults)
        try:
            self._agent.selection.rule.check_weight(threshold)
        except OptionError:
            log.exception("a request with such a threshold has reached a worker; it runs at the default one")
            (threshold,) = self._defaults.values()
        self._walks.admit(req_index, threshold, min(max(params.top_k, 0), MOST_CANDIDATES), params.top_p)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """vLLM would ask for logits after candidates alone; the first ones are chosen after the prompt."""
        input_batch.logits_indices = (input_batch.query_start_loc[1 : input_batch.num_reqs + 1] - 1).to(torch.int64)
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs

    def custom_sampler(self, sampler: Any) -> tuple[AgentSampler, None]:
        """What takes the place of vLLM's sampler, and of its rejection sampler."""
        return AgentSampler(self.model, self._agent.open(), self._walks, sampler.req_states), None


def _last_id(config: Any) -> int:
    """An end-of-sequence id of a model; 0 where it has none."""
    ids = getattr(config, "eos_token_id", None)
    if isinstance(ids, list | tuple):
        ids = ids[0] if ids else None
    return 0 if ids is None else int(ids)
