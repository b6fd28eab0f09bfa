"""A prompt and its answer as token ids: what decoding feeds and what it produces. Training reads the same.

The ids of a prompt are its text's, as the chat template opens it for an answer. The ids of an answer are those that
follow the prompt's in the ids of prompt and answer together, up to the token that ends the turn in the template. Where
the last token of the prompt and the first of the answer would merge into one, they are kept apart, since decoding is
fed the first before it produces the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trimtab.core import Chat, Message
from trimtab.errors import CheckpointError, PromptError
from trimtab.models.tokenizing.beginning import begun_once
from trimtab.models.tokenizing.templates import MARK, THOUGHTS, readable, render

_NEXT = "TheNextTurnIsHere"
_TELLING = 20
"""Characters of a content that no template's own text holds by chance."""
_ANCHORS = ("\n", "a", ".", "0")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and an answer to it, as ids."""

    prompt_ids: list[int]
    answer_ids: list[int]
    """The last is the id that ends the answer."""
    num_cut: int
    """Characters that were cut off, since a token in the answer's own text ends it; decoding would stop there."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A chat that is ready for an answer."""

    chat: Chat
    text: str
    ids: list[int]
    header: str
    """What the template writes up to an assistant's words, where it opens nothing besides."""
    ending: str
    """What it writes after them."""


