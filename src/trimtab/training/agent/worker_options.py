"""Where an agent's episodes are rolled out: in this process, or on Ray actors."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

from trimtab.errors import MissingExtraError, OptionError, naming


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How many workers roll out, on which cluster, and what each claims of a node."""

    count: int = 0
    """0: roll out in this process."""
    address: str | None = None
    """A Ray cluster's, as in `ray.init`; None: one is started on this machine."""
    cpus: float = 1.0
    gpus: float | None = None
    """None: a GPU each, or an equal part of one where there are fewer."""

    def check(self, *, is_loaded: bool) -> None:
        """Raise OptionError for what cannot be used; `is_loaded`: the model is not a name but a loaded one."""
        if self.count < 0:
            raise naming(
                OptionError, "{workers} is {0}; give a whole number from 0 (0: roll out in this process).", self.count
            )
        if self.address is not None and not self.count:
            raise naming(OptionError, "{ray_address} is of no use without {workers}; give how many.")
        claims = (self.cpus, self.gpus)
        if claims != (1.0, None) and not self.count:
            raise naming(OptionError, "{worker_cpus} and {worker_gpus} are of no use without {workers}; give how many.")
        gpus_fit = self.gpus is None or 0 <= self.gpus < math.inf
        if not (math.isfinite(self.cpus) and self.cpus > 0 and gpus_fit):
            raise naming(
                OptionError,
                "{worker_cpus} is {0} and {worker_gpus} {1}; give finite numbers, above 0 and at least 0.",
                *claims,
            )
        if self.count and is_loaded:
            raise OptionError("Workers load the model themselves; give its name or directory, not a loaded model.")
        if self.count and importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray", "ray", "Rolling out on workers")
