"""What can be set about the training of a preference-aware reward model. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.errors import OptionError, naming, unknown_name
from trimtab.fields import FOLLOWS, Follows, described, follow, seed_field
from trimtab.training.run.settings import TokenRewardSettings

MIDDLE = "middle"
"""What the vector that weighs all objectives alike is called in metrics; no objective may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParmSettings(TokenRewardSettings):
    """How a preference-aware reward model is trained. The defaults are the paper's released ones for PKU-SafeRLHF, but
    for the dropout, the warm-up and the layers (see docs/inside/paper_index.md)."""

    beta: float = described(
        0.01, "scale of the reward in the loss of one objective, or of all that are not named", above=0
    )
    """β_k of the objectives that `betas` does not name."""
    betas: Mapping[str, float] = field(default_factory=dict)
    """Objective -> β_k of its loss."""
    preference_rank: int = described(
        FOLLOWS, "part of the adapter's rank that depends on the preference; not given: half of {lora_rank}", low=1
    )
    """r₂; r₁ is the rest of `lora_rank`."""
    concentration: float = described(
        0.5, "preferences are drawn from a Dirichlet distribution with this parameter for each objective", above=0
    )
    weight_decay: float = described(0.05, "of AdamW", low=0)
    epochs: float = described(
        2.0,
        "passes over the largest objective's pairs, fractions accepted; smaller ones are gone through more often",
        above=0,
    )
    gradient_accumulation: int = described(16, "forward passes of each objective in one step", low=1)
    max_pairs: int = described(0, "train on a random sample of this many pairs of each objective", low=0, note="0: all")
    lora_rank: int = described(8, "rank of the adapter, the part that depends on the preference included", low=1)
    seed: int = seed_field(0, "of the adapter, the order, the sample and the preferences")

    def __post_init__(self) -> None:
        """Raise OptionError for a value out of range."""
        TokenRewardSettings.__post_init__(self)
        follow(self, "preference_rank", lambda: max(1, self.lora_rank // 2))
        if self.full:
            raise naming(OptionError, "A preference-aware reward model is an adapter; leave {full} out.")
        if self.form != "product":
            raise naming(OptionError, "A preference-aware reward model steers as a product; leave {form} out.")
        if self.preference_rank >= self.lora_rank:
            raise self._no_shared_rank()
        for name, beta in self.betas.items():
            if not 0 < beta < float("inf"):
                raise OptionError(f"The beta of {name} is {beta}; give a finite number above 0.")

    def _no_shared_rank(self) -> OptionError:
        if isinstance(self.preference_rank, Follows):
            return naming(
                OptionError,
                "{lora_rank} is {0}; give at least 2: a part of it depends on the preference.",
                self.lora_rank,
            )
        return naming(
            OptionError,
            "{preference_rank} is {0}, a part of {lora_rank} {1}; give a smaller one, or none: half of it.",
            *(self.preference_rank, self.lora_rank),
        )

    def betas_of(self, objectives: Sequence[str]) -> list[float]:
        """β_k of each objective. Raises OptionError for a beta of something that is not an objective."""
        for name in self.betas:
            if name not in objectives:
                raise unknown_name("objective", name, objectives)
        return [self.betas.get(name, self.beta) for name in objectives]


def check_objectives(names: Sequence[str]) -> None:
    """Raise OptionError unless these are the names of at least two objectives."""
    if len(names) < 2:
        raise OptionError(
            f"There is {f'one objective ({names[0]})' if names else 'no objective'}; a preference needs at least two. "
            "Give pairs for each, or train one objective with `trimtab train arm`."
        )
    if MIDDLE in names:
        raise OptionError(f"No objective may be called {MIDDLE!r}, which names the vector between them all.")
