"""Fields of other servers' requests that this one has no use for: those that are ignored, and those that are refused.

Each table is what docs/serving/api.md prints. A field that is in neither, nor one of a request's own, is refused as
unknown; null stands for a field that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Ignored = Mapping[str, str]
"""Field -> why leaving it out of account changes no answer."""
Refused = Mapping[str, Sequence[Any]]
"""Field -> the values that ask for nothing; any other is refused by the field's name."""

IGNORED: Ignored = {
    "user": "who asks changes no answer, and nothing of it is kept",
    "safety_identifier": "who asks changes no answer, and nothing of it is kept",
    "metadata": "nothing is kept that it could stand beside",
    "prompt_cache_key": "prompts that run share what they have in common without it",
    "prompt_cache_retention": "nothing of a prompt is kept once its answer has ended",
    "service_tier": "there is one tier",
    "parallel_tool_calls": "there are no tools",
    "request_id": "the reply has an id of its own",
    "priority": "requests are taken in their order",
}
REFUSED: Refused = {
    "store": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "typical_p": (1, 1.0),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "structured_outputs": ({},),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "thinking_token_budget": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "cache_salt": (),
    "vllm_xargs": ({},),
    "mm_processor_kwargs": ({},),
    "kv_transfer_params": ({},),
}
IGNORED_IN_CHATS: Ignored = {name: why for name, why in IGNORED.items() if name != "parallel_tool_calls"}
REFUSED_IN_CHATS: Refused = {"suffix": ("",), "echo": (False,), "best_of": (1,), "add_special_tokens": (False,)}
REFUSED_IN_COMPLETIONS: Refused = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "suffix": ("",),
    "add_special_tokens": (True,),
    "prompt_embeds": (),
    "top_logprobs": (0,),
    "max_completion_tokens": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (),
    "continue_final_message": (False,),
}
IGNORED_IN_RESPONSES: Ignored = {
    name: why for name, why in IGNORED.items() if name not in ("metadata", "parallel_tool_calls")
}
REFUSED_IN_RESPONSES: Refused = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    "reasoning": ({},),
    "max_tool_calls": (),
    "truncation": ("disabled",),
    "n": (1,),
    "response_format": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "prompt_logprobs": (),
    "add_special_tokens": (False,),
    "max_tokens": (),
    "max_completion_tokens": (),
}
REFUSED_IN_TEXT_OPTIONS: Refused = {"verbosity": ("medium",)}
IGNORED_IN_INPUT: Ignored = {
    "id": "the order of the messages says what follows what",
    "status": "a message is what it says",
    "phase": "a message is what it says",
}
IGNORED_IN_STREAM_OPTIONS: Ignored = {"include_obfuscation": "pieces of a stream are not padded"}
REFUSED_IN_STREAM_OPTIONS: Refused = {"continuous_usage_stats": (False,)}
IGNORED_IN_MESSAGES: Ignored = {
    "id": "the order of the messages says what follows what",
    "refusal": "what an assistant would not say is no part of the prompt",
    "annotations": "sources are no part of the prompt",
    "audio": "only text is read",
    "function_call": "what was called is not shown to the model; its result is",
    "parsed": "the content is the same as text",
    "provider_specific_fields": "what another server added is no part of the prompt",
}
IGNORED_IN_PARTS: Ignored = {
    "id": "the order of the parts says what follows what",
    "cache_control": "prompts that run share what they have in common without it",
    "annotations": "sources are no part of the prompt",
    "logprobs": "an answer that is sent back counts as its text",
}


def asks_for_nothing(value: Any, neutral: Sequence[Any]) -> bool:
    """Whether a value is one of those; true and 1 are two."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)
