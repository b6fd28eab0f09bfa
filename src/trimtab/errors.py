"""Everything trimtab raises, in one tree.

TrimtabError
├── InputError (ValueError)          what the caller gave is wrong
│   ├── OptionError                  an unknown name, key or option; a value out of range
│   ├── PromptError                  an empty prompt, or one longer than the context
│   ├── UnknownModelError            a model name that a server does not have
│   ├── DataError                    a malformed or empty line of data (carries path and line)
│   └── OutputExistsError            an output file is in the way
├── CheckpointError (ValueError)     a guide or model directory that is missing, corrupt or unsafe
├── CompatibilityError (ValueError)  parts that do not belong together
│   ├── VocabularyMismatchError      two vocabularies differ in content
│   └── BaseMismatchError            an adapter was trained on another base
├── ModelError (RuntimeError)        a model or guide misbehaved while running
│   ├── NotFiniteError               NaN where log-probabilities should be
│   ├── DeadEndError                 every candidate is forbidden
│   ├── UnexpectedError              any other error, raised while a request ran
│   └── ScoreError                   a scorer failed, or gave no number (carries which text, and the other rewards)
├── ServingError (RuntimeError)      a server could not answer
│   ├── QueueFullError               too many answers wait
│   ├── DeadlineError                an answer took too long
│   ├── StoppedError                 the server is ending
│   └── ClientGoneError              nobody waits for the answer any more
└── MissingExtraError (ImportError)  an optional dependency is not installed

Every message says what is wrong with the value, what is accepted, and the way out.
"""

from __future__ import annotations

import difflib
import importlib.util
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar


class TrimtabError(Exception):
    """Base of every error that trimtab raises on purpose.

    All of them pickle, so that one raised in another process (a Ray worker) arrives with its sentence.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[TrimtabError], args: tuple[Any, ...], state: dict[str, Any]) -> TrimtabError:
    """The error again, without its constructor, whose arguments are not those of the message."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InputError(TrimtabError, ValueError):
    """What the caller gave is wrong."""


class OptionError(InputError):
    """An unknown name, key or option, or a value out of range."""


class PromptError(InputError):
    """A prompt that cannot be used: empty, or longer than the context."""


class UnknownModelError(InputError):
    """A model name that is neither a server's base nor one of its presets."""


class DataError(InputError):
    """A malformed or empty piece of data; `path` and `line` (1-based) say where, when known."""

    def __init__(self, problem: str, *, path: str | Path | None = None, line: int | None = None) -> None:
        where = "" if path is None else f"{path}{'' if line is None else f', line {line}'}: "
        super().__init__(where + problem)
        self.path = None if path is None else Path(path)
        self.line = line


class OutputExistsError(InputError):
    """An output file is in the way. `resume` says whether what writes it could go on with it (--resume)."""

    def __init__(self, path: str | Path, *, resume: bool = True) -> None:
        go_on = "--resume to continue it, " if resume else ""
        super().__init__(f"{path} already exists. Give {go_on}--overwrite to replace it, or another path.")


class CheckpointError(TrimtabError, ValueError):
    """A guide or model directory that is missing, corrupt or unsafe to load."""


class CompatibilityError(TrimtabError, ValueError):
    """Parts that do not belong together."""


class VocabularyMismatchError(CompatibilityError):
    """Two vocabularies differ in content."""


class BaseMismatchError(CompatibilityError):
    """An adapter that was trained on another base model."""


class ModelError(TrimtabError, RuntimeError):
    """A model or a guide misbehaved while running."""


class NotFiniteError(ModelError):
    """NaN where log-probabilities or scores should be."""


class DeadEndError(ModelError):
    """Every candidate of a row is forbidden, so nothing can be sampled."""


class UnexpectedError(ModelError):
    """An error that nobody foresaw ended a request; it is the cause (`__cause__`) of this one."""


class ScoreError(ModelError):
    """A scorer that failed, or gave no reward that can be used.

    `index` is the place of the first text at fault among those that were scored, None where the fault is of all of them
    together. `rewards` holds the reward of each text, None where there is none.
    """

    def __init__(
        self, scorer: str, problem: str, *, place: str, index: int | None, rewards: Sequence[float | None]
    ) -> None:
        super().__init__(f"Scorer {scorer} {problem.replace('{place}', place)}")
        self.scorer = scorer
        self.problem = problem
        self.index = index
        self.rewards = list(rewards)

    def at(self, place: str, *, index: int | None = None) -> ScoreError:
        """The same error with the text named as the caller knows it, for example `prompt 3`, and its index there."""
        index = self.index if index is None else index
        return ScoreError(self.scorer, self.problem, place=place, index=index, rewards=self.rewards)


class ServingError(TrimtabError, RuntimeError):
    """A server could not answer, by no fault of the request."""


class QueueFullError(ServingError):
    """More answers wait than the server lets wait."""


class DeadlineError(ServingError):
    """An answer took longer than the server lets it."""


class StoppedError(ServingError):
    """The server is ending, or its generation thread has died."""


class ClientGoneError(ServingError):
    """Nobody waits for the answer any more."""


class MissingExtraError(TrimtabError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}, which is not installed. Run: pip install "trimtab[{extra}]"')
        self.package = package
        self.extra = extra


def require(*packages: str, extra: str, purpose: str) -> None:
    """Raise MissingExtraError for the first of some packages, by the names that they are imported by, that is not
    installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra, purpose)


def unknown_name(kind: str, name: str, accepted: Iterable[str]) -> OptionError:
    """The error for a name that is not among the accepted ones; suggests the nearest."""
    known = sorted(accepted)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known) if known else "none"
    return OptionError(f"Unknown {kind} {name!r}.{hint} Accepted: {listed}.")


_Error = TypeVar("_Error", bound=TrimtabError)


def naming(kind: Callable[[str], _Error], template: str, *values: object) -> _Error:
    """An error whose message names settings: `{field}` is a setting's name, `{0}`, `{1:g}`, ... are the values.

    The text names fields, as Python does; the command line, which knows the flags, words it again (`renamed`).
    """
    error = kind(_filled(template, values, str))
    vars(error)["naming"] = (template, values)
    return error


def renamed(error: BaseException, name_of: Callable[[str], str]) -> str | None:
    """The message with each setting called `name_of(field)`, asked for in their order; None for an error that names no
    settings."""
    if "naming" not in vars(error):
        return None
    template, values = vars(error)["naming"]
    return _filled(template, values, name_of)


def about(field: str, error: _Error) -> _Error:
    """The error, which says that this setting is at fault, whatever its message names first."""
    vars(error)["about"] = field
    return error


def blamed(error: BaseException) -> str | None:
    """The setting that an error is `about`; None where it does not say."""
    return vars(error).get("about")


def _filled(template: str, values: Sequence[object], name_of: Callable[[str], str]) -> str:
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name and not name.isdigit()]
    return template.format(*values, **{name: name_of(name) for name in dict.fromkeys(fields)})
