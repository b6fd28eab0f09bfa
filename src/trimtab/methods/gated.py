"""A guide behind a gate: it acts at some tokens alone, by a rule on the base's next token (`trimtab.gates`).

Papers gate by the base's entropy or by how far its best tokens are apart; one of them bets (arXiv 2604.16146); TUSA
asks an accept-reject agent only where its say matters. A gate also steers less, so a gate of chance (`random:R`) at the
same rate is its control, which none of these papers shows. The report of a comparison says at which share of the tokens
each gate let its guide act, how many verdicts an agent was asked for, and warns where no such control stands beside it.

Where it differs from arXiv 2604.16146: what the base is held against, and draws where its draw does not stand, is the
mix of base and guide at the strength, not the guide alone. Where it differs from TUSA: `mixing.significance`.

An agent has its own candidates, whatever the comparison samples at (as with the method `mara`). Where a gate is closed
the first of them is the token, under every rule alike: a gate of significance takes it anyhow, and a gate of chance
that drew there instead would be no control of it. So these answers are decoded at temperature 0, which changes nothing
about what an agent takes, but for one that draws among what it accepts: that one keeps its temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trimtab.core import SamplingParams
from trimtab.engines.maker import EngineMaker, GuideSource
from trimtab.methods.builders import GUIDE, one_guide
from trimtab.methods.method import Policy
from trimtab.storage.directories import locate_guide


def build(engines: EngineMaker, options: Mapping[str, Any]) -> Policy:
    """A guide that tilts, in a form, or an agent, with its gate."""
    card = locate_guide(options["path"]).card

    def gated(params: SamplingParams) -> SamplingParams:
        params = replace(params, gates={GUIDE: options["gate"]})
        if card.kind != "agent":
            return params
        temperature = None if card.selection.get("rule") == "random" else 0.0
        return replace(params, temperature=temperature, top_k=None, top_p=None)

    source = GuideSource(options["path"], form=options["form"], guide_base=options["guide_base"])
    return one_guide(engines, source, ask=gated)
