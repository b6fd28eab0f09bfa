"""A reply of `/v1/responses`: a message of text and calls of functions, whole or as the events of their growth."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.answers import Step
from trimtab.serving.response_items import CallItem, Event, TextItem
from trimtab.serving.responses_schema import ResponseRequest
from trimtab.serving.wire import Json, Writer


@dataclass(slots=True)
class GrowingResponse:
    """One reply, while its items grow. Events are numbered in their order."""

    body: ResponseRequest
    writer: Writer
    created: int
    num_prompt_tokens: int
    response_id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    num_events: int = 0
    items: list[TextItem | CallItem] = field(default_factory=list)
    """Those that have begun; all but the last one have ended."""
    untold: list[Json] = field(default_factory=list)
    """What is to be explained of tokens with the next event that says anything."""

    def whole(self) -> Json:
        """The reply of a request without a stream, once the answer has ended."""
        choice = self.writer.whole()
        message = choice["message"]
        calls = message.get("tool_calls", [])
        if message["content"] or not calls:
            content = [] if choice["logprobs"] is None else choice["logprobs"]["content"]
            self.items.append(TextItem(0, message["content"] or "", content))
        for call in calls:
            function = call["function"]
            self.items.append(CallItem(len(self.items), call["id"], function["name"], function["arguments"]))
        return self._reply(self._status, choice.get("guidance"))

    def started(self) -> Iterator[Json]:
        """The events before the first token."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._reply("in_progress"))
        if self.writer.calls is None:
            yield from self._begun(TextItem(0))

    def grown(self, step: Step) -> Iterator[Json]:
        """The events of a step that makes a piece of the text or of a call certain."""
        piece = self.writer.piece(step)
        if piece is None:
            return
        self.untold += piece.get("guidance", {}).get("tokens", [])
        added = [] if piece["logprobs"] is None else piece["logprobs"]["content"]
        delta = piece["delta"]
        if (text := delta.get("content", "")) or added:
            yield from self._grown_text(text, added)
        for entry in delta.get("tool_calls", []):
            yield from self._grown_call(entry)

    def ended(self) -> Iterator[Json]:
        """The events after the last token."""
        if not self.items:
            yield from self._begun(TextItem(0))
        yield from self._closed(self._status)
        said = self.writer.start().get("guidance")
        yield self._event(f"response.{self._status}", response=self._reply(self._status, said))

    def failed(self, error: Json) -> Json:
        """The event of an answer that failed; `error` is OpenAI's body of an error."""
        inner = error["error"]
        return self._event("error", code=inner["code"], message=inner["message"], param=inner["param"])

    def _grown_text(self, text: str, logprobs: list[Json]) -> Iterator[Json]:
        if not self.items:
            yield from self._begun(TextItem(0))
        item = self.items[-1]
        assert isinstance(item, TextItem)  # no text follows a call
        yield from self._events(item.grown(text, logprobs, self._explained()))

    def _grown_call(self, entry: Json) -> Iterator[Json]:
        function = entry["function"]
        if "id" in entry:
            yield from self._closed("completed")
            yield from self._begun(CallItem(len(self.items), entry["id"], function["name"]))
        item = self.items[-1]
        assert isinstance(item, CallItem)  # a call's pieces follow its beginning
        if function["arguments"]:
            yield from self._events(item.grown(function["arguments"], self._explained()))

    def _begun(self, item: TextItem | CallItem) -> Iterator[Json]:
        self.items.append(item)
        yield from self._events(item.opened())

    def _closed(self, status: str) -> Iterator[Json]:
        for item in self.items[-1:]:
            yield from self._events(item.closed(status, self._explained()))

    def _explained(self) -> Json:
        """What is told of tokens now, so that it is told once."""
        tokens, self.untold = self.untold, []
        return {"guidance": {"tokens": tokens}} if tokens else {}

    @property
    def _status(self) -> str:
        return "incomplete" if self.writer.finish_reason == "length" else "completed"

    def _events(self, events: Iterator[Event]) -> Iterator[Json]:
        for name, content in events:
            yield self._event(name, **content)

    def _event(self, name: str, /, **content: Any) -> Json:
        self.num_events += 1
        return {"type": name, "sequence_number": self.num_events - 1, **content}

    def _reply(self, status: str, guidance: Json | None = None) -> Json:
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
            "output": [one.item(status if one is self.items[-1] else "completed") for one in self.items],
            "parallel_tool_calls": bool(body.tools) and body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": shown},
            "tool_choice": _said(body.tool_choice) or ("auto" if body.tools else "none"),
            "tools": [_said(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else usage,
            **({} if guidance is None else {"guidance": guidance}),
        }


def _said(value: Any) -> Any:
    """A part of the request, as it was sent."""
    return value if value is None or isinstance(value, str) else value.model_dump(exclude_none=True)
