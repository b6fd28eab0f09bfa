"""What the catalogue says of each method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from trimtab.engines.maker import EngineMaker, Guides
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
    checks: str = ""
    """Where the function is that opens what its options name and says what is wrong, before a model is loaded, as for
    `builder`; it is called with complete options and the strengths, and raises. Empty: there is nothing to open."""
    readers: str = ""
    """Where the function is that gives, of the options, the guides through which the base reads more than the prompt,
    as for `builder`. Empty: there are none."""

    def build(self, engines: EngineMaker, options: Options) -> Policy:
        """The method on engines of one base; `options` are complete."""
        found: Builder = _function(self.builder)
        return found(engines, options)

    def check(self, options: Options, strengths: Sequence[Strength]) -> None:
        """Raise what is wrong with the files and directories that complete options name, as far as no model is needed
        to say it, and with strengths that do not go with them."""
        if self.checks:
            found: Callable[[Options, Sequence[Strength]], None] = _function(self.checks)
            found(options, strengths)

    def guides_that_read(self, engines: EngineMaker, options: Options) -> Guides:
        """The guides through which the base reads more than the prompt: nothing is loaded for them but the base."""
        if not self.readers:
            return {}
        found: Callable[[EngineMaker, Options], Guides] = _function(self.readers)
        return found(engines, options)

    def complete(self, options: Options) -> Options:
        """The options, those that were left out with their defaults."""
        return {key: options.get(key, option.default) for key, option in self.options.items()}


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(f"trimtab.methods.{module}"), function)
