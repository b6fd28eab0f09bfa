"""Constraints compiled against one model's vocabulary, each once.

Compiled is what llguidance makes of a Lark grammar. Masks hold every token that some accepted text continues with, not
only those that the tokenizer would cut that text into: so a constrained policy is the base's, restricted and nothing
else (llguidance's own way, `forcing`, keeps one token where the text is certain).
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

import llguidance
from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from trimtab.constraining.calls import arguments_schema, lark_of_calls
from trimtab.constraining.endless import endless_rule, endless_schema
from trimtab.constraining.matching import Compiled, Matching
from trimtab.constraining.schemas import with_blanks
from trimtab.constraining.trial import try_to_compile
from trimtab.constraining.vocabulary import vocabulary_of
from trimtab.constraint import CALLS, CHOICE, GRAMMAR, JSON_SCHEMA, NAMES, REGEX, Constraint
from trimtab.core import KnownModel, Tokenizer
from trimtab.errors import OptionError

MOST_KEPT = 512
"""Compiled constraints that are kept for the next request with the same."""


class Grammars:
    """The constraints of one model's requests. Several threads may ask."""

    def __init__(self, model: KnownModel) -> None:
        """Raises OptionError for a model whose answers cannot be constrained."""
        if model.tokenizer is None:
            raise OptionError("This model has no tokenizer, so its answers have no text to constrain.")
        if not any(token_id < model.vocab_size for token_id in model.eos_ids):
            raise OptionError("This model has no end-of-sequence token, so a constrained answer could not end.")
        self._vocabulary = vocabulary_of(model)
        self._vocab_size = model.vocab_size
        self._kept: OrderedDict[Constraint, Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def matching(self, constraint: Constraint) -> Matching:
        """A request's way through a constraint. Raises what `compiled` raises."""
        return Matching(self.compiled(constraint))

    def compiled(self, constraint: Constraint) -> Compiled:
        """A constraint made ready.

        Raises OptionError for one that is invalid or too large, that no finite text satisfies, or that this model's
        tokens cannot write.
        """
        with self._lock:
            if constraint in self._kept:
                self._kept.move_to_end(constraint)
                return self._kept[constraint]
        made = self._compile(constraint)
        with self._lock:
            self._kept[constraint] = made
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return made

    def _compile(self, constraint: Constraint) -> Compiled:
        name = NAMES[constraint.kind]
        lark = lark_of(constraint)
        try_to_compile(lark_of(constraint, any_model=True), Path(llguidance.__file__).parents[1], name)
        matcher = LLMatcher(self._vocabulary, lark, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise OptionError(f"The {name} cannot be used: {_reason(matcher)}")
        _check_ends(constraint, lark)
        compiled = Compiled(matcher, self._vocabulary, self._vocab_size)
        if not Matching(compiled).begins():
            raise OptionError(f"The {name} admits no answer that this model's tokens can write. Give another.")
        return compiled


_GRAMMARS: weakref.WeakKeyDictionary[Tokenizer, dict[object, Grammars]] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def grammars_of(model: KnownModel) -> Grammars:
    """The grammars of a model, made when they are first asked for and shared by all who decode with its tokenizer.

    Raises OptionError for a model whose answers cannot be constrained.
    """
    if model.tokenizer is None:
        return Grammars(model)
    with _MAKING:
        try:
            known = _GRAMMARS.setdefault(model.tokenizer, {})
        except TypeError:  # a tokenizer of one's own that cannot be remembered
            return Grammars(model)
        key = (model.vocab_size, model.eos_ids)
        if key not in known:
            known[key] = Grammars(model)
        return known[key]


def lark_of(constraint: Constraint, *, any_model: bool = False) -> str:
    """A constraint as a Lark grammar that forces no token. Raises OptionError for one that cannot be made into one.

    `any_model`: one that names no token of this model's, and takes as long to compile.
    """
    if constraint.kind == JSON_SCHEMA:
        body = f"start: %json {json.dumps(with_blanks(constraint.value))}"
    elif constraint.kind == REGEX:
        expression = llguidance.regex_to_lark(constraint.text, "").replace("\n", "\\n")
        body = f"start: /{expression}/"
    elif constraint.kind == CHOICE:
        body = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in constraint.value)
    elif constraint.kind == CALLS:
        body = lark_of_calls(constraint.value, any_model=any_model)
    else:
        try:
            body = any_to_lark(constraint.text)
        except Exception as error:  # the converter raises whatever it trips over
            said = " ".join(str(error).split())[:200]
            raise OptionError(
                "The grammar is neither Lark, which has a rule `start: ...`, nor GBNF, which has one `root ::= ...`: "
                f"{said}"
            ) from None
    return f'%llguidance {{"no_forcing": true}}\n{body}\n'


def _check_ends(constraint: Constraint, lark: str) -> None:
    """Raise OptionError for a schema or a grammar with a part that no finite text satisfies."""
    if constraint.kind == JSON_SCHEMA and (place := endless_schema(constraint.value)) is not None:
        raise OptionError(
            f"The JSON schema asks for a value without end at {place}: it needs itself in every case. Make a property "
            "on the way optional, or give an alternative."
        )
    for function in constraint.value["functions"] if constraint.kind == CALLS else ():
        if (place := endless_schema(arguments_schema(function["parameters"]))) is not None:
            raise OptionError(f"The arguments of {function['name']!r} ask for a value without end at {place}.")
    if constraint.kind == GRAMMAR and (rule := endless_rule(lark)) is not None:
        raise OptionError(
            f"The grammar's rule {rule!r} has no end: it needs itself in every alternative. Give it one without."
        )


def _reason(matcher: LLMatcher) -> str:
    """What the compiler says is wrong, in one line."""
    text = matcher.get_error().partition("\n<")[0].strip()
    if text.startswith("panic"):
        return "the compiler does not understand it. A special token in it may be one that no answer has."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = " ".join(line for line in lines if "|" not in line and set(line) != {"^"})
    _, _, after = said.partition("): ") if said.startswith("at ") else ("", "", said)
    return f"{(after or said or 'it is not understood')[:300].rstrip('.')}."
