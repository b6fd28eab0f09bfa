"""The classes through which vLLM asks about a request's parameters, one for each set of guides.

vLLM names such a class by a text and asks it without an engine at hand, so the text itself says which guides there are:
`class_path` writes it, and reading that attribute of this module makes the class. On Model Runner V1 the class also
keeps the weights of the rows, which `composite` reads; on V2 a model state does (`composite`). Neither touches logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from trimtab.engines.vllm.admission import check_weights, row_of

ROWS = "trimtab_rows"
"""The attribute of a worker's model config that holds the weights [max_num_seqs, guides] of V1's rows."""


def class_path(defaults: Mapping[str, float], forms: Mapping[str, str | None], *, v2: bool) -> str:
    """The text for `logits_processors`: guides, their default weights and their forms, for one of the two runners."""
    content = json.dumps([dict(defaults), dict(forms)]).encode().hex()
    return f"{__name__}:{'V2' if v2 else 'V1'}_{content}"


def __getattr__(name: str) -> type:
    runner, _, content = name.partition("_")
    if runner not in _MAKERS or not content:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _made(name, runner, content)


@lru_cache
def _made(name: str, runner: str, content: str) -> type:
    return _MAKERS[runner](name, *json.loads(bytes.fromhex(content)))


def _v2_class(name: str, defaults: Mapping[str, float], forms: Mapping[str, str | None]) -> type:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

    class Admission(LogitsProcessor):  # type: ignore[misc]
        """Refuses wrong weights in the front end; changes no logits."""

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            check_weights(sampling_params.extra_args, defaults, forms, sampling_params.temperature)

        def add_request(self, req_idx: int, sampling_params: Any) -> bool:
            return False

        def apply(self, logits: Any, ctx: Any) -> Any:
            return logits

    return _named(Admission, name)


def _v1_class(name: str, defaults: Mapping[str, float], forms: Mapping[str, str | None]) -> type:
    import numpy as np
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    class Weights(LogitsProcessor):  # type: ignore[misc]
        """Refuses wrong weights in the front end, keeps those of the rows in the worker; changes no logits."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            num_rows = vllm_config.scheduler_config.max_num_seqs
            self.rows = np.zeros((num_rows, len(defaults)), dtype=np.float32)
            setattr(vllm_config.model_config, ROWS, self.rows)

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            check_weights(sampling_params.extra_args, defaults, forms, sampling_params.temperature)

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: Any) -> None:
            if batch_update is None:
                return
            for index in batch_update.removed:
                self.rows[index] = 0.0
            for index, params, _, _ in batch_update.added:
                self.rows[index] = row_of(params.extra_args, defaults)
            for source, target, direction in batch_update.moved:
                if direction == MoveDirectionality.SWAP:
                    self.rows[[source, target]] = self.rows[[target, source]]
                else:
                    self.rows[target] = self.rows[source]

        def apply(self, logits: Any) -> Any:
            return logits

    return _named(Weights, name)


def _named(made: type, name: str) -> type:
    made.__name__ = made.__qualname__ = name
    return made


_MAKERS = {"V1": _v1_class, "V2": _v2_class}
