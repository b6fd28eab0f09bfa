"""What stands in for vLLM's sampler in an agent's engine: it keeps or takes back the one token that each request fed.

To vLLM a candidate is a diffusion canvas of one token: "sampled" where the agent accepts it, "rejected" where not, and
then the engine takes its key and value back. No log-probabilities, penalties or grammars: `agent_requests` refuses
them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from trimtab.core import Candidates, GuideSession
from trimtab.engines.vllm.agent.walks import Walks


class AgentSampler:
    """Called once a step with the logits of each request's last token; `model` hands over the states there."""

    penalties_state = SimpleNamespace(output_bin_counts=None)
    """vLLM reads it after each step; None: nothing is counted."""

    def __init__(self, model: Any, session: GuideSession, walks: Walks, req_states: Any) -> None:
        self._model = model
        self._session = session
        self._walks = walks
        self._req_states = req_states

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Nothing: `AgentState.add_request` has read them."""

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    def __call__(self, logits: Tensor, input_batch: Any) -> SamplerOutput:
        """`logits` [B, V]: after each request's last token of this step, whether prompt or candidate."""
        num_reqs, device = input_batch.num_reqs, logits.device
        fed = np.diff(input_batch.cu_num_logits_np[: num_reqs + 1]) > 0
        ends = input_batch.num_computed_prefill_tokens_np + input_batch.num_scheduled_tokens
        ready = ~fed & (ends[:num_reqs] >= input_batch.prefill_len_np[:num_reqs])
        slots = torch.from_numpy(np.asarray(input_batch.idx_mapping_np[:num_reqs], dtype=np.int64)).to(device)
        states = self._model.take_states()
        kept = torch.zeros(num_reqs, dtype=torch.bool, device=device)
        sampled = torch.zeros(num_reqs, 1, dtype=torch.int64, device=device)
        rows = torch.from_numpy(fed.nonzero()[0]).to(device)
        if len(rows):
            sampled[rows, 0] = self._walks.tokens(slots[rows])
            kept[rows] = self._walks.judge(slots[rows], self._scores(states[rows], sampled[rows]))
        new = (kept | torch.from_numpy(ready).to(device)).nonzero().squeeze(1)
        if len(new):
            self._walks.begin(slots[new], logits[new])
        self._req_states.draft_tokens[slots, 0] = self._walks.tokens(slots)
        taken_back = torch.from_numpy(fed).to(device) & ~kept
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=kept.to(torch.int32),
            num_rejected=taken_back.to(torch.int32),
        )

    def _scores(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """[N]: the agent's scores of tokens [N, 1] that led to states [N, D]."""
        unread = torch.zeros(token_ids.shape, dtype=torch.float32, device=states.device)
        return self._session.score(Candidates(token_ids, unread, states[:, None])).squeeze(1)
