"""The wire types of an answer's form: OpenAI's `response_format` and vLLM's `guided_*`.

What they hold is checked where a constraint is made of it (`forms`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_MAX_CHOICES = 10_000


class NamedSchema(BaseModel):
    """OpenAI's: a JSON schema with a name, which nothing depends on. It is always followed strictly."""

    model_config = _STRICT

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] | bool = Field(alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's: text as it comes, any JSON object, or JSON that a schema accepts."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _a_schema_where_one_is_named(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type 'json_schema', and with no other; give both or neither")
        return self


GuidedJson = Annotated[
    dict[str, Any] | bool | str | None, Field(description="as vLLM's: answers are JSON that this JSON schema accepts")
]
GuidedRegex = Annotated[str | None, Field(description="as vLLM's: answers match this regular expression as a whole")]
GuidedGrammar = Annotated[
    str | None, Field(description="as vLLM's: answers are texts of this grammar, in llguidance's Lark or in GBNF")
]
GuidedChoice = Annotated[
    Annotated[list[str], Field(fail_fast=True, max_length=_MAX_CHOICES)] | None,
    Field(description="as vLLM's: answers are one of these texts"),
]
