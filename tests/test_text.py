"""The text of an answer is the text of its tokens, whatever the tokenizer, and grows without taking anything back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.tiny import BYTE_TEMPLATE, byte_llama
from tests.tiny_tokenizers import KINDS, made
from trimtab import Decoder, SamplingParams
from trimtab.core import Prompt
from trimtab.decoding.text import TextStream, shown_tokens, text_of
from trimtab.models.hf import HFModel, HFTokenizer
from trimtab.models.tokenizing.spelling import BROKEN, STEADY, ByteSpelling, WholeSpelling, bytes_of, shared

NAMES = list(KINDS)


@dataclass(frozen=True)
class Written:
    """An answer's tokens after a prompt's, and stop strings."""

    tokenizer: HFTokenizer
    prompt_ids: list[int]
    token_ids: list[int]
    stop: tuple[str, ...] = ()

    def added(self, num_tokens: int) -> str:
        """What the first tokens add to the decoded prompt, from decoding everything at once."""
        before = self.tokenizer.decode(self.prompt_ids)
        whole = self.tokenizer.decode([*self.prompt_ids, *self.token_ids[:num_tokens]])
        return whole[len(shared([before, whole])) :]

    def stream(self) -> tuple[list[str], list[bytes], TextStream, int]:
        """The texts and pieces that a stream gives, the stream, and how many tokens it took."""
        stream, texts, pieces = TextStream(self.tokenizer, self.stop, self.prompt_ids), [], []
        taken = 0
        for token_id in self.token_ids:
            texts.append(stream.push(token_id))
            pieces += stream.pieces
            taken += 1
            if stream.stopped:
                return texts, pieces, stream, taken
        texts.append(stream.finish())
        return texts, [*pieces, *stream.pieces], stream, taken


@some.composite
def answers(draw: Any, name: str, *, stops: bool) -> Written:
    """Random ids, the rare kinds (bytes, special and added tokens) as often as others."""
    tokenizer = HFTokenizer(made(name))
    size = len(tokenizer.hf)
    ids = some.one_of(
        some.integers(0, size - 1),
        some.integers(size - 12, size - 1),
        some.integers(0, 4),
        some.sampled_from(_runs(name)),
    )
    prompt_ids, token_ids = draw(some.lists(ids, max_size=6)), draw(some.lists(ids, max_size=16))
    written = Written(tokenizer, prompt_ids, token_ids)
    if not stops:
        return written
    text = written.added(len(token_ids)) or "x"
    start = draw(some.integers(0, len(text) - 1))
    stop = text[start : start + draw(some.integers(1, 4))]
    other = draw(some.text("ab ▁日\ufffd.x", min_size=1, max_size=3))
    return Written(tokenizer, prompt_ids, token_ids, (stop, other))


def _runs(name: str) -> list[int]:
    """Ids of spaces and of single bytes of one character, where a tokenizer has such; else any."""
    tokens = made(name).get_vocab()
    bytewise = [f"<0x{byte:02X}>" for byte in "日 😀".encode()]
    return [tokens[token] for token in (*bytewise, *"æĹ¥ðŁ", "▁", "▁▁", "▁▁a") if token in tokens] or [0, 5]


class Replacing:
    """A backend that takes marks out of what it has decoded, as CLIP's does."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def decode(self, *ids: Any, **how: Any) -> str:
        return str(self._backend.decode(*ids, **how)).replace("</w>", " ")


