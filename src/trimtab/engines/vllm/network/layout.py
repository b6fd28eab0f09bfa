"""Which networks a packed directory runs, and where in their logits each guide is read. Pure.

A network runs once a step over its blocks of rows: its own, then one for each guide that is a LoRA adapter on rows of
its pass. The served base is the first network; a smaller base that guides were trained on is another, shared by all of
them, and its own rows are what the shifts among them are measured from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trimtab.engines.vllm.manifest import Manifest
from trimtab.mixing.forms import SHIFT


@dataclass(frozen=True, slots=True)
class Network:
    """A model that runs once a step."""

    name: str
    """The attribute of the composite that holds it, which begins its weights' names."""
    path: str
    """The directory of its weights."""
    place: int
    """The place of its own rows among the tables of all networks; those of its adapters follow."""
    adapters: tuple[str, ...] = ()
    """The directories of the LoRA adapters on rows of its pass."""
    merged: str | None = None
    """The directory of a LoRA adapter that is added to its weights when they are loaded."""

    @property
    def blocks(self) -> int:
        """How many blocks of rows its pass has."""
        return 1 + len(self.adapters)


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a guide's score comes from among the tables of all networks."""

    own: int
    reference: int | None
    """What a shift is measured from; None for a product. The base's own rows are at 0."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The networks in their order, the base first, and a reading for each guide in the order of the guides."""

    networks: tuple[Network, ...]
    readings: tuple[Reading, ...]

    @staticmethod
    def of(manifest: Manifest) -> Layout:
        """The layout of guides that tilt. An adapter that goes by two names runs once."""
        networks: list[Network] = []

        def add(name: str, path: str, adapters: Iterable[str] = (), merged: str | None = None) -> Network:
            place = sum(network.blocks for network in networks)
            networks.append(Network(name, path, place, tuple(dict.fromkeys(adapters)), merged))
            return networks[-1]

        bases: dict[str | None, Network] = {}
        for number, base in enumerate(_bases(manifest)):
            shared = (guide.path for guide in manifest.guides if guide.way == "shared" and guide.base == base)
            bases[base] = add(f"own{number}" if base else "base", base or manifest.base, shared)
        readings = []
        for number, guide in enumerate(manifest.guides):
            trunk = bases.get(guide.base)
            if guide.way == "shared":
                assert trunk is not None
                place = trunk.place + 1 + trunk.adapters.index(guide.path)
            elif guide.way == "merged":
                place = add(f"guide{number}", guide.base or manifest.base, merged=guide.path).place
            else:
                place = add(f"guide{number}", guide.path).place
            readings.append(Reading(place, trunk.place if trunk is not None and guide.form == SHIFT else None))
        return Layout(tuple(networks), tuple(readings))


def _bases(manifest: Manifest) -> list[str | None]:
    """The bases whose own rows run: the served one (None), and those that guides share or are measured from."""
    needed = [guide.base for guide in manifest.guides if guide.way == "shared" or guide.form == SHIFT]
    return [None, *dict.fromkeys(base for base in needed if base is not None)]
