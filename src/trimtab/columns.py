"""Names of columns and keys in other people's data: which carry nothing that a model would read.

A column that may be part of a prompt is used, or refused by name; it is never dropped without a word. What is known to
be about a row and not of it (where it is from, what somebody thought of it) is passed over, and so is a number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_ABOUT = frozenset(
    (
        *("id", "ids", "uid", "uuid", "idx", "index", "key", "hash", "sha1", "sha256", "md5"),
        *("source", "sources", "origin", "dataset", "subset", "split", "fingerprint", "url", "license", "version"),
        *("category", "categories", "topic", "topics", "tag", "tags", "label", "labels", "type", "kind", "domain"),
        *("score", "scores", "rating", "ratings", "rank", "ranks", "ranking", "margin", "reward", "rewards"),
        *("quality", "difficulty", "confidence", "agreement", "preference", "winner", "order", "status", "stats"),
        *("model", "models", "annotator", "annotators", "annotation", "annotations", "worker", "judge", "evaluator"),
        *("language", "lang", "locale", "timestamp", "time", "date", "created", "updated", "meta", "metadata", "info"),
        *("safe", "safety", "severity", "harm", "harmful", "toxicity", "toxic", "redacted", "moderation", "flagged"),
        *("length", "len", "count", "num", "principle", "criterion", "criteria", "rubric"),
    )
)
"""Words in the name of a column that say what is known about a row."""

_SPLIT = re.compile(r"[^a-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")


def is_metadata(name: str) -> bool:
    """Whether a column's name says that it is about the row: `prompt_id`, `score_chosen`, `chosen-model`, `language`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name))
    return any(word in _ABOUT for word in _SPLIT.split(spaced.lower()))


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, a text of blanks, an empty list or object."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Collection) and len(value) == 0)


def unused_columns(row: Mapping[str, Any], used: Collection[str], passed_over: Collection[str] = ()) -> list[str]:
    """The columns of a row that may carry meaning and that nobody reads.

    Not among them: `used` ones, those that are to be passed over, metadata, empty ones, numbers and truth values.
    """
    return [
        name
        for name, value in row.items()
        if name not in used
        and name not in passed_over
        and not is_metadata(name)
        and not is_empty(value)
        and not isinstance(value, bool | int | float)
    ]
