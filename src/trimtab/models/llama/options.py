"""What may be said to llama.cpp about how it runs a file (`--llama KEY=VALUE`), under its own names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trimtab import fields
from trimtab.errors import OptionError, unknown_name
from trimtab.fields import described

CACHE_TYPES: Mapping[str, int] = {"f16": 1, "f32": 0, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}
BYTES: Mapping[str, float] = {
    "f16": 2,
    "f32": 4,
    "bf16": 2,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
"""What a number takes in each."""
FLASH: Mapping[str, int] = {"auto": -1, "off": 0, "on": 1}
_TRUTHS: Mapping[str, bool] = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """How a GGUF file is run. Raises OptionError for a value out of range."""

    n_ctx: int | None = described(
        None,
        "tokens that a context holds, over all rows",
        kind="whole",
        low=256,
        unset="4096, and more when they are needed",
    )
    n_batch: int = described(2048, "tokens handed over in one call", low=32, high=65536)
    n_ubatch: int = described(512, "tokens computed in one pass", low=1, high=65536)
    n_threads: int | None = described(
        None, "threads of a pass over few tokens", kind="whole", low=1, high=512, unset="as torch has"
    )
    n_threads_batch: int | None = described(
        None, "threads of a pass over many tokens", kind="whole", low=1, high=512, unset="as torch has"
    )
    n_gpu_layers: int | None = described(
        None, "layers on a GPU, where the build has one", kind="whole", low=-1, unset="all", note="-1: all"
    )
    main_gpu: int = described(0, "the GPU that is used where one is", low=0)
    flash_attn: str = described("auto", "flash attention", choices=tuple(FLASH))
    type_k: str = described("f16", "what keys are held in", choices=tuple(CACHE_TYPES))
    type_v: str = described("f16", "what values are held in", choices=tuple(CACHE_TYPES))
    use_extra_bufts: bool | None = described(
        None,
        "repack weights for this processor when they are loaded",
        kind="flag",
        unset="yes, unless a first try in a process of its own ends it",
    )
    check_tensors: bool = described(False, "look for broken numbers in the weights when they are loaded")

    def __post_init__(self) -> None:
        fields.check(self)
        if self.type_v not in ("f16", "f32", "bf16") and self.flash_attn == "off":
            raise OptionError(f"type_v={self.type_v} needs flash attention; leave flash_attn=off out, or type_v.")

    @staticmethod
    def of_pairs(pairs: Iterable[tuple[str, str]]) -> LlamaOptions:
        """The options that (key, text) pairs say, dashes for underscores allowed; of a key given twice, the last.

        Raises OptionError for an unknown key or a value that is not accepted.
        """
        known = fields.table(LlamaOptions)
        found: dict[str, object] = {}
        for written, text in pairs:
            key = written.replace("-", "_")
            if key not in known:
                raise unknown_name("option of llama.cpp", written, known)
            found[key] = _value(key, known[key], text)
        return LlamaOptions(**found)  # type: ignore[arg-type]  # checked by __post_init__


def _value(key: str, entry: fields.Described, text: str) -> object:
    if entry.kind == "flag":
        if text.lower() not in _TRUTHS:
            raise OptionError(f"{key}={text} is not accepted; give true or false.")
        return _TRUTHS[text.lower()]
    try:
        return entry.read(text)
    except OptionError as error:
        raise OptionError(f"{key}={text}: {error}") from None
