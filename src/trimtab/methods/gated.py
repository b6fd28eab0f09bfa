"""A guide behind a gate: it acts at some tokens alone, by a rule on the base's next token (`trimtab.gates`).

Papers gate by the base's entropy or by how far its best tokens are apart; one of them bets (arXiv 2604.16146). A gate
also steers less, so a gate of chance (`random:R`) at the same rate is its control, which none of these papers shows.
The report of a comparison says at which share of the tokens each gate let its guide act, and warns where no such
control stands beside it.

Where it differs from arXiv 2604.16146: what the base is held against, and draws where its draw does not stand, is the
mix of base and guide at the strength, not the guide alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trimtab.core import SamplingParams
from trimtab.engines.maker import EngineMaker, GuideSource
from trimtab.methods.builders import GUIDE, one_guide
from trimtab.methods.method import Policy


def build(engines: EngineMaker, options: Mapping[str, Any]) -> Policy:
    """A guide that tilts, in a form, with its gate."""

    def gated(params: SamplingParams) -> SamplingParams:
        return replace(params, gates={GUIDE: options["gate"]})

    source = GuideSource(options["path"], form=options["form"], guide_base=options["guide_base"])
    return one_guide(engines, source, ask=gated)
