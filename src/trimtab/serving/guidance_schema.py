"""The wire types of guidance: what trimtab adds to a request of OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trimtab.params import NO_DRAFT
from trimtab.serving.sampling import bounds, meaning
from trimtab.serving.wire_schema import Name, Text, Wire, few


def _towards(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("give a text, or an object of towards, away and place")
    return {"towards": value} if isinstance(value, str) else value


class Sentences(Wire):
    """A sentence that a request brings as a guide, or two: towards one, away from the other."""

    towards: Text
    away: Text | None = None
    place: Literal["auto", "system", "user"] = "auto"


class Guidance(Wire):
    """What trimtab adds to a request: `extra_body={"guidance": {...}}` in OpenAI's Python client."""

    weights: Annotated[dict[Name, float], BeforeValidator(few)] = Field(
        default_factory=dict, description="guide -> weight; 0 turns a guide off"
    )
    prompts: Annotated[dict[Name, Annotated[Sentences, BeforeValidator(_towards)]], BeforeValidator(few)] = Field(
        default_factory=dict, description="name -> a sentence, or {towards, away, place}, as a guide; see `weights`"
    )
    explain: bool = Field(default=False, description="add to each token why it was chosen")
    alternatives: int = Field(default=5, ge=0, le=20, description="with explain: rivals of each token")
    logprobs: Literal["mixed", "base"] = Field(default="mixed", description="of which policy `logprobs` are")
    plausibility: Annotated[float, bounds("plausibility")] = Field(default=0.0, description=meaning("plausibility"))
    guide_plausibility: Annotated[dict[Name, Annotated[float, bounds("guide_plausibility")]], BeforeValidator(few)] = (
        Field(default_factory=dict, description=meaning("guide_plausibility"))
    )
    gates: Annotated[dict[Name, Name], BeforeValidator(few)] = Field(default_factory=dict, description=meaning("gates"))
    draft: Name = Field(default=NO_DRAFT, description=meaning("draft"))
    draft_tokens: Annotated[int, bounds("draft_tokens")] | None = Field(
        default=None, description=meaning("draft_tokens")
    )

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        return few(data)
