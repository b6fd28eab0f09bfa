"""The built-in engine: `Decoder` on a model in this process. It takes every method and every sampling parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property

import torch

from trimtab.core import Guide, KnownModel, LanguageModel
from trimtab.decoding.decoder import Decoder
from trimtab.engines.maker import DEFAULT_ROWS, EngineMaker, Guides, GuideSource, no_options
from trimtab.engines.registry import BUILTIN
from trimtab.guides.arm import ARM
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
    ) -> Decoder:
        loaded = {name: self._guide(guide) for name, guide in (guides or {}).items()}
        small = {name: self._beside(name) for name in drafters}
        rows = self.max_rows if max_rows is None else max_rows
        return Decoder(self.model, loaded, max_rows=rows, prefill_chunk=prefill_chunk, drafters=small)

    def itself(self) -> Guide:
        return ARM(self.model)

    def _beside(self, name: str) -> LanguageModel:
        """Another model, loaded as the base is."""
        source = self._source if isinstance(self._source, ModelSource) else ModelSource("")
        return replace(source, name=name, revision=None).load()

    def _guide(self, guide: GuideSource | Guide) -> Guide:
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
            quantize=source.quantize,
            device=source.device,
            trust_remote_code=source.trust_remote_code,
        )
