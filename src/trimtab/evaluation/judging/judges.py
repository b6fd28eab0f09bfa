"""Judges: which of two answers to a prompt is better.

A reward model or another scorer reads one answer at a time, so the order in which answers stand means nothing to it. A
language model behind an OpenAI-compatible endpoint reads both (`chat_judge.py`), so it is asked in both orders.

What a judge does not know: what the methods were trained on. A method that was made to raise a reward will please a
judge that is the same reward; judge with another, or say that they are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.core import Message, Prompt
from trimtab.errors import OptionError, PromptError, ScoreError
from trimtab.storage.scorers import Scorer

FIRST, SECOND, TIE = "first", "second", "tie"
WINNERS = (FIRST, SECOND, TIE)

FORMS = ("openai:MODEL", "reward:PATH", "scorer:NAME")

COSTS = ("offence",)
"""Scorers of ours of which less is better."""


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to a prompt, in the order in which the judge sees them."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said, and what it took to get it out of it."""

    winner: str | None
    """One of `WINNERS`; None: there is no verdict, which is never a tie."""
    problem: str = ""
    """Why there is none."""
    num_calls: int = 0
    num_retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """Someone who compares answers."""

    @property
    def name(self) -> str:
        """What its verdicts are kept under."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What its verdicts depend on beside the texts, as JSON has it: with other settings it is another judge."""

    @property
    def description(self) -> str:
        """What it is, in words for a report."""

    @property
    def sees_order(self) -> bool:
        """Whether the order of two answers can matter to it."""

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """The verdict on each question with the question's index, as they come, in any order."""


class RewardJudge:
    """The answer with the higher reward is better, or with `lower_is_better` (a cost) the one with the lower.

    Equal ones tie; one that is not finite gives no verdict, and neither does a text that a reward model cannot read.
    """

    sees_order = False

    def __init__(self, name: str, scorer: Scorer, *, lower_is_better: bool = False, batch_size: int = 64) -> None:
        self.name = f"{name} (lower is better)" if lower_is_better else name
        self.description = f"the answer with {'less' if lower_is_better else 'more'} of {scorer.description}"
        self.settings = {"lower_is_better": lower_is_better, "files": scorer.contents()}
        self._sign = -1.0 if lower_is_better else 1.0
        self._scorer = scorer
        self._batch_size = batch_size
        self._known: dict[tuple[str, str], float | str] = {}
        """Prompt and text -> reward, or why there is none."""

    def judge(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """Verdicts in the order of the questions.

        Raises ScoreError, whose index is that of the question, where the scorer fails on a text, after the verdicts on
        all questions of the batch that do not need it.
        """
        for start in range(0, len(questions), self._batch_size):
            batch = questions[start : start + self._batch_size]
            failure = self._score(batch)
            first_left: int | None = None
            for index, question in enumerate(batch, start=start):
                found = [self._known.get(_key(question.prompt, text)) for text in (question.first, question.second)]
                if None in found:
                    first_left = index if first_left is None else first_left
                    continue
                yield index, _verdict(*found)
            if failure is not None:
                index = start if first_left is None else first_left
                raise failure.at(f"question {index}", index=index) from failure.__cause__

    def _score(self, questions: Sequence[Question]) -> ScoreError | None:
        """Score what is not known yet; a baseline's answers stand in many questions."""
        texts = {
            _key(question.prompt, text): (question.prompt, text)
            for question in questions
            for text in (question.first, question.second)
        }
        wanted = {key: pair for key, pair in texts.items() if key not in self._known}
        if not wanted:
            return None
        prompts, answers = [prompt for prompt, _ in wanted.values()], [text for _, text in wanted.values()]
        failure: ScoreError | None = None
        try:
            rewards: Sequence[float | str | None] = self._scorer.raw(prompts, answers)
        except ScoreError as error:
            rewards, failure = error.rewards, error
        except PromptError:
            rewards = [self._alone(*pair) for pair in wanted.values()]
        for key, reward in zip(wanted, rewards, strict=True):
            if reward is not None:
                self._known[key] = reward if isinstance(reward, str) else self._sign * reward
        return failure

    def _alone(self, prompt: Prompt, text: str) -> float | str:
        try:
            return self._scorer.raw([prompt], [text])[0]
        except PromptError as error:
            return str(error)


def _key(prompt: Prompt, text: str) -> tuple[str, str]:
    return repr(prompt), text


def _verdict(*rewards: float | str | None) -> Verdict:
    for reward in rewards:
        if not isinstance(reward, int | float):
            return Verdict(None, str(reward))
        if not math.isfinite(reward):
            return Verdict(None, "a reward is not finite")
    first, second = (float(reward) for reward in rewards if isinstance(reward, int | float))
    return Verdict(FIRST if first > second else SECOND if second > first else TIE)


def conversation(prompt: Prompt) -> str:
    """A prompt as a judge should read it: the text, or the messages with who said them. Raises PromptError for ids."""
    if isinstance(prompt, str):
        return prompt
    messages = [message for message in prompt if not isinstance(message, int)]
    if len(messages) != len(prompt):
        raise PromptError("A prompt is token ids, which no judge can read. Give text or chat messages.")
    if len(messages) == 1 and messages[0]["role"] == "user":
        return _said(messages[0])
    return "\n\n".join(f"{message['role']}: {_said(message)}" for message in messages)


def _said(message: Message) -> str:
    """What a message says: its text, and its calls of tools."""
    text, calls = str(message.get("content") or ""), message.get("tool_calls")
    return f"{text}\n{json.dumps(calls, ensure_ascii=False)}".lstrip() if calls else text


def split_judge(name: str) -> tuple[str, str]:
    """`openai:MODEL`, `reward:PATH` or `scorer:NAME` -> its kind and the rest. Raises OptionError."""
    kind, _, rest = name.partition(":")
    if kind not in ("openai", "reward", "scorer") or not rest:
        raise OptionError(f"{name!r} is not a judge. Accepted: {', '.join(FORMS)}.")
    return kind, rest
