"""What a policy says of a prompt's own tokens, in OpenAI's shape (`echo`) and in vLLM's (`prompt_logprobs`).

A prompt is scored as an answer to its first token would be, of which nothing is said: each later token under the policy
that tokens of an answer are drawn from, before penalties, temperature and filters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.core import Prompt, Tokenizer
from trimtab.decoding.engine import GenerationEngine
from trimtab.decoding.text import text_of
from trimtab.prompts import is_chat
from trimtab.serving.wire import Json, Listed, Writer, finite, reader, top

_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt, and what was written of its tokens but the first."""

    prompt: Prompt
    first_id: int
    scores: Writer | None
    """None: it has one token, or nobody asked."""

    def echoed(self, choice: Json, tokenizer: Tokenizer) -> Json:
        """A completion's choice with the prompt in front of it, its log-probabilities too where the answer has some."""
        text = prompt_text(self.prompt, tokenizer)
        whole = {**choice, "text": text + choice["text"]}
        if choice["logprobs"] is None:
            return whole
        start = len(text_of(tokenizer, (), [self.first_id])[0])
        said = self.scores.logprobs() if self.scores is not None else {name: [] for name in _LISTS}
        answer = choice["logprobs"]
        front: dict[str, list[Any]] = {
            "tokens": [tokenizer.token_text(self.first_id), *said["tokens"]],
            "token_logprobs": [None, *said["token_logprobs"]],
            "top_logprobs": [None, *said["top_logprobs"]],
            "text_offset": [0, *(start + offset for offset in said["text_offset"])],
        }
        answer = {**answer, "text_offset": [len(text) + offset for offset in answer["text_offset"]]}
        return {**whole, "logprobs": {**answer, **{name: [*front[name], *answer[name]] for name in _LISTS}}}

    def as_vllm(self, num_rivals: int, tokenizer: Tokenizer) -> list[Json | None]:
        """For each token of the prompt a mapping from ids, its own first, to log-probability, rank (from 1), text."""
        listed: Sequence[Listed] = self.scores.listed if self.scores is not None else ()
        policy = self.scores.style.policy if self.scores is not None else ""
        read = reader(policy)
        return [
            None,
            *(
                {
                    str(token.token_id): {
                        "logprob": finite(read(token)),
                        "rank": 1 + (token.base_rank if policy == "base" else token.mixed_rank),
                        "decoded_token": tokenizer.token_text(token.token_id),
                    }
                    for token in (one.trace.chosen, *top(one.trace, policy, num_rivals))
                }
                for one in listed
            ),
        ]


def why_unscored(engine: GenerationEngine, weights: Mapping[str, float]) -> str:
    """Why an engine cannot say what the policy at these weights thinks of a prompt, as a sentence; empty: it can."""
    if not engine.has_forced:
        return "This server's engine takes no forced tokens, by which tokens that are given are scored."
    selecting = (name for name, guide in engine.guides.items() if guide.selection is not None)
    name = next((name for name in selecting if weights.get(name, engine.guides[name].weight) != 0), None)
    return "" if name is None else f"Guide {name} selects the token, so it says nothing of tokens that are given."


def prompt_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """A prompt as it was given, or the text of its tokens."""
    if isinstance(prompt, str):
        return prompt
    assert not is_chat(prompt), "a chat is not echoed"
    return text_of(tokenizer, (), [int(token) for token in prompt])[0]  # type: ignore[arg-type]
