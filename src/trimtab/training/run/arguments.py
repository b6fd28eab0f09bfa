"""Where a run goes, how it begins, and who is told of it: what every `train_...` function is given beside its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimtab.training.run import checkpoints
from trimtab.training.run.settings import TrainProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """The arguments of a run that no result depends on, made once of a public function's keywords and handed on whole.

    What a result does depend on are the run's settings (`settings.RunSettings`), its model and its data.
    """

    out: Path
    """The directory to write."""
    resume: bool = False
    """Continue an interrupted run, or report one that is finished."""
    overwrite: bool = False
    """Start anew where there is something already."""
    trust_remote_code: bool = False
    """Let the model run its own code."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    push_to_hub: str | None = None
    """A repository to upload the finished directory to."""
    progress: Callable[[TrainProgress], None] | None = None
    """Called after each step and with each line of the curve."""

    @property
    def workspace(self) -> Path:
        """The directory in which the run works until it is finished."""
        return checkpoints.workspace_of(self.out)

    @property
    def is_finished(self) -> bool:
        """Whether the run to be continued came to its end before."""
        return self.resume and self.out.exists() and not self.workspace.exists()

    def check(self) -> None:
        """Raise OutputExistsError where something is in the way and the caller did not say what to do with it."""
        checkpoints.check_output(self.out, resume=self.resume, overwrite=self.overwrite)
