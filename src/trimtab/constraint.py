"""What an answer must look like: one of core's nouns, without torch and without what enforces it.

A constraint is a guide that scores 0 or −inf: tokens after which the answer could no longer become one of the accepted
texts are forbidden before guides are mixed in. `constraining` compiles it and says what it allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from trimtab.calls import CallFormat, Function
from trimtab.errors import OptionError

Schema: TypeAlias = Mapping[str, Any] | bool | str
"""A JSON schema: as Python has it, or as a text of JSON."""

JSON_SCHEMA, REGEX, GRAMMAR, CHOICE, CALLS = "json_schema", "regex", "grammar", "choice", "calls"
KINDS = (JSON_SCHEMA, REGEX, GRAMMAR, CHOICE, CALLS)
MAX_CHARACTERS = 65_536
"""The longest text of a constraint: a longer one takes too long to compile."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The texts that an answer may be. Made by `json_schema`, `json_object`, `regex`, `grammar`, `choice` or
    `calls`.

    It says nothing of a model; whether a model's tokens can write such texts is found when a request is made. Raises
    OptionError for a text that is too long, or that is not of its kind as far as can be seen without compiling it.

    >>> from trimtab import Constraint
    >>> Constraint.choice(["yes", "no"]).kind
    'choice'
    >>> Constraint.json_schema("{")
    Traceback (most recent call last):
    trimtab.errors.OptionError: The JSON schema is not JSON: Expecting property name enclosed in double quotes: line 1 \
column 2 (char 1). Give an object such as {"type": "object"}.
    """

    kind: str
    """One of `KINDS`."""
    text: str
    """The schema, the list of choices or what is said of calls, as JSON; the expression or the grammar as given."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"{self.kind!r} is not a kind of constraint; accepted: {', '.join(KINDS)}.")
        if not isinstance(self.text, str):
            raise OptionError(f"The {self._name} is {self.text!r:.60}; give a text.")
        if len(self.text) > MAX_CHARACTERS:
            raise OptionError(
                f"The {self._name} has {len(self.text)} characters; at most {MAX_CHARACTERS} are taken. Shorten it."
            )
        try:
            self.text.encode()
        except UnicodeEncodeError:
            raise OptionError(f"The {self._name} holds half of a character (a lone surrogate); leave it out.") from None
        if self.kind in (GRAMMAR, REGEX) and not self.text.strip("\n"):
            raise OptionError(f"The {self._name} is empty; give one that accepts some text.")

    @classmethod
    def json_schema(cls, schema: Schema) -> Constraint:
        """JSON that a schema accepts, its properties in the order of the schema."""
        if isinstance(schema, str):
            schema = _parsed(schema)
        if not isinstance(schema, Mapping | bool):
            raise OptionError(f'A JSON schema is an object or a truth value, not {schema!r:.60}; give {{"type": ...}}.')
        return cls(JSON_SCHEMA, _as_json(schema))

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, expression: str) -> Constraint:
        """Texts that a regular expression matches from the first character to the last.

        In the syntax of Rust's `regex`: no look-around and no back-references; `\\d` is a digit of any script, and `.`
        anything but a line feed.
        """
        return cls(REGEX, expression)

    @classmethod
    def grammar(cls, text: str) -> Constraint:
        """Texts of a context-free grammar, in llguidance's Lark syntax (`start: "a" start | "b"`) or in GBNF."""
        return cls(GRAMMAR, text)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of some texts."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts) or not len(texts):
            raise OptionError(f"The choices are {texts!r:.100}; give at least one text, in a list.")
        return cls(CHOICE, _as_json(list(texts)))

    @classmethod
    def calls(
        cls,
        written: CallFormat,
        functions: Sequence[Function],
        *,
        required: bool = False,
        several: bool = True,
        form: Schema | None = None,
    ) -> Constraint:
        """Calls of functions as a model writes them, their arguments as each function's schema has them.

        `required` asks for a call; else any text may be answered, or JSON of the schema `form`. `several` lets more
        than one call follow each other, where the model writes several at all.
        """
        if not functions:
            raise OptionError("There is no function to call. Give at least one.")
        value = {
            "format": written.as_json(),
            "functions": [{"name": one.name, "parameters": one.parameters} for one in functions],
            "required": required,
            "several": several,
            "form": form,
        }
        return cls(CALLS, _as_json(value))

    @property
    def value(self) -> Any:
        """The schema, the list of choices or what is said of calls; of the other kinds the text."""
        return json.loads(self.text) if self.kind in (JSON_SCHEMA, CHOICE, CALLS) else self.text

    @property
    def _name(self) -> str:
        """What a message calls it."""
        return NAMES[self.kind]


NAMES: Mapping[str, str] = {
    JSON_SCHEMA: "JSON schema",
    REGEX: "regular expression",
    GRAMMAR: "grammar",
    CHOICE: "list of choices",
    CALLS: "list of functions",
}
"""Kind -> what a message calls a constraint of it."""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise OptionError("The JSON schema is nested too deeply to be read. Make it flatter.") from None
    except ValueError as error:
        raise OptionError(
            f'The JSON schema is not JSON: {error}. Give an object such as {{"type": "object"}}.'
        ) from None


def _as_json(value: Mapping[str, Any] | bool | list[str]) -> str:
    """JSON in one line, in the order that was given."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise OptionError("The JSON schema is nested too deeply to be read. Make it flatter.") from None
    except (TypeError, ValueError) as error:
        raise OptionError(f"The JSON schema cannot be written as JSON ({error}). Give plain values.") from None
