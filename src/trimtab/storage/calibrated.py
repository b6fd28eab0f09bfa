"""What a guide's card says of the strength that it is best run at: `calibration` in `guide.json`.

`making.calibration` decides it and `trimtab calibrate --write` writes it; whoever loads a guide and is told neither a
form nor a weight runs it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from trimtab.errors import CheckpointError
from trimtab.mixing.forms import FORMS
from trimtab.storage.card_values import Section

CALIBRATION = "calibration"
"""The key of the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The strength at which a reward peaked on validation prompts, and how it was found. Intervals are of 95 %."""

    form: str | None
    """`product` or `shift`; None for a guide that has no form."""
    strength: float
    strength_low: float
    strength_high: float
    """The interval of the peak's place, of strengths that were tried; 0 is the model without the guide."""
    reward: str = ""
    """What was measured: the reward's name."""
    gold: str | None = None
    """The reward that decided, where that is another than the one that the guide was trained for."""
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    """How much more of the reward that decided there is than without the guide."""
    kl: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    """Nats an answer."""
    over_optimised: bool = False
    """Whether the training reward still rose beyond the peak of the gold one."""
    num_prompts: int = 0
    model: str = ""
    max_new_tokens: int = 0
    date: str = ""
    """The day, as in 2026-01-31."""
    tried: Mapping[str, list[float]] = field(default_factory=dict)
    """Form -> the strengths that were tried; a guide without a form has them under an empty name."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def read(section: Section, *, has_form: bool) -> Calibration | None:
        """The calibration of a card; None where it has none. Raises CheckpointError as the card's other values do."""
        if not section.values:
            return None
        form = section.text("form")
        if form is not None and (form not in FORMS or not has_form):
            accepted = ", ".join(FORMS) if has_form else "none, since a guide of this kind has no form"
            raise CheckpointError(
                f"{section.path}: {section.place}form is {form!r}; accepted: {accepted}. Calibrate the guide again."
            )
        strength = section.number("strength")
        if strength is None:
            raise CheckpointError(f"{section.path}: {section.place}strength is missing. Calibrate the guide again.")
        low, high = section.number("strength_low"), section.number("strength_high")
        names = ("gain", "gain_low", "gain_high", "kl", "kl_low", "kl_high")
        return Calibration(
            form=form,
            strength=strength,
            strength_low=strength if low is None else low,
            strength_high=strength if high is None else high,
            reward=section.text("reward") or "",
            gold=section.text("gold"),
            **{name: section.number(name) for name in names},
            over_optimised=bool(section.values.get("over_optimised")),
            num_prompts=section.count("num_prompts") or 0,
            model=section.text("model") or "",
            max_new_tokens=section.count("max_new_tokens") or 0,
            date=section.text("date") or "",
            tried={name: list(section.part("tried").numbers(name)) for name in section.part("tried").values},
        )

    def __str__(self) -> str:
        """`as a shift at 2 [1, 4]`."""
        form = f"as a {self.form} " if self.form else ""
        return f"{form}at {self.strength:g} [{self.strength_low:g}, {self.strength_high:g}]"
