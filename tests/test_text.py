"""Growing text: pieces concatenate to the whole, characters are never split, stop strings may span tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trimtab.text import TextStream


class ByteTokenizer:
    """One byte a token; a piece of a character decodes to U+FFFD, as byte-level vocabularies do."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


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
