"""A model by name and how it is loaded, as one value: for an engine, or for a worker that loads it elsewhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.storage.loading import load_model

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The arguments of `load_model`, kept until the model is needed."""

    name: str
    dtype: str = "auto"
    device: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    quantize: str | None = None

    def load(self) -> HFModel:
        """Load it."""
        log.info("loading %s", self.name)
        return load_model(
            self.name,
            dtype=self.dtype,
            quantize=self.quantize,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
        )
