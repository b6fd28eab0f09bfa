"""How the model that an agent steers is loaded, in this process or in a worker's."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from trimtab.core import LanguageModel
from trimtab.storage.loading import load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """How a model is loaded, here or by a worker; the arguments of `load_model`."""

    name: str
    dtype: str
    device: str | None
    trust_remote_code: bool
    revision: str | None

    def load(self) -> LanguageModel:
        """Load it."""
        log.info("loading %s", self.name)
        return load_model(
            self.name,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
        )
