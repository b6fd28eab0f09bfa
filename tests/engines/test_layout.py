"""Which networks run for a set of guides, and where in their logits each guide is read. No vLLM is needed."""

from __future__ import annotations

import pytest

from trimtab.engines.vllm.manifest import Manifest, ServedGuide
from trimtab.engines.vllm.network.layout import Layout, Network, Reading

SMALL, TINY = "small", "tiny"


def guide(path: str, way: str, form: str = "product", base: str | None = None, *, name: str = "") -> ServedGuide:
    return ServedGuide(name or path, "arm", path, way, 0.0, form, base)


CASES: dict[str, tuple[list[ServedGuide], list[Network], list[Reading]]] = {
    "none": ([], [Network("base", "big", 0)], []),
    "adapters and models of the base": (
        [guide("a", "shared"), guide("m", "model"), guide("b", "shared", "shift"), guide("c", "merged", "shift")],
        [
            Network("base", "big", 0, ("a", "b")),
            Network("guide1", "m", 3),
            Network("guide3", "big", 4, merged="c"),
        ],
        [Reading(1, None), Reading(3, None), Reading(2, 0), Reading(4, 0)],
    ),
    "two guides of one smaller base, and one of another": (
        [
            guide("a", "shared", "shift", SMALL),
            guide("b", "shared"),
            guide("c", "shared", "product", TINY),
            guide("d", "shared", "product", SMALL),
        ],
        [
            Network("base", "big", 0, ("b",)),
            Network("own1", SMALL, 2, ("a", "d")),
            Network("own2", TINY, 5, ("c",)),
        ],
        [Reading(3, 2), Reading(1, None), Reading(6, None), Reading(4, None)],
    ),
    "merged on a smaller base, as a product": (
        [guide("a", "merged", "product", SMALL)],
        [Network("base", "big", 0), Network("guide0", SMALL, 1, merged="a")],
        [Reading(1, None)],
    ),
    "merged on a smaller base, as a shift, beside a whole model measured from it": (
        [guide("a", "merged", "shift", SMALL), guide("m", "model", "shift", SMALL)],
        [
            Network("base", "big", 0),
            Network("own1", SMALL, 1),
            Network("guide0", SMALL, 2, merged="a"),
            Network("guide1", "m", 3),
        ],
        [Reading(2, 1), Reading(3, 1)],
    ),
    "one adapter by two names": (
        [guide("a", "shared", "shift", SMALL, name="up"), guide("a", "shared", "product", SMALL, name="down")],
        [Network("base", "big", 0), Network("own1", SMALL, 1, ("a",))],
        [Reading(2, 1), Reading(2, None)],
    ),
    "a whole model without a base, as a shift": (
        [guide("m", "model", "shift")],
        [Network("base", "big", 0), Network("guide0", "m", 1)],
        [Reading(1, 0)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_model_runs_once_and_every_guide_is_read_where_it_runs(name: str) -> None:
    guides, networks, readings = CASES[name]
    layout = Layout.of(Manifest("big", ("LlamaForCausalLM",), tuple(guides)))
    assert list(layout.networks) == networks
    assert list(layout.readings) == readings