class Conversations:
    """Texts and chat messages as ids, through one transformers tokenizer and its chat template."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        self._end_texts: dict[int, str] = {}

    def text_ids(self, text: str) -> list[int]:
        """A text that is to be continued: one BOS where the tokenizer has the habit, and nothing that it puts behind.

        A tokenizer that ends each text by itself (`add_eos_token`, a separator) means whole texts, not beginnings.
        """
        return self._begun(self._plain(text))

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Messages through the template, opened for an answer, with one BOS; an assistant's at the end is continued.

        Raises PromptError for what the template refuses, and for what it would leave out without a word.
        """
        return self._begun(self._plain(self.chat_text(messages)), chat=True)

    def chat_text(self, messages: Sequence[Message], *, opened: bool | None = None) -> str:
        """The text of messages, opened for an answer, or (`opened` False) with the last one to be continued.

        None: as the `Chat` says, by default with an assistant's message at the end continued. Raises PromptError as
        `chat_ids`.
        """
        return self._prompt_text(readable(self._hf, messages), opened=opened)

    def exchanges(
        self, prompt: str | Sequence[Message], answers: Sequence[Message], end_ids: frozenset[int]
    ) -> list[Exchange]:
        """A prompt with each of several answers to it.

        A raw text is continued by an answer's content and ended by the end-of-sequence token; an answer to chat
        messages is ended as the template ends a turn. `end_ids` are the ids at which decoding stops. Raises PromptError
        for what cannot be read whole, and CheckpointError where no token ends an answer.
        """
        if isinstance(prompt, str):
            prompt_ids = self.text_ids(prompt)
            return [self._text_exchange(prompt, prompt_ids, answer, end_ids) for answer in answers]
        chat = readable(self._hf, prompt)
        readable(self._hf, Chat(answers, chat.options, required=False))
        text = self._prompt_text(chat)
        opened = _Opened(chat, text, self._begun(self._plain(text), chat=True), *self._turn(chat))
        return [self._chat_exchange(opened, answer, end_ids) for answer in answers]

    def _text_exchange(self, prompt: str, prompt_ids: list[int], answer: Message, end_ids: frozenset[int]) -> Exchange:
        if lost := next((name for name in answer if name not in ("role", "content")), None):
            raise PromptError(f"Its answer has {lost!r}, which a raw text cannot say. Give the prompt as messages.")
        text, end = answer["content"], self._end_of_text(end_ids)
        answer_ids = [*self._following(prompt, prompt_ids, text, self.text_ids), end]
        return self._ended(prompt_ids, text, answer_ids, end_ids | {end})

    def _chat_exchange(self, opened: _Opened, answer: Message, end_ids: frozenset[int]) -> Exchange:
        body, ending = self._written(opened, answer)

        def ids(text: str) -> list[int]:
            return self._begun(self._plain(text), chat=True)

        answer_ids = self._following(opened.text, opened.ids, body + ending, ids)
        if not end_ids.intersection(answer_ids):
            end = self._end_before_next_turn(opened.chat, end_ids)
            end = self._end_of_text(end_ids) if end is None else end
            answer_ids = [*self._following(opened.text, opened.ids, body, ids), end]
            end_ids |= {end}
        return self._ended(opened.ids, body, answer_ids, end_ids)

    def _prompt_text(self, chat: Chat, *, opened: bool | None = None) -> str:
        """The text of a prompt. Raises PromptError where the template leaves a message out."""
        wanted = chat.opened if opened is None else opened
        if chat[-1]["role"] != "assistant" if wanted is None else wanted:
            text = render(self._hf, chat, options=chat.options, opened=True)
        elif opened is None and chat.opened is False:
            text = render(self._hf, chat, options=chat.options, opened=False)
        else:
            said = chat[-1].get("content") or ""
            text, _ = self._around(chat[:-1], {**chat[-1], "content": said}, chat)
        contents = [(message.get("content") or "").strip() for message in chat]
        if any(len(content) < _TELLING or content not in text for content in contents):
            self._check_all_is_said(chat)
        return text

    def _check_all_is_said(self, chat: Chat) -> None:
        """Raise PromptError where nothing of a message is written; a template may alter it, or take a thought out."""
        marks = [f"{MARK}{number}." for number in range(len(chat))]
        marked = [{**message, "content": mark} for message, mark in zip(chat, marks, strict=True)]
        try:
            text = render(self._hf, marked, options=chat.options, opened=False)
        except PromptError:
            return  # it looks at what is said, and refuses marks
        for number, (message, mark) in enumerate(zip(chat, marks, strict=True), 1):
            if message.get("content") and mark not in text:
                raise PromptError(
                    f"The model's chat template leaves out what {message['role']!r} says in message {number}. Say it "
                    "in a message of another role, or use a model whose template knows this one."
                )

    def _around(self, messages: Sequence[Message], last: Message, chat: Chat) -> tuple[str, str]:
        """The text up to the end of the last message's content, that as it stands, and what the template writes after.

        A template that trims the content, or takes a thought out of it, is asked where it would stand.
        """
        said = last["content"]
        for content in (said, ""):
            text = render(
                self._hf, [*messages, {**last, "content": content + MARK}], options=chat.options, opened=False
            )
            before, mark, after = text.rpartition(MARK)
            if mark and before.endswith(content):
                return before if content == said else before + said, after
        raise PromptError(
            "The model's chat template leaves out the assistant's last message, so it cannot be continued. Give the "
            "prompt as raw text, or end it with another message."
        )

    def _turn(self, chat: Chat) -> tuple[str, str]:
        """What the template writes up to the assistant's words behind a chat, and after them."""
        before = chat[:-1] if chat[-1]["role"] == "assistant" else chat
        try:
            return self._around(before, {"role": "assistant", "content": ""}, chat)
        except PromptError:  # it leaves out what was said last
            return "", ""

    def _written(self, opened: _Opened, answer: Message) -> tuple[str, str]:
        """(what follows the prompt's text up to the end of the answer, how the template ends the turn)."""
        chat, prompt, ending = opened.chat, opened.text, opened.ending
        continued = chat[-1]["role"] == "assistant"
        start = (chat[-1].get("content") or "") if continued else ""
        said = answer.get("content") or ""
        messages = [*(chat[:-1] if continued else chat), {**answer, "content": start + said}]
        whole = render(self._hf, messages, options=chat.options, opened=False)
        thought = next((answer[name] for name in THOUGHTS if answer.get(name)), "")
        if whole.startswith(prompt) and whole.endswith(ending):
            body = whole[len(prompt) : len(whole) - len(ending)]
            if said.strip() in body and str(thought).strip() in body:
                return body, ending
        if lost := next((name for name in (*THOUGHTS, "tool_calls") if answer.get(name)), None):
            raise PromptError(
                f"The model's chat template does not write {lost!r} of an answer behind the prompt as it opens one "
                f"({prompt[-40:]!r}), so it cannot be learnt. Put all that the model is to say into `content`."
            )
        begun = prompt[len(opened.header) :] if prompt.startswith(opened.header) and not continued else ""
        return _without_opening(said, begun), ending

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
        text = self._end_texts.get(answer_ids[place])
        if text is None:
            text = self._end_texts[answer_ids[place]] = self._decoded([answer_ids[place]])
        return Exchange(prompt_ids, answer_ids[: place + 1], len(body.partition(text)[2].strip()))

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
        start, following = begun_once(token_ids, self._hf.bos_token_id, self.habits[0], as_written=chat)
        return [*start, *following]

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


def _without_opening(said: str, opened: str) -> str:
    """What was said, without the thought's mark that the prompt has opened already."""
    mark = opened.strip()
    if not mark or not said.lstrip().startswith(mark):
        return said
    rest = said.lstrip()[len(mark) :]
    return rest.lstrip("\n") if opened.endswith("\n") else rest
