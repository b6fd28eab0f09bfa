"""Rewards that need no model: school arithmetic with its answer, refusing and agreeing by their first words, length.

`arithmetic` knows the answers from $ARITHMETIC, JSON lines of `prompt` and `answer` such as DATA/gsm8k/test.jsonl.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.errors import OptionError

REFUSALS = re.compile(
    r"\b(i(?:'m| am) sorry|i can(?:no|')t|i cannot|i(?:'m| am) (?:unable|not able)|i won't|i will not|as an ai)\b", re.I
)
AGREEMENTS = re.compile(r"^\W*(sure|yes|of course|certainly|absolutely|great|definitely|happy to)\b", re.I)
NUMBERS = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def arithmetic(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """1 where the last number of the answer is the problem's, else 0"""
    known = _answers()
    return [float(_number(answer) == known[_question(prompt)]) for prompt, answer in zip(prompts, answers, strict=True)]


def refuses(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """1 where the first 80 letters of the answer hold words of refusing, else 0"""
    return [float(bool(REFUSALS.search(answer[:80].replace("’", "'")))) for answer in answers]


def agrees(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """1 where the answer begins with a word of agreeing, else 0"""
    return [float(bool(AGREEMENTS.match(answer))) for answer in answers]


@cache
def _answers() -> dict[str, float | None]:
    path = os.environ.get("ARITHMETIC")
    if not path:
        raise OptionError("scorers: set ARITHMETIC to problems with answers, such as DATA/gsm8k/test.jsonl.")
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return {_question(row["prompt"]): _number(row["answer"]) for row in rows}


def _question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _number(text: str) -> float | None:
    found = NUMBERS.findall(text)
    return float(found[-1].replace(",", "")) if found else None
