"""The items of a reply of `/v1/responses`: a message of text, and calls of functions; as they are, and as they grow."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trimtab.serving.wire import Json

Event = tuple[str, Json]
"""The name of an event, and what it says."""


@dataclass(slots=True)
class TextItem:
    """The message of a reply."""

    place: int
    """Which item of the reply it is."""
    text: str = ""
    logprobs: list[Json] = field(default_factory=list)
    item_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")

    def opened(self) -> Iterator[Event]:
        """The events of its beginning."""
        yield (
            "response.output_item.added",
            {"output_index": self.place, "item": {**self.item("in_progress"), "content": []}},
        )
        yield "response.content_part.added", {**self._at, "part": _part("", [])}

    def grown(self, text: str, logprobs: list[Json], more: Json) -> Iterator[Event]:
        """The event of a piece of it."""
        self.text += text
        self.logprobs += logprobs
        yield "response.output_text.delta", {**self._at, "delta": text, "logprobs": logprobs, **more}

    def closed(self, status: str, more: Json) -> Iterator[Event]:
        """The events of its end."""
        yield "response.output_text.done", {**self._at, "text": self.text, "logprobs": self.logprobs, **more}
        yield "response.content_part.done", {**self._at, "part": _part(self.text, self.logprobs)}
        yield "response.output_item.done", {"output_index": self.place, "item": self.item(status)}

    def item(self, status: str) -> Json:
        """The item as a reply has it."""
        content = [_part(self.text, self.logprobs)]
        return {"type": "message", "id": self.item_id, "status": status, "role": "assistant", "content": content}

    @property
    def _at(self) -> Json:
        return {"item_id": self.item_id, "output_index": self.place, "content_index": 0}


@dataclass(slots=True)
class CallItem:
    """A call of a function."""

    place: int
    """Which item of the reply it is."""
    call_id: str
    name: str
    arguments: str = ""
    item_id: str = field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")

    def opened(self) -> Iterator[Event]:
        """The event of its beginning."""
        yield "response.output_item.added", {"output_index": self.place, "item": self.item("in_progress")}

    def grown(self, arguments: str, more: Json) -> Iterator[Event]:
        """The event of a piece of its arguments."""
        self.arguments += arguments
        yield "response.function_call_arguments.delta", {**self._at, "delta": arguments, **more}

    def closed(self, status: str, more: Json) -> Iterator[Event]:
        """The events of its end."""
        done = {**self._at, "name": self.name, "arguments": self.arguments, **more}
        yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": self.place, "item": self.item(status)}

    def item(self, status: str) -> Json:
        """The item as a reply has it."""
        said = {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return {"type": "function_call", "id": self.item_id, "status": status, **said}

    @property
    def _at(self) -> Json:
        return {"item_id": self.item_id, "output_index": self.place}


def _part(text: str, logprobs: list[Json]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
