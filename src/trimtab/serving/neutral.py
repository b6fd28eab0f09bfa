"""Fields of a request that are refused unless they ask for nothing."""

from __future__ import annotations

from typing import Any

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "suffix": (None, ""),
    "echo": (None, False),
    "chat_template": (None,),
    "documents": (None, []),
    "ignore_eos": (None, False),
}
"""Fields of OpenAI's and vLLM's that cannot be honoured, and the values that ask for nothing."""
