"""Requests on their way from a row of prompts to a line of answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.cli.prompts import PromptRow
from trimtab.cli.results import plain
from trimtab.errors import DataError, PromptError

if TYPE_CHECKING:
    from trimtab.answers import Answer, Step, TokenTrace
    from trimtab.decoding.engine import GenerationEngine

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Request:
    """One prompt on its way to an answer."""

    row: PromptRow
    weights: Mapping[str, Any]
    seed: int
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    traces: list[TokenTrace] = field(default_factory=list)
    finish_reason: str | None = None
    problem: str | None = None
    failed: bool = False
    """Whether an error ended it while it ran."""

    def refuse(self, error: PromptError) -> None:
        """Finish without an answer: a row that says why keeps answers and prompts in step."""
        self.finish_reason, self.problem = "error", str(error)
        log.warning("no answer: %s", located(error, self.row))

    def fail(self, error: Exception) -> None:
        """Finish with what there is of an answer that an error ended; the others go on."""
        self.failed = True
        self.problem = str(error)
        log.error("an answer failed: %s", located(error, self.row))

    def take(self, step: Step) -> None:
        """Add what one step brought."""
        if step.error is not None:
            self.fail(step.error)
        if step.token_id is not None:
            self.token_ids.append(step.token_id)
        self.texts.append(step.text)
        if step.trace is not None:
            self.traces.append(step.trace)
        self.finish_reason = step.finish_reason

    def take_answer(self, answer: Answer, weights: Mapping[str, Any]) -> None:
        """A whole answer at once; `weights` are what it was steered with, as it is written."""
        self.token_ids, self.texts = list(answer.token_ids), [answer.text]
        self.traces, self.finish_reason = list(answer.trace or ()), answer.finish_reason
        self.weights = weights

    def as_row(self, *, trace: bool) -> dict[str, Any]:
        """The answer as it is written."""
        row: dict[str, Any] = {
            "prompt": self.row.prompt,
            "text": "".join(self.texts),
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "weights": dict(self.weights),
            "seed": self.seed,
        }
        from trimtab.prompts import options_of

        if template_options := options_of(self.row.prompt):
            row["chat_template_kwargs"] = dict(template_options)
        if self.problem is not None:
            row["error"] = self.problem
        if trace:
            row["trace"] = [plain(dataclasses.asdict(step)) for step in self.traces]
        return row


def located(error: Exception, row: PromptRow) -> Exception:
    """The error with the line of the prompt that it is about."""
    if row.line is None or not isinstance(error, PromptError):
        return error
    return DataError(str(error), path=row.path, line=row.line)


def in_order(
    decoder: GenerationEngine, running: Mapping[int, Request], requests: Sequence[Request]
) -> Iterator[Request]:
    """Step until every request is finished; give each back as soon as it and those before it are."""
    for request in requests:
        while request.finish_reason is None:
            for step in decoder.step():
                running[step.request_id].take(step)
        yield request
