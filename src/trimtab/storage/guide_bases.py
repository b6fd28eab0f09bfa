"""Which model a guide runs on: the one that it steers, or its own base, loaded beside that one.

From weak to strong (GenARM, arXiv 2410.08193, section 4.2): a guide that was trained on a small model steers a large
one of the same vocabulary. Its card names the small one, so nobody has to. A base is loaded once, however many guides
run on it, and is gone when the last of them is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from trimtab.core import LanguageModel
from trimtab.errors import (
    BaseMismatchError,
    CheckpointError,
    MissingExtraError,
    OptionError,
    VocabularyMismatchError,
    naming,
)
from trimtab.mixing.forms import SHIFT
from trimtab.models.trained_on import ModelFacts
from trimtab.prompts import Vocabulary, check_same_vocabulary
from trimtab.storage.cards import GUIDE_KINDS, GuideCard, is_adapter, named_base

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Vocabulary)


@runtime_checkable
class Described(Protocol):
    """A model that can be told from others; `models.hf.HFModel` is one."""

    def describe(self) -> ModelFacts:
        """Its name, and what tells its weights from others."""


def own_base(
    directory: Path,
    card: GuideCard,
    steered: LanguageModel | None,
    load: Callable[[str], M],
    *,
    guide_base: str | Path | None = None,
    form: str | None = None,
) -> M | None:
    """The model that the guide in `directory` runs on, loaded by its name; None where that is the steered one.

    An adapter runs on the model that it was trained on; a whole model of the form `shift` is measured from it.
    `guide_base` names it where the guide's card is silent or wrong. Raises OptionError where one is named for a guide
    that runs on none, BaseMismatchError where its own cannot be had, VocabularyMismatchError where that has another
    vocabulary than `steered`.
    """
    kind = GUIDE_KINDS[card.kind]
    adapter = kind.adapter or (kind.has_weights and is_adapter(directory))
    if not (adapter or form == SHIFT):
        if guide_base is not None:
            raise OptionError(
                f"{directory} is a guide of kind {card.kind!r} that runs on no base of its own; leave its base "
                f"({guide_base}) out. Accepted: adapters, and language models of the form shift."
            )
        return None
    name = guide_base or named_base(directory, card)
    if guide_base is None and (steered is None or not _is_foreign(directory, card, steered)):
        return None
    if name and str(name) == getattr(steered, "name", None):
        return None
    whose = getattr(steered, "name", "the steered model")
    _check_vocabulary(directory, card, steered, whose)
    if not name:
        raise naming(
            BaseMismatchError,
            "The guide {0} was not trained on {1}, and does not say on which model it was. Name that model "
            "({guide_base}).",
            *(directory, whose),
        )
    given = guide_base is not None
    model = _load(str(name), directory, whose, load, given=given, card_says=named_base(directory, card))
    if steered is not None:
        _check_same_vocabulary(steered, model, str(name), directory, given=given)
        log.info("the guide %s was trained on %s, which is loaded beside %s", directory, name, whose)
    return model


def _is_foreign(directory: Path, card: GuideCard, steered: LanguageModel) -> bool:
    """Whether a guide was trained on another model than the steered one, as far as card and shapes tell."""
    if not isinstance(steered, Described):
        return False
    from trimtab.models.adapters.lora import LoRA, difference

    if card.trained_on.base:
        return difference(card.trained_on.base, steered.describe()) is not None
    if card.kind != "arm" or not is_adapter(directory):
        return False
    try:
        LoRA.load(directory, card.trained_on).check(steered)
    except BaseMismatchError:
        return True
    return False


def _check_vocabulary(directory: Path, card: GuideCard, steered: LanguageModel | None, whose: str) -> None:
    """Raise VocabularyMismatchError before a model is loaded in vain, where the card tells enough."""
    vocabulary = card.trained_on.vocabulary
    tokenizer = None if steered is None else steered.tokenizer
    written = vocabulary.get("fingerprint")
    if tokenizer is None or not written or written == tokenizer.fingerprint:
        return
    trained_on = card.base_name or "another model"
    raise VocabularyMismatchError(
        f"The guide {directory} was trained on {trained_on}, whose vocabulary ({vocabulary.get('size')} tokens) "
        f"differs in content from that of {whose} ({len(tokenizer.tokens)} tokens). A guide steers models of its own "
        f"vocabulary: train one on {whose} or on a smaller model of the same family (trimtab train arm)."
    )


def _load(name: str, directory: Path, whose: str, load: Callable[[str], M], *, given: bool, card_says: str | None) -> M:
    try:
        return load(name)
    except (CheckpointError, MissingExtraError) as error:
        if given:
            card = f"its card says {card_says}" if card_says else "its card names none"
            raise naming(
                BaseMismatchError,
                "{guide_base} {0} is not a model that can be loaded as the base of the guide {1}: {2} Name the model "
                "that the guide was trained on ({3}), or leave {guide_base} out.",
                *(name, directory, error, card),
            ) from error
        raise naming(
            BaseMismatchError,
            "The guide {0} runs on {1}, the model that it was trained on, and not on {2}; but that cannot be loaded: "
            "{3} Say where it is ({guide_base}).",
            *(directory, name, whose, error),
        ) from error


def _check_same_vocabulary(
    steered: LanguageModel, model: Vocabulary, name: str, directory: Path, *, given: bool
) -> None:
    """Raise VocabularyMismatchError; where the base was named by the caller, what is wrong is that name."""
    try:
        check_same_vocabulary(steered, model)
    except VocabularyMismatchError as error:
        if not given:
            raise
        raise naming(
            VocabularyMismatchError,
            "{guide_base} {0} has another vocabulary than {1}, so no guide of it steers that model. Name the model "
            "that the guide {2} was trained on, or leave {guide_base} out.",
            *(name, getattr(steered, "name", "the steered model"), directory),
        ) from error
