"""What a request says of the form of its answers, as OpenAI's clients and vLLM's say it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trimtab.constraining.entry import grammars
from trimtab.constraint import Constraint
from trimtab.core import KnownModel
from trimtab.errors import MissingExtraError, OptionError, naming
from trimtab.serving.schema import Asked


def constraint_of(body: Asked, model: KnownModel) -> Constraint | None:
    """The constraint of a request's answers, compiled already where it will be asked for.

    Compiling takes a moment, which is spent in the thread of whoever calls this, so that the batch goes on meanwhile.
    Raises OptionError for one that cannot be used, and for two.
    """
    given = _given(body)
    if not given:
        return None
    if len(given) > 1:
        both = " and ".join(f"{{{name}}}" for name in given)
        raise naming(OptionError, f"{both} each say what the answer must look like; send one of them.")
    ((name, make),) = given.items()
    try:
        constraint = make()
        grammars(model).compiled(constraint)
    except MissingExtraError as error:
        why = f"which lacks {error.package}"
        raise naming(OptionError, f"{{{name}}} is not supported by this server, {{0}}; leave it out.", why) from None
    except OptionError as error:
        raise naming(OptionError, f"{{{name}}}: {{0}}", error) from None
    return constraint


def _given(body: Asked) -> dict[str, Callable[[], Constraint]]:
    """Field -> what makes the constraint that it asks for, which may raise OptionError."""
    found: dict[str, Callable[[], Constraint]] = {}
    asked = body.response_format
    if asked is not None and asked.type != "text":
        schema = None if asked.json_schema is None else asked.json_schema.json_schema
        found["response_format"] = Constraint.json_object if schema is None else partial(Constraint.json_schema, schema)
    if body.guided_json is not None:
        found["guided_json"] = partial(Constraint.json_schema, body.guided_json)
    if body.guided_regex is not None:
        found["guided_regex"] = partial(Constraint.regex, body.guided_regex)
    if body.guided_grammar is not None:
        found["guided_grammar"] = partial(Constraint.grammar, body.guided_grammar)
    if body.guided_choice is not None:
        found["guided_choice"] = partial(Constraint.choice, body.guided_choice)
    return found
