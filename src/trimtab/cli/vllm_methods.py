"""Methods of a comparison on vLLM: those that are weights of guides, or that only ask the base for answers.

One engine is held at a time. Guides are part of vLLM's network, so a method with other guides starts another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines
from trimtab.errors import OptionError
from trimtab.mixing.forms import PRODUCT, SHIFT

if TYPE_CHECKING:
    import torch

    from trimtab.engines.vllm.engine import VLLMEngine
    from trimtab.methods.method import Policy
    from trimtab.models.outline import Outline

METHODS = ("base", "sharpened", "genarm", "policy", "best-of-n", "segments")


def check_methods(names: Iterable[str]) -> None:
    """Raise OptionError for a method that vLLM cannot run."""
    refused = [name for name in names if name not in METHODS]
    if refused:
        raise OptionError(
            f"--engine vllm cannot run {', '.join(dict.fromkeys(refused))}: it needs guides that are made for a "
            f"strength, or that score candidates. Accepted: {', '.join(METHODS)}. Others: the built-in engine."
        )


class VLLMMethods:
    """Builds methods on vLLM for one base; `options` are vLLM's."""

    def __init__(
        self, model: str, *, dtype: str, trust_remote_code: bool, options: Mapping[str, Any], max_rows: int
    ) -> None:
        self.model = model
        self._how: dict[str, Any] = {
            "dtype": dtype,
            "trust_remote_code": trust_remote_code,
            "options": options,
            "max_rows": max_rows,
        }
        self._engine: tuple[Any, VLLMEngine] | None = None

    @cached_property
    def outline(self) -> Outline:
        """The base without its weights."""
        from trimtab.models.outline import Outline
        from trimtab.storage.directories import resolve_model

        trusted = self._how["trust_remote_code"]
        return Outline(resolve_model(self.model).resolve(), name=self.model, trust_remote_code=trusted)

    @property
    def device(self) -> torch.device:
        """Where vLLM runs."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def build(self, name: str, given: Mapping[str, Any]) -> Policy:
        """A method of `METHODS`; `given` has passed `check_method`."""
        from trimtab.methods.best_of_n import BestOfN
        from trimtab.methods.builders import GUIDE, guide_base_of, is_policy
        from trimtab.methods.catalogue import METHODS as KNOWN
        from trimtab.methods.method import Guided, number, numbers
        from trimtab.methods.segments import SegmentRejection
        from trimtab.storage.scorers import load_scorer

        chosen = {key: given.get(key, option.default) for key, option in KNOWN[name].options.items()}
        if name == "base":
            return Guided(self._with({}), lambda strength: {})
        if name == "genarm":
            guides: Mapping[str, str] = chosen["guides"]
            forms = {guide: SHIFT if is_policy(path) else PRODUCT for guide, path in guides.items()}
            bases = {guide: base for guide in guides if (base := guide_base_of(chosen, guide)) is not None}
            return Guided(self._with(guides, forms, bases), lambda strength: numbers(strength, list(guides)))
        if name in ("sharpened", "policy"):
            path, form = (self.model, PRODUCT) if name == "sharpened" else (chosen["path"], SHIFT)
            own = chosen.get("guide_base")
            return Guided(
                self._with({GUIDE: path}, {GUIDE: form}, {} if own is None else {GUIDE: own}),
                lambda strength: {GUIDE: number(strength, what="give the weight")},
            )
        scorer = load_scorer(chosen["scorer"])
        if name == "best-of-n":
            return BestOfN(self._with({}), scorer, sign=chosen["sign"])
        return SegmentRejection(
            self._with({}), scorer, **{key: chosen[key] for key in ("target", "segment_tokens", "max_tries")}
        )

    def close(self) -> None:
        """End the engine that is held."""
        if self._engine is not None:
            self._engine[1].close()
            self._engine = None

    def _with(
        self, guides: Mapping[str, str], forms: Mapping[str, str] | None = None, bases: Mapping[str, str] | None = None
    ) -> VLLMEngine:
        """An engine with these guides, their forms and their own bases: the one that is held, or a new one for it."""
        key = (dict(guides), dict(forms or {}), dict(bases or {}))
        if self._engine is None or self._engine[0] != key:
            self.close()
            weights = dict.fromkeys(guides, 0.0)
            engine = engines.start_packed(self.model, guides, weights=weights, forms=key[1], bases=key[2], **self._how)
            self._engine = key, engine
        return self._engine[1]
