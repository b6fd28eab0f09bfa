"""Prompts in three parts: to make pairs from, to calibrate on, to report on. No prompt is in two of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.core import Prompt
from trimtab.errors import DataError, naming
from trimtab.making.choosing import prompt_key
from trimtab.prompts import options_of
from trimtab.storage.json_lines import line_of

MOST = 48
"""Prompts that are taken to validate or to test, where nobody says how many."""
SHARE = 5
"""... and at most one in so many."""

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True, slots=True)
class Splits:
    """The parts, each in an order of its own."""

    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]

    @property
    def parts(self) -> dict[str, tuple[Prompt, ...]]:
        return {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}

    def texts(self) -> dict[str, str]:
        """Part -> the text of a file of prompts, a JSON object a line."""
        return {name: "".join(line_of(as_row(prompt)) + "\n" for prompt in part) for name, part in self.parts.items()}


def split(
    prompts: Sequence[Prompt],
    *,
    test: Sequence[Prompt] | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    num_train: int | None = None,
    seed: int = 0,
) -> Splits:
    """The parts of prompts, drawn by the seed; one that stands twice is taken once.

    `test` are the prompts to report on where they are given apart, of which the first `num_test` are taken; all of them
    are left out of the others. A number that is not given is a fifth of the prompts, at most 48; to train on, all that
    are left. Raises DataError where nothing is left to make pairs from.
    """
    known = {prompt_key(prompt): prompt for prompt in prompts}
    apart = None if test is None else list({prompt_key(prompt): prompt for prompt in test}.values())
    for prompt in apart or ():
        known.pop(prompt_key(prompt), None)
    drawn = list(known.values())
    random.Random(seed).shuffle(drawn)
    usual = min(MOST, len(drawn) // SHARE)
    validation = usual if num_validation is None else num_validation
    tested = 0 if apart is not None else usual if num_test is None else num_test
    if len(drawn) - validation - tested < 2 or validation < 1 or (apart is None and tested < 1):
        raise naming(
            DataError,
            "{0} different prompts are too few: {1} to validate and {2} to test would leave {3} to make pairs from, "
            "and each part needs some. Give more prompts, or smaller {num_validation} and {num_test}.",
            len(drawn),
            validation,
            tested,
            max(0, len(drawn) - validation - tested),
        )
    return Splits(
        tuple(drawn[validation + tested :][:num_train]),
        tuple(drawn[:validation]),
        tuple(drawn[validation : validation + tested] if apart is None else apart[:num_test]),
    )


def as_row(prompt: Prompt) -> dict[str, object]:
    """A prompt as a line of a file of prompts: with its tools and what its template is options."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    options = dict(options_of(prompt))
    tools = {"tools": options.pop("tools")} if "tools" in options else {}
    items = [dict(item) if isinstance(item, Mapping) else item for item in prompt]
    return {"prompt": items, **tools, **({"chat_template_kwargs": options} if options else {})}
