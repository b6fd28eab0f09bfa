"""A reply of `/v1/responses`: one message of text, whole or as the events of its growth."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.answers import Step
from trimtab.serving.responses_schema import ResponseRequest
from trimtab.serving.wire import Json, Writer


@dataclass(slots=True)
class GrowingResponse:
    """One reply, while its message grows. Events are numbered in their order."""

    body: ResponseRequest
    writer: Writer
    created: int
    num_prompt_tokens: int
    response_id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    num_events: int = 0
    logprobs: list[Json] = field(default_factory=list)
    """Those that have been sent."""

    def whole(self) -> Json:
        """The reply of a request without a stream, once the answer has ended."""
        choice = self.writer.whole()
        content = [] if choice["logprobs"] is None else choice["logprobs"]["content"]
        return self._reply(self._status, [self._item(self._status, self.writer.text, content)], choice.get("guidance"))

    def started(self) -> Iterator[Json]:
        """The events before the first token."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._reply("in_progress", []))
        yield self._event(
            "response.output_item.added", output_index=0, item={**self._item("in_progress", "", []), "content": []}
        )
        yield self._event("response.content_part.added", **self._place, part=_part("", []))

    def grown(self, step: Step) -> Iterator[Json]:
        """The event of a step that makes a piece of the text certain."""
        piece = self.writer.piece(step)
        if piece is None:
            return
        added = [] if piece["logprobs"] is None else piece["logprobs"]["content"]
        self.logprobs += added
        if step.text or added:
            more = {"guidance": piece["guidance"]} if "guidance" in piece else {}
            yield self._event("response.output_text.delta", **self._place, delta=step.text, logprobs=added, **more)

    def ended(self) -> Iterator[Json]:
        """The events after the last token."""
        text, status = self.writer.text, self._status
        yield self._event("response.output_text.done", **self._place, text=text, logprobs=self.logprobs)
        yield self._event("response.content_part.done", **self._place, part=_part(text, self.logprobs))
        item = self._item(status, text, self.logprobs)
        yield self._event("response.output_item.done", output_index=0, item=item)
        said = self.writer.start().get("guidance")
        yield self._event(f"response.{status}", response=self._reply(status, [item], said))

    def failed(self, error: Json) -> Json:
        """The event of an answer that failed; `error` is OpenAI's body of an error."""
        inner = error["error"]
        return self._event("error", code=inner["code"], message=inner["message"], param=inner["param"])

    @property
    def _status(self) -> str:
        return "incomplete" if self.writer.finish_reason == "length" else "completed"

    @property
    def _place(self) -> Json:
        return {"item_id": self.message_id, "output_index": 0, "content_index": 0}

    def _item(self, status: str, text: str, logprobs: list[Json]) -> Json:
        return {
            "type": "message",
            "id": self.message_id,
            "status": status,
            "role": "assistant",
            "content": [_part(text, logprobs)],
        }

    def _event(self, name: str, **content: Any) -> Json:
        self.num_events += 1
        return {"type": name, "sequence_number": self.num_events - 1, **content}

    def _reply(self, status: str, output: list[Json], guidance: Json | None = None) -> Json:
        body, num_new = self.body, self.writer.num_tokens
        form = None if body.text is None or body.text.format is None else body.text.format
        shown = {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)
        usage = {
            "input_tokens": self.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},  # nothing is kept from one request to another
            "output_tokens": num_new,
            "output_tokens_details": {"reasoning_tokens": 0},  # a thought is part of the text
            "total_tokens": self.num_prompt_tokens + num_new,
        }
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": shown},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else usage,
            **({} if guidance is None else {"guidance": guidance}),
        }


def _part(text: str, logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
