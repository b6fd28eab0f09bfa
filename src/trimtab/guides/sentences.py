"""The sentences of a guide: a noun, without torch and without what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from trimtab.errors import OptionError, unknown_name

AUTO, SYSTEM, USER = "auto", "system", "user"
PLACES = (AUTO, SYSTEM, USER)
"""Where a sentence stands in a chat: in the system message; before the first text of the user; or in the system message
where the chat template has a role for it, else before the user's text."""
SEPARATOR = "\n\n"
"""What stands between a sentence and the text that it is put before, unless somebody says."""


@dataclass(frozen=True)
class Sentences:
    """The sentence that a guide steers towards, maybe one that it steers away from, how strongly, and where they stand.

    `guides.prompt.PromptGuide` is the guide and says what each field means. Raises OptionError for a sentence that is
    empty, for two that are the same, and for an unknown place.
    """

    towards: str
    away: str | None = None
    weight: float = 1.0
    place: str = AUTO
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        for sentence in self.sentences:
            if not isinstance(sentence, str):
                raise OptionError(f"A sentence of a guide is {sentence!r}; give a text.")
            if not sentence.strip():
                raise OptionError("A sentence of a guide is empty, so it would change nothing. Write what is wanted.")
        if self.away == self.towards:
            raise OptionError(
                f"Both sentences of a guide are the same ({cut(self.towards)!r}), so that they cancel. Give two that "
                "differ, or one."
            )
        if self.place not in PLACES:
            raise unknown_name("place of a sentence", self.place, PLACES)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentence that it steers towards, and the one that it steers away from, where there is one."""
        return (self.towards,) if self.away is None else (self.towards, self.away)

    def facts(self) -> Mapping[str, object]:
        """The content of `guide.json`."""
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return {"format": 1, "kind": "prompt", "prompt": said}


def cut(text: str) -> str:
    """A sentence as a message quotes it: its beginning."""
    return text if len(text) <= 60 else text[:60] + "..."
