"""Judges of answers that no guide, reward model or policy of a comparison has trained on or with: words and lengths.

    JUDGE_DATA=DATA trimtab compare recipes/helpful_harmless.yaml --out runs/helpful-harmless

`judges:helpful` and `judges:harmless` are Bradley-Terry models on TF-IDF features (see two_guides.py), fitted when
first asked to the training pairs of $JUDGE_DATA/helpful and $JUDGE_DATA/harmless. They share the methods' data, but not
their architecture or weights. They are weak (0.63 and 0.58 of the held-out pairs), as docs/evaluation/results.md says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from two_guides import Judge, clean_pairs


def helpful(prompts: Sequence[object], answers: Sequence[str]) -> list[float]:
    """log-odds of being the more helpful answer, by a judge of words and length"""
    return _judge("helpful").reward(list(answers))


def harmless(prompts: Sequence[object], answers: Sequence[str]) -> list[float]:
    """log-odds of being the more harmless answer, by a judge of words and length"""
    return _judge("harmless").reward(list(answers))


@cache
def _judge(objective: str) -> Judge:
    data = os.environ.get("JUDGE_DATA")
    if not data:
        raise SystemExit("judges: set JUDGE_DATA to the directory of helpful/train.jsonl and harmless/train.jsonl")
    return Judge(clean_pairs(Path(data) / objective / "train.jsonl"))
