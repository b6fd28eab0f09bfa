"""Every kind of engine by name: `--engine NAME` looks here, and a new kind is one more line."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from trimtab.errors import unknown_name

if TYPE_CHECKING:
    from trimtab.engines.maker import EngineMaker

BUILTIN = "builtin"

ENGINES: Mapping[str, str] = {
    BUILTIN: "trimtab.engines.builtin:BuiltinMaker",
    "vllm": "trimtab.engines.vllm.maker:VLLMMaker",
}
"""Name -> the class that makes engines of this kind, imported when it is asked for."""


def maker_of(name: str) -> type[EngineMaker]:
    """The class that makes engines of a kind. Raises OptionError for an unknown name."""
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    module, _, cls = ENGINES[name].partition(":")
    found: type[EngineMaker] = getattr(import_module(module), cls)
    return found
