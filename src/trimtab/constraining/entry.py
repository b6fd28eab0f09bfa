"""The way to what is compiled, for those who may not have what compiles it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.core import KnownModel
from trimtab.errors import MissingExtraError, OptionError, naming
from trimtab.params import SamplingParams

if TYPE_CHECKING:
    from trimtab.constraining.grammars import Grammars
    from trimtab.constraining.matching import Matching


def grammars(model: KnownModel) -> Grammars:
    """The grammars of a model. Raises MissingExtraError without llguidance, OptionError for a model without text."""
    try:
        from trimtab.constraining.grammars import grammars_of
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "llguidance":
            raise
        raise MissingExtraError("llguidance", "structured", "A constraint") from error
    return grammars_of(model)


def matching_of(model: KnownModel, params: SamplingParams) -> Matching | None:
    """A request's way through its constraint; None where it has none.

    Raises OptionError for a constraint that cannot be used, or not with these parameters; MissingExtraError.
    """
    if params.constraint is None:
        return None
    if params.ignore_eos:
        raise naming(
            OptionError,
            "An answer with a constraint ends where the constraint is satisfied, so no end can be ignored. Leave "
            "{ignore_eos} or the constraint out.",
        )
    matching = grammars(model).matching(params.constraint)
    if params.forced and matching.num_accepted((), params.forced) < len(params.forced):
        raise OptionError("The forced tokens leave the constraint. Force others, or leave the constraint out.")
    return matching
