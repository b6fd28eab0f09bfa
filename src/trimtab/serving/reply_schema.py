"""The wire types of replies, for the published description of the API; what is in them is made in `replies`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """The body of every reply that is not a success."""

    error: ErrorBody


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """One answer; a chat has `message`, a completion `text`."""

    index: int
    finish_reason: Literal["stop", "length"]
    message: dict[str, Any] | None = None
    text: str | None = None
    logprobs: dict[str, Any] | None = None
    guidance: dict[str, Any] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class Completion(BaseModel):
    """The reply to a chat or a completion."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class Response(BaseModel):
    """The reply to `/v1/responses`; its other fields say again what was asked for."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class Named(BaseModel):
    """A model, a preset or a guide."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model", "guide"]


class NamedList(BaseModel):
    """OpenAI's shape of a list."""

    object: Literal["list"]
    data: list[Named]


class ModelList(NamedList):
    """The base and the presets; each guide's own weight, each preset's weights, and what a request may ask for."""

    guides: dict[str, float]
    presets: dict[str, dict[str, float]]
    limits: dict[str, int | float]


class GuideList(NamedList):
    """The guides, and what sentences a request may bring as further ones (null: none)."""

    prompts: dict[str, int | float] | None = None


class Status(BaseModel):
    """How the server is."""

    status: str
