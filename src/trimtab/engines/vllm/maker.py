"""vLLM as a kind of engine: guides are packed on the fly, and one engine is held at a time.

Guides are part of vLLM's network, so an engine with other guides is another start of vLLM.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from trimtab import environment
from trimtab.core import Guide, KnownModel, SamplingParams
from trimtab.documents import read_json
from trimtab.engines import maker
from trimtab.engines.maker import DEFAULT_ROWS, EngineMaker, Guides, GuideSource
from trimtab.engines.vllm.engine import OWN_OPTIONS, VLLMEngine
from trimtab.engines.vllm.manifest import KEY, Manifest
from trimtab.engines.vllm.sampling import check_params
from trimtab.engines.vllm.versions import check_version, installed
from trimtab.errors import OptionError
from trimtab.mixing.forms import PRODUCT
from trimtab.storage.directories import locate_guide
from trimtab.storage.model_source import ModelSource

if TYPE_CHECKING:
    from trimtab.models.outline import Outline


class VLLMMaker(EngineMaker):
    """Makes `VLLMEngine`s: of a packed directory, or of a base whose guides are packed when an engine is made."""

    name = "vllm"
    holds_one = True
    plans_caches = True
    refusals: ClassVar[Mapping[str, str]] = {
        maker.SELECTING: "there, guides tilt every token; an accept-reject agent has an engine of its own. The "
        "built-in engine takes it.",
        maker.IN_PROCESS: "its guides are made for a strength or score candidates on a model in this process. The "
        "built-in engine takes it.",
        maker.PREFERENCES: "a guide for every preference vector runs at one there: save it at a vector first "
        "(docs/serving/vllm.md).",
        maker.SECOND_BASE: "one engine is held at a time. The built-in engine takes it.",
        maker.FORCED: "vLLM takes no forced tokens. The built-in engine does.",
        maker.CACHE_LIMIT: "vLLM plans its own caches. Leave it out, or give --engine-option gpu_memory_utilization=F.",
        maker.DEVICE: "vLLM takes the devices that it finds; choose them with CUDA_VISIBLE_DEVICES.",
        maker.QUANTIZE: "vLLM quantises by itself; give --engine-option quantization=NAME of its own.",
        maker.RULES: "an accept-reject agent has an engine of its own there.",
        maker.PROMPTS: "every guide reads the request's own prompt there. The built-in engine takes it.",
        maker.GATED: "vLLM asks every guide beside the base, before a gate could look at it; use --engine builtin.",
        maker.MASKS: "vLLM mixes guides without asking what each by itself finds likely; use --engine builtin.",
        maker.STATES: "guides are mixed from logits there, and no state of the base is handed to them; use --engine "
        "builtin.",
        maker.DRAFTS: "vLLM has drafts of its own: give --engine-option speculative_config={...}.",
    }

    def __init__(self, source: ModelSource, options: Mapping[str, object], *, max_rows: int = DEFAULT_ROWS) -> None:
        self._source = source
        self._options = options
        self.max_rows = max_rows
        self._held: tuple[object, VLLMEngine] | None = None

    @classmethod
    def open(cls, source: ModelSource, options: Mapping[str, object], *, max_rows: int = DEFAULT_ROWS) -> VLLMMaker:
        return cls(source, options, max_rows=max_rows)

    @classmethod
    def check_options(cls, options: Mapping[str, object], *, verbose: bool = False) -> None:
        check_version()
        # vLLM would log to standard output, in its workers too.
        environment.VLLM_STREAM.give()
        environment.VLLM_LEVEL.give("INFO" if verbose else None)

    @classmethod
    def check_params(cls, params: SamplingParams) -> None:
        check_params(params)

    @classmethod
    def packed_guides(cls, model: str) -> Mapping[str, float] | None:
        manifest = packed(model)
        return None if manifest is None else manifest.weights

    @property
    def facts(self) -> KnownModel:
        return self._outline

    @property
    def model(self) -> NoReturn:
        raise OptionError(f"The base is inside vLLM: {self.refusals[maker.IN_PROCESS]}")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def settings(self) -> Mapping[str, object]:
        return {"engine": {"name": self.name, "version": installed()}}

    @property
    def contents(self) -> Mapping[str, object]:
        manifest = packed(self._source.name)
        return {} if manifest is None else {"packed": json.loads(json.dumps(manifest.as_config()))}

    @cached_property
    def _outline(self) -> Outline:
        from trimtab.models.outline import Outline
        from trimtab.storage.directories import resolve_model

        source = self._source
        directory = resolve_model(source.name, revision=source.revision).resolve()
        return Outline(directory, name=source.name, trust_remote_code=source.trust_remote_code)

    def describe(self) -> Mapping[str, object]:
        return self._outline.describe()

    def make(
        self,
        guides: Guides | None = None,
        *,
        max_rows: int | None = None,
        prefill_chunk: int | None = None,
        drafters: Collection[str] = (),
        copies: str | None = None,
    ) -> VLLMEngine:
        if drafters or copies:
            self.check_features([maker.DRAFTS], what="A model that drafts")
        sources = {name: _source(name, guide) for name, guide in (guides or {}).items()}
        max_rows = self.max_rows if max_rows is None else max_rows
        key = sources, max_rows, prefill_chunk
        if self._held is None or self._held[0] != key:
            self.close()
            self._held = key, self._start(sources, max_rows, prefill_chunk)
        return self._held[1]

    def itself(self) -> GuideSource:
        return GuideSource(self._source.name, form=PRODUCT)

    def close(self) -> None:
        if self._held is not None:
            self._held[1].close()
            self._held = None

    def _start(self, guides: Mapping[str, GuideSource], max_rows: int, prefill_chunk: int | None) -> VLLMEngine:
        if packed(self._source.name) is not None:
            if guides:
                raise OptionError(f"{self._source.name} is packed with its guides; give none, or name the base itself.")
            return self._run(self._source.name, max_rows, prefill_chunk)
        from trimtab.engines.vllm.packing import pack

        # Gone once everything is loaded.
        with tempfile.TemporaryDirectory(prefix="trimtab-") as directory:
            out = Path(directory) / "served"
            pack(
                self._source.name,
                {name: guide.path for name, guide in guides.items()},
                out,
                weights={name: weight for name, guide in guides.items() if (weight := _weight(guide)) is not None},
                forms={name: guide.form for name, guide in guides.items() if guide.form is not None},
                bases={name: guide.guide_base for name, guide in guides.items() if guide.guide_base is not None},
                revision=self._source.revision,
                trust_remote_code=self._source.trust_remote_code,
            )
            return self._run(str(out), max_rows, prefill_chunk)

    def _run(self, served: str, max_rows: int, prefill_chunk: int | None) -> VLLMEngine:
        options = dict(self._options)
        if prefill_chunk is not None:
            options.setdefault("max_num_batched_tokens", max_rows + prefill_chunk)
        named: dict[str, Any] = {name: value for name, value in options.items() if name in OWN_OPTIONS}
        others = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
        return VLLMEngine(
            served,
            max_rows=max_rows,
            dtype=self._source.dtype,
            trust_remote_code=self._source.trust_remote_code,
            options=others,
            **named,
        )


def packed(model: str) -> Manifest | None:
    """What a packed directory says; None for any other model."""
    try:
        config = read_json((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Manifest.of(config) if isinstance(config, dict) and KEY in config else None


def _weight(guide: GuideSource) -> float | None:
    """The weight to pack a guide with; None: the threshold that an agent keeps, or its files say."""
    card = locate_guide(guide.path).card
    return guide.weight if card.kind == "agent" else card.strength_alone(guide.weight, form=guide.form)


def _source(name: str, guide: GuideSource | Guide) -> GuideSource:
    if not isinstance(guide, GuideSource):
        raise OptionError(f"Guide {name} is built in this process, and {VLLMMaker.refusals[maker.IN_PROCESS]}")
    for given, feature in ((guide.preference, maker.PREFERENCES), (guide.rule, maker.RULES)):
        if given is not None:
            VLLMMaker.check_features([feature], what=f"Guide {name}")
    return guide
