"""How one guide is run at a strength: the methods that its kind has, one for each form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.mixing.forms import PRODUCT, SHIFT
from trimtab.storage.cards import GuideCard


@dataclass(frozen=True, slots=True)
class Way:
    """A method of the catalogue that runs one guide."""

    method: str
    option: str
    """The option of the method that names the guide."""
    form: str | None = None
    """The form in which the method runs it; None for a guide that has no form."""

    def entry(self, name: str, guide: str, strengths: Sequence[float]) -> dict[str, object]:
        """The method in a recipe, under this name."""
        named = {"guide": guide} if self.option == "guides" else guide
        return {"name": name, "method": self.method, self.option: named, "strengths": list(strengths)}


_SHIFT = Way("policy", "path", SHIFT)

WAYS: Mapping[str, tuple[Way, ...]] = {
    "agent": (Way("mara", "guide"),),
    "arm": (_SHIFT, Way("genarm", "guides", PRODUCT)),
    "head": (Way("palc", "guide"),),
    "parm": (),
    "policy": (_SHIFT,),
    "prompt": (Way("prompt", "guide"),),
    "reward": (Way("args", "reward"),),
}
"""Kind of a guide (`storage.cards.GUIDE_KINDS`) -> its ways; none where it runs at several numbers and not at one."""


def kept_strength(card: GuideCard, method: str) -> float | None:
    """The strength that a guide's card keeps for a method; None: none is known."""
    return next((card.weight_as(way.form) for way in WAYS[card.kind] if way.method == method), None)
