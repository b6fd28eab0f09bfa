"""A prompt and its answer as token ids: what decoding feeds and what it produces. Training reads the same.

The ids of a prompt are its text's, as the chat template opens it for an answer. The ids of an answer are those that
follow the prompt's in the ids of prompt and answer together, up to the token that ends the turn in the template. Where
the last token of the prompt and the first of the answer would merge into one, they are kept apart, since decoding is fed
the first before it produces the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trimtab.core import Chat, Message
from trimtab.errors import CheckpointError, PromptError
from trimtab.models.templates import MARK, THOUGHTS, readable, render

_NEXT = "TheNextTurnIsHere"
_ANCHORS = ("\n", "a", ".", "0")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and an answer to it, as ids."""

    prompt_ids: list[int]
    answer_ids: list[int]
    """The last is the id that ends the answer."""
    num_cut: int
    """Characters that were cut off, since a token in the answer's own text ends it; decoding would stop there."""


class Conversations:
    """Texts and chat messages as ids, through one transformers tokenizer and its chat template."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf

    def text_ids(self, text: str) -> list[int]:
        """A text that is to be continued: one BOS where the tokenizer has the habit, and nothing that it puts behind.

        A tokenizer that ends each text by itself (`add_eos_token`, a separator) means whole texts, not beginnings.
        """
        return self._begun(self._plain(text))

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Messages through the template, opened for an answer, with one BOS; an assistant's at the end is continued.

        Raises PromptError for what the template refuses, and for what it would leave out without a word.
        """
        return self._begun(self._plain(self._prompt_text(readable(self._hf, messages))), chat=True)

    def text_exchange(self, text: str, answer: str, end_ids: frozenset[int]) -> Exchange:
        """A raw text and what continues it, ended by the end-of-sequence token."""
        prompt_ids = self.text_ids(text)
        answer_ids = self._following(text, prompt_ids, answer, self.text_ids)
        end = self._end_of_text(end_ids)
        return self._ended(prompt_ids, answer, [*answer_ids, end], end_ids | {end})

    def chat_exchange(
        self, messages: Sequence[Message], answer: str | Message, end_ids: frozenset[int]
    ) -> Exchange:
        """Chat messages and the assistant's answer (its text, or its message), ended as the template ends a turn.

        `end_ids` are the ids at which decoding stops. Raises PromptError as `chat_ids`, and CheckpointError where no
        token ends an answer.
        """
        response = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        chat = readable(self._hf, messages)
        readable(self._hf, Chat([response], chat.options, required=False))
        prompt = self._prompt_text(chat)
        prompt_ids = self._begun(self._plain(prompt), chat=True)
        body, ending = self._written(chat, response, prompt)

        def ids(text: str) -> list[int]:
            return self._begun(self._plain(text), chat=True)

        answer_ids = self._following(prompt, prompt_ids, body + ending, ids)
        if not end_ids.intersection(answer_ids):
            end = self._end_before_next_turn(chat, end_ids)
            end = self._end_of_text(end_ids) if end is None else end
            answer_ids = [*self._following(prompt, prompt_ids, body, ids), end]
            end_ids |= {end}
        return self._ended(prompt_ids, body, answer_ids, end_ids)

    def _prompt_text(self, chat: Chat) -> str:
        """The text of a prompt. Raises PromptError where the template leaves a message out."""
        if chat[-1]["role"] != "assistant":
            text = render(self._hf, chat, options=chat.options, opened=True)
        else:
            said = chat[-1].get("content") or ""
            text, _ = self._around(chat[:-1], {**chat[-1], "content": said}, chat)
        for number, message in enumerate(chat):
            if (message.get("content") or "").strip() not in text and self._leaves_out(chat, number):
                raise PromptError(
                    f"The model's chat template leaves out what {message['role']!r} says in message {number + 1}. Say "
                    "it in a message of another role, or use a model whose template knows this one."
                )
        return text

    def _leaves_out(self, chat: Chat, number: int) -> bool:
        """Whether nothing of a message's content is written; a template may alter it, or take a thought out."""
        asked = [*chat[:number], {**chat[number], "content": MARK}, *chat[number + 1 :]]
        return MARK not in render(self._hf, asked, options=chat.options, opened=chat[-1]["role"] != "assistant")

    def _around(self, messages: Sequence[Message], last: Message, chat: Chat) -> tuple[str, str]:
        """The text up to the end of the last message's content, that as it stands, and what the template writes after.

        A template that trims the content, or takes a thought out of it, is asked where it would stand.
        """
        said = last["content"]
        for content in (said, ""):
            text = render(self._hf, [*messages, {**last, "content": content + MARK}], options=chat.options, opened=False)
            before, mark, after = text.rpartition(MARK)
            if mark and before.endswith(content):
                return before if content == said else before + said, after
        raise PromptError(
            "The model's chat template leaves out the assistant's last message, so it cannot be continued. Give the "
            "prompt as raw text, or end it with another message."
        )

    def _written(self, chat: Chat, response: Message, prompt: str) -> tuple[str, str]:
        """(what follows the prompt's text up to the end of the answer, how the template ends the turn)."""
        continued = chat[-1]["role"] == "assistant"
        before = chat[:-1] if continued else chat
        start = (chat[-1].get("content") or "") if continued else ""
        said = response.get("content") or ""
        message = {**response, "content": start + said}
        whole = render(self._hf, [*before, message], options=chat.options, opened=False)
        try:
            header, ending = self._around(before, message, chat)
        except PromptError:  # it leaves out what was said last
            header, ending = prompt + said, ""
        thought = next((response[name] for name in THOUGHTS if response.get(name)), "")
        if whole.startswith(prompt) and whole.endswith(ending):
            body = whole[len(prompt) : len(whole) - len(ending)]
            if said.strip() in body and str(thought).strip() in body:
                return body, ending
        if lost := next((name for name in (*THOUGHTS, "tool_calls") if response.get(name)), None):
            raise PromptError(
                f"The model's chat template does not write {lost!r} of an answer behind the prompt as it opens one "
                f"({prompt[-40:]!r}), so it cannot be learnt. Put all that the model is to say into `content`."
            )
        header = header.removesuffix(start + said)
        opened = prompt[len(header) :] if prompt.startswith(header) and not continued else ""
        return _without_opening(said, opened), ending

    def _end_before_next_turn(self, chat: Chat, end_ids: frozenset[int]) -> int | None:
        """The id that ends an assistant's turn where another follows; None where the template writes none."""
        question = next((message for message in chat if message["role"] == "user"), {"role": "user", "content": "a"})
        turns = [question, {"role": "assistant", "content": MARK}, {"role": "user", "content": _NEXT}]
        try:
            text = render(self._hf, turns, options=chat.options, opened=False)
        except PromptError:
            return None
        between = text.rpartition(MARK)[2].partition(_NEXT)[0]
        return next((token_id for token_id in self._plain(between) if token_id in end_ids), None)

    def _end_of_text(self, end_ids: frozenset[int]) -> int:
        """The id that ends a raw text: the tokenizer's, unless decoding does not stop there."""
        eos = self._hf.eos_token_id
        if eos is None and not end_ids:
            raise CheckpointError(
                "Neither the tokenizer nor the model names an end-of-sequence token, so a response cannot end. "
                "Set eos_token in the tokenizer's configuration."
            )
        return int(eos) if eos is not None and (eos in end_ids or not end_ids) else min(end_ids)

    def _ended(self, prompt_ids: list[int], body: str, answer_ids: list[int], end_ids: frozenset[int]) -> Exchange:
        """An answer up to the first token that ends it."""
        place = next(place for place, token_id in enumerate(answer_ids) if token_id in end_ids)
        behind = [body.partition(self._decoded([token_id]))[2] for token_id in end_ids]
        return Exchange(prompt_ids, answer_ids[: place + 1], max(len(text.strip()) for text in behind))

    def _following(
        self, before: str, before_ids: list[int], text: str, ids_of: Callable[[str], list[int]]
    ) -> list[int]:
        """The ids of a text that stands behind another one, whose ids are there already."""
        whole = ids_of(before + text)
        if whole[: len(before_ids)] == before_ids:
            return whole[len(before_ids) :]
        wanted = self._decoded(whole)
        for anchor in _ANCHORS:
            start, joint = self._plain(anchor), self._plain(anchor + text)
            found = joint[len(start) :]
            if joint[: len(start)] == start and self._decoded([*before_ids, *found]) == wanted:
                return found
        return self._plain(text)

    def _decoded(self, token_ids: Sequence[int]) -> str:
        text: str = self._hf.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _begun(self, token_ids: list[int], *, chat: bool = False) -> list[int]:
        """With what the tokenizer puts before a text, once, wherever a template or the text itself writes it too."""
        bos, start = self._hf.bos_token_id, self.habits[0]
        if chat and not start and bos is not None and token_ids[:1] == [bos]:
            start = [bos]
        written = 0
        while start and (token_ids[written : written + 1] == [bos] or _begins(token_ids, start, written)):
            written += 1 if token_ids[written] == bos else len(start)
        return [*start, *token_ids[written:]]

    @cached_property
    def habits(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a raw text by itself."""
        for probe in ("a", "0", "."):
            inner, whole = self._plain(probe), [int(token_id) for token_id in self._hf(probe)["input_ids"]]
            for place in range(len(whole) - len(inner) + 1 if inner else 0):
                if whole[place : place + len(inner)] == inner:
                    return whole[:place], whole[place + len(inner) :]
        num_start = whole[:1] == [self._hf.bos_token_id]
        return whole[:num_start], whole[num_start:]

    def _plain(self, text: str) -> list[int]:
        """Ids without anything that the tokenizer adds by itself."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PromptError("The prompt holds a lone surrogate, which is half of a character.") from None
        found = self._hf(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [int(token_id) for token_id in found]


def _begins(token_ids: Sequence[int], start: Sequence[int], place: int) -> bool:
    return list(token_ids[place : place + len(start)]) == list(start)


def _without_opening(said: str, opened: str) -> str:
    """What was said, without the thought's mark that the prompt has opened already."""
    mark = opened.strip()
    if not mark or not said.lstrip().startswith(mark):
        return said
    rest = said.lstrip()[len(mark) :]
    return rest.lstrip("\n") if opened.endswith("\n") else rest
