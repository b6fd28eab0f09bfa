"""What a request calls a field: each endpoint has names of its own for the same thing."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.guides.brought import place_name
from trimtab.serving.responses_schema import ResponseRequest
from trimtab.serving.schema import ChatRequest, Sampled

PROMPT, LENGTH, FORM = "prompt", "max_new_tokens", "response_format"
"""What an error calls the prompt, the number of new tokens and the form of an answer, whatever the endpoint."""

_EVERYWHERE = {
    "template_options": "chat_template_kwargs",
    **{
        name: f"guidance.{name}"
        for name in ("weights", "plausibility", "guide_plausibility", "gates", "draft", "draft_tokens")
    },
}


def names_of(body: Sampled) -> Mapping[str, str]:
    """Field, as an error calls it -> as this request calls it, where that is another name.

    So too for the places of the sentences that the request brings.
    """
    prompts = body.guidance.prompts if body.guidance is not None else {}
    names = {**_EVERYWHERE, **{place_name(number): name for number, name in enumerate(prompts, 1)}}
    if isinstance(body, ResponseRequest):
        return {**names, PROMPT: "input", LENGTH: "max_output_tokens", FORM: "text.format"}
    if isinstance(body, ChatRequest):
        is_newer = body.max_completion_tokens is not None
        return {**names, PROMPT: "messages", LENGTH: "max_completion_tokens" if is_newer else "max_tokens"}
    return {**names, LENGTH: "max_tokens"}
