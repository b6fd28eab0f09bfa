"""What the catalogue says of each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from trimtab.engines.maker import EngineMaker
from trimtab.methods import options as opt
from trimtab.methods.method import Policy, Strength

Options: TypeAlias = Mapping[str, Any]
Builder: TypeAlias = Callable[[EngineMaker, Options], Policy]


@dataclass(frozen=True, slots=True)
class Method:
    """A method of steering, or a control."""

    name: str
    summary: str
    paper: str
    """arXiv number; empty for a control."""
    dial: str
    """What a strength means."""
    default_strengths: tuple[Strength, ...]
    options: Mapping[str, opt.Option]
    builder: str
    """Where the function that builds it is, `file:function` of this folder; imported when it is called."""
    reads: str | None = None
    """The option that `--guide` fills: guides, paths, or what one guide is. None: it reads nothing."""
    objectives: bool = False
    """Whether a strength may be several numbers, one an objective."""
    low: float = -math.inf
    """The smallest strength that means something."""
    needs: frozenset[str] = frozenset()
    """What it needs of an engine beyond guides that tilt (`engines.maker.FEATURES`)."""

    def build(self, engines: EngineMaker, options: Options) -> Policy:
        """The method on engines of one base; `options` are complete."""
        module, _, function = self.builder.partition(":")
        found: Builder = getattr(import_module(f"trimtab.methods.{module}"), function)
        return found(engines, options)
