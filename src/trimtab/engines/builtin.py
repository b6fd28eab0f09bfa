"""The built-in engine: `Decoder` on a model in this process. It takes every method and every sampling parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property

import torch

from trimtab.core import Guide, KnownModel, LanguageModel
from trimtab.decoding.decoder import Decoder
from trimtab.decoding.drafts import Drafter
from trimtab.engines.maker import DEFAULT_ROWS, EngineMaker, Guides, GuideSource, no_options
from trimtab.engines.registry import BUILTIN
from trimtab.errors import OptionError
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.storage.loading import load_guide
from trimtab.storage.model_source import ModelSource


class BuiltinMaker(EngineMaker):
    """Makes `Decoder`s that share one loaded base. Any number of them live at a time."""

    name = BUILTIN

    def __init__(self, source: ModelSource | LanguageModel, *, max_rows: int = DEFAULT_ROWS) -> None:
        self._source = source
        self.max_rows = max_rows

    @classmethod
    def open(cls, source: ModelSource, options: Mapping[str, object], *, max_rows: int = DEFAULT_ROWS) -> BuiltinMaker:
        return cls(source, max_rows=max_rows)

    @classmethod
    def check_options(cls, options: Mapping[str, object], *, verbose: bool = False) -> None:
        no_options(cls.name, list(options))

    @property
    def facts(self) -> KnownModel:
        return self.model

    @cached_property
    def model(self) -> LanguageModel:
        """The base, loaded when it is first asked for."""
        return self._source.load() if isinstance(self._source, ModelSource) else self._source

    @property
    def device(self) -> torch.device:
        return self.model.device

    def describe(self) -> Mapping[str, object]:
        describe: Callable[[], Mapping[str, object]] | None = getattr(self.model, "describe", None)
        return {} if describe is None else describe()

    def make(
        self,
        guides: Guides | None = None,
        *,
        max_rows: int | None = None,
        prefill_chunk: int | None = None,
        drafters: Collection[str] = (),
        copies: str | None = None,
    ) -> Decoder:
        loaded = {name: self._guide(guide) for name, guide in (guides or {}).items()}
        small: dict[str, Drafter] = {name: self._beside(name) for name in drafters}
        if copies is not None:
            small |= self._copies(guides or {}, copies)
        rows = self.max_rows if max_rows is None else max_rows
        return Decoder(self.model, loaded, max_rows=rows, prefill_chunk=prefill_chunk, drafters=small)

    def itself(self) -> Guide:
        return ARM(self.model)

    def _copies(self, guides: Guides, quantize: str) -> dict[str, Guide]:
        """Guides that are trained language models, with fewer bits: those of the base too, for its adapters."""
        copies: dict[str, Guide] = {}
        base: LanguageModel | None = None
        for name, guide in guides.items():
            copy = self._guide(guide, quantize=quantize) if isinstance(guide, GuideSource) else None
            if isinstance(copy, AdapterARM):
                base = base or self._again(quantize)
                copy = copy.bind(base)
            if isinstance(copy, ARM):
                copies[name] = copy
        return copies

    def _again(self, quantize: str) -> LanguageModel:
        """The base once more, with weights of fewer bits."""
        if not isinstance(self._source, ModelSource):
            raise OptionError("A model that is loaded already cannot be loaded again for a copy; give its name.")
        return replace(self._source, quantize=quantize).load()

    def _beside(self, name: str) -> LanguageModel:
        """Another model, loaded as the base is."""
        source = self._source if isinstance(self._source, ModelSource) else ModelSource("")
        return replace(source, name=name, revision=None).load()

    def _guide(self, guide: GuideSource | Guide, *, quantize: str | None = None) -> Guide:
        if not isinstance(guide, GuideSource):
            return guide
        source = self._source if isinstance(self._source, ModelSource) else ModelSource("")
        return load_guide(
            guide.path,
            beside=self.model,
            guide_base=guide.guide_base,
            form=guide.form,
            weight=guide.weight,
            rule=guide.rule,
            preference=guide.preference,
            dtype=source.dtype,
            quantize=quantize or source.quantize,
            device=source.device,
            trust_remote_code=source.trust_remote_code,
        )