class ByteTokenizer:
    """One byte a token; a piece of a character decodes to U+FFFD, as byte-level vocabularies do."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")

    def spelling(self, prompt_ids: Sequence[int]) -> ByteSpelling:
        return ByteSpelling(self.token_bytes, prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_a_tokenizer(name: str) -> None:
    assert HFTokenizer(made(name))._decoding.kind == KINDS[name][0]


def test_a_decoder_that_does_not_do_what_its_stages_say_is_not_believed() -> None:
    tokenizer = KINDS["metaspace"][1]()
    tokenizer._tokenizer = Replacing(tokenizer._tokenizer)
    assert HFTokenizer(tokenizer)._decoding.kind == "whole"


def test_half_of_a_character_is_no_end_of_a_stream() -> None:
    tokenizer = transformers.CanineTokenizer()
    assert text_of(HFTokenizer(tokenizer), [], [0x61, 0xD800, 0x62])[0] == "a?b"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=some.data())
def test_the_text_is_the_text_of_the_tokens(name: str, data: some.DataObject) -> None:
    written = data.draw(answers(name, stops=False))
    texts, pieces, stream, _ = written.stream()
    expected = written.added(len(written.token_ids))
    assert "".join(texts) == stream.text == expected
    assert b"".join(pieces) == expected.encode()
    assert len(pieces) == len(written.token_ids)
    assert text_of(written.tokenizer, written.prompt_ids, written.token_ids) == (expected, None)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(data=some.data())
def test_stop_strings_are_found_in_that_text(name: str, data: some.DataObject) -> None:
    written = data.draw(answers(name, stops=True))
    texts, pieces, stream, taken = written.stream()
    whole = written.added(taken)
    cuts = [at for at in (whole.find(stop) for stop in written.stop) if at >= 0]
    assert stream.stopped == bool(cuts)
    assert "".join(texts) == stream.text == whole[: min(cuts, default=len(whole))]
    assert b"".join(pieces) == stream.text.encode()
    assert len(pieces) == taken
    if (
        KINDS[name][0] != "whole"
    ):  # as early as can be: no shorter answer has a stop string in it, unfinished ends aside
        for num_tokens in range(taken):
            assert not any(stop in written.added(num_tokens).rstrip(BROKEN) for stop in written.stop)


@pytest.mark.parametrize("name", [name for name in NAMES if KINDS[name][0] != "whole"])
def test_no_token_decodes_the_whole_answer_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = HFTokenizer(made(name))
    word = tokenizer.hf.convert_tokens_to_ids("a") if name != "words" else 5
    stream = TextStream(tokenizer, ("zzz",), [word] * 50)
    monkeypatch.setattr(tokenizer._decoding, "decode", None)
    longest = []
    if hasattr(stream._spelling, "_decode"):
        decode = stream._spelling._decode
        monkeypatch.setattr(stream._spelling, "_decode", lambda tokens: longest.append(len(tokens)) or decode(tokens))
    assert all(stream.push(word) for _ in range(50))
    assert max(longest, default=0) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_tokens_bytes_are_what_it_adds_in_the_middle_of_a_text(name: str) -> None:
    tokenizer = HFTokenizer(made(name))
    before = tokenizer.hf.convert_tokens_to_ids("a") if name != "words" else 5
    for token_id in range(len(tokenizer.hf)):
        added = Written(tokenizer, [before], [token_id]).added(1)
        assert bytes_of(tokenizer, token_id).decode(errors="replace") == added, token_id
        assert tokenizer.token_text(token_id) or not added


def test_a_tokenizer_that_takes_text_back_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    spelling = WholeSpelling(lambda ids: "x" * len(ids) if len(ids) < STEADY + 4 else "y" * len(ids), [])
    with caplog.at_level(logging.WARNING):
        pieces = [piece for _ in range(2 * STEADY + 4) for piece in spelling.push(0)]
    assert pieces[:2] == [b"x", b"x"]
    assert "changed text" in caplog.text


def pieces(text: str, stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(ByteTokenizer(), stop)  # type: ignore[arg-type]
    out = [stream.push(byte) for byte in text.encode()]
    return [*out, stream.finish()], stream


@pytest.mark.parametrize("text", ["plain", "naïve 🙂🙃 text", "日本語と中文", "👩‍👩‍👧 family", "e\u0301"])
def test_pieces_concatenate_to_the_text_and_hold_no_broken_character(text: str) -> None:
    out, stream = pieces(text)
    assert "".join(out) == text == stream.text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in out)


def test_an_answer_cut_inside_a_character_still_ends() -> None:
    stream = TextStream(ByteTokenizer())  # type: ignore[arg-type]
    out = [stream.push(byte) for byte in "a🙂".encode()[:3]]
    assert "".join(out) == "a"
    assert stream.finish() == stream.text[1:] != ""


def test_bytes_that_never_become_a_character_do_not_hold_the_text_for_ever() -> None:
    stream = TextStream(ByteTokenizer())  # type: ignore[arg-type]
    for _ in range(40):
        stream.push(0xFF)
    assert len(stream.text) >= 30


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "wo t"], "one t"),
        ("aab", ["ab"], "a"),
        ("END", ["END"], ""),
        ("EN and E", ["END"], "EN and E"),
        ("日本。終", ["。"], "日本"),
    ],
)
def test_stop_strings_span_tokens_and_are_left_out(text: str, stop: list[str], kept: str) -> None:
    out, stream = pieces(text, stop)
    assert "".join(out) == stream.text == kept
    assert stream.stopped == (kept != text)


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(ByteTokenizer(), ["###"])  # type: ignore[arg-type]
    assert [stream.push(byte) for byte in b"a##b"] == ["a", "", "", "##b"]


def test_without_a_tokenizer_there_is_no_text() -> None:
    stream = TextStream(None, ["x"])
    assert (stream.push(3), stream.finish(), stream.text) == ("", "", "")


@pytest.mark.parametrize("name", ["byte-level", "single bytes", "llama", "byte fallback"])
def test_a_character_is_made_of_its_tokens_bytes(name: str) -> None:
    tokenizer = HFTokenizer(made(name))
    by_bytes = {bytes_of(tokenizer, token_id): token_id for token_id in range(3, len(tokenizer.hf))}
    parts = [bytes([byte]) for byte in "日😀é".encode()] + [b"a"]
    texts, pieces, _, _ = Written(tokenizer, [by_bytes[b"a"]], [by_bytes[part] for part in parts]).stream()
    assert pieces == parts
    assert "".join(texts) == "日😀éa"


def test_a_beginning_of_spaces_is_stripped_once_over_all_its_tokens() -> None:
    tokenizer = HFTokenizer(made("byte fallback, space stripped"))
    space, word = tokenizer.hf.convert_tokens_to_ids(["▁", "▁a"])
    for prompt_ids in ([], [space], [tokenizer.hf.eos_token_id], [space, space]):
        written = Written(tokenizer, prompt_ids, [space, word, word])
        assert written.stream()[2].text == written.added(3)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_shown_as_they_stand_in_the_text(name: str) -> None:
    tokenizer = HFTokenizer(made(name))
    special = tokenizer.hf.eos_token_id
    ids = [token_id for token_id in range(5, len(tokenizer.hf)) if bytes_of(tokenizer, token_id)][:30]
    shown = shown_tokens(tokenizer, ids[:1], [*ids, special])
    assert "".join(shown) == text_of(tokenizer, ids[:1], ids)[0] + tokenizer.token_text(special)


ASKED = [{"role": "user", "content": "b"}]


@pytest.mark.parametrize(
    "prompt",
    ["a b", ASKED, [*ASKED, {"role": "assistant", "content": "a"}]],
    ids=["text", "chat", "an assistant's message"],
)
def test_an_answer_goes_on_where_its_prompt_ends(prompt: Prompt) -> None:
    """Answer, steps and pieces are one text, which does not lose the space that the first token writes."""
    tokenizer = made("llama")
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, BYTE_TEMPLATE
    decoder = Decoder(HFModel(byte_llama(tokenizer, max_length=64), tokenizer))
    bytewise = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in "日😀".encode()])
    forced = (*tokenizer.convert_tokens_to_ids(["▁was", "▁"]), *bytewise, tokenizer.eos_token_id)
    params = SamplingParams(max_new_tokens=len(forced), forced=forced, temperature=0)
    [answer] = decoder.answers([(prompt, params)])
    decoder.add(prompt, params)
    steps = []
    while decoder.num_running or decoder.num_waiting:
        steps += decoder.step()
    assert answer.text == " was 日😀"
    assert "".join(step.text for step in steps) == answer.text
    assert b"".join(piece for step in steps for piece in step.pieces).decode() == answer.text
    assert sum(len(step.pieces) for step in steps) == len(forced)
