"""What each token of an answer adds to its text: bytes that stand for good, whatever tokens follow.

One law, for any tokenizer: what the tokens add, put together, is what decoding prompt and answer at once adds to the
decoded prompt. Decoding every token alone breaks it, since how a token reads depends on its neighbours: bytes join into
characters, a first space is dropped, a word begins with a space or ends with one. Decoding the whole answer at every
token keeps it and costs the square of the answer's length. So a tokenizer that knows how its decoder works (`Spells`)
says how far a neighbour reaches, and only that far is decoded again:

* `ByteSpelling`: tokens are bytes of UTF-8, and a character reaches over at most four of them;
* `PieceSpelling`: a token reads the same after any text (only the text's beginning is special), except for runs of
  tokens that are single bytes, which stand or fall together;
* `WholeSpelling`: nothing is known, so everything is decoded at every token.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from trimtab.core import TokenIds, Tokenizer

log = logging.getLogger(__name__)

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""Stands in a decoded text for bytes that are not a character."""
STEADY = 8
"""Tokens with text after which that of a tokenizer that says nothing about itself counts as standing."""


class Spelling(Protocol):
    """The text of one answer while it grows."""

    def push(self, token_id: int) -> list[bytes]:
        """Add a token. What the oldest tokens that were still open add for good: UTF-8, one entry a token, in order.

        An entry may end inside a character, which the next entries complete. A token that adds nothing (a special one)
        has an empty entry.
        """

    def rest(self) -> list[bytes]:
        """What the tokens that are still open add if no token follows. Changes nothing."""


@runtime_checkable
class Spells(Protocol):
    """What a tokenizer may offer besides: it knows how its tokens make text."""

    def spelling(self, prompt_ids: TokenIds) -> Spelling:
        """A spelling of the answer to a prompt."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds in the middle of a text; part of a character as it is, nothing for a special token."""


def spelling_of(tokenizer: Tokenizer, prompt_ids: TokenIds) -> Spelling:
    """The spelling of an answer: the tokenizer's own, where it has one."""
    if isinstance(tokenizer, Spells):
        return tokenizer.spelling(prompt_ids)
    return WholeSpelling(tokenizer.decode, prompt_ids)


def bytes_of(tokenizer: Tokenizer, token_id: int) -> bytes:
    """What a token adds in the middle of a text, as far as the tokenizer knows."""
    return tokenizer.token_bytes(token_id) if isinstance(tokenizer, Spells) else _utf8(tokenizer.decode([token_id]))


def shown(token: bytes) -> str:
    r"""Bytes of a token as a text: themselves, or `bytes:\xf0\x9f` where they are a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def shared(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    low, high = min(texts), max(texts)
    if high.startswith(low):
        return low
    return low[: next(at for at, (left, right) in enumerate(zip(low, high, strict=False)) if left != right)]


class ByteSpelling:
    """Tokens that are bytes of UTF-8, as in byte-level BPE.

    `raw` gives a token's bytes. Bytes that are not a character become U+FFFD, one for each maximal part of a character,
    as in Rust, Python and the Unicode standard; so at most three bytes wait for what follows. A character that the
    prompt begins and the answer ends belongs to the answer.
    """

    def __init__(self, raw: Callable[[int], bytes], prompt_ids: TokenIds) -> None:
        self._raw = raw
        self._adds: deque[bytearray] = deque()  # of the open tokens
        self._bytes = bytearray()  # that are not a character yet
        self._owners: list[int] = []  # for each of them the open token it is of, counted from the first ever
        self._closed = 0
        self._opened = 0
        self._open_character(prompt_ids)

    def push(self, token_id: int) -> list[bytes]:
        self._take(self._raw(token_id))
        self._settle()
        num = (max(self._owners[0], 0) if self._owners else self._opened) - self._closed
        self._closed += num
        return [bytes(self._adds.popleft()) for _ in range(num)]

    def rest(self) -> list[bytes]:
        kept = [bytearray(add) for add in self._adds]
        for start, _, character in _characters(bytes(self._bytes), final=True):
            self._give(kept, start, character)
        return [bytes(add) for add in kept]

    def _take(self, raw: bytes) -> None:
        self._adds.append(bytearray())
        self._bytes += raw
        self._owners += [self._opened] * len(raw)
        self._opened += 1

    def _settle(self) -> None:
        done = 0
        for start, end, character in _characters(bytes(self._bytes), final=False):
            self._give(self._adds, start, character)
            done = end
        del self._bytes[:done], self._owners[:done]

    def _give(self, adds: Sequence[bytearray], start: int, character: bytes | None) -> None:
        """Add a character to the tokens whose bytes it is made of; U+FFFD (None) to the one that its bytes begin in."""
        if character is None:
            if self._owners[start] >= 0:  # the prompt's own text has it already
                adds[self._owners[start] - self._closed].extend(BROKEN.encode())
            return
        for index, byte in enumerate(character, start):
            adds[max(self._owners[index], 0) - self._closed].append(byte)

    def _open_character(self, prompt_ids: TokenIds) -> None:
        """Take over the bytes of a character that the prompt leaves unfinished."""
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = self._raw(token_id) + tail
            if len(tail) >= 4:  # a part of a character has at most three
                break
        done = max((end for _, end, _ in _characters(tail, final=False)), default=0)
        self._bytes += tail[done:]
        self._owners += [-1] * (len(tail) - done)


def _characters(data: bytes, *, final: bool) -> list[tuple[int, int, bytes | None]]:
    """(start, end, bytes) of each run of characters, or None for bytes that are not a character.

    Bytes at the end that may yet become a character are left out, unless the text ends there (`final`).
    """
    found: list[tuple[int, int, bytes | None]] = []
    start = 0
    while start < len(data):
        try:
            data[start:].decode()
            found.append((start, len(data), data[start:]))
            break
        except UnicodeDecodeError as error:
            bad, after = start + error.start, start + error.end
            if bad > start:
                found.append((start, bad, data[start:bad]))
            if after == len(data) and error.reason == "unexpected end of data" and not final:
                break
            found.append((bad, after, None))
            start = after
    return found


class PieceSpelling:
    """Tokens that are pieces of text, each of which reads the same after any text that is not empty.

    `decode` makes a text of tokens (special ones left out); `token_of` gives an id's token, None for one that adds no
    text; `byte_of` the byte of a token that stands for one (`<0xE6>`). A run of such tokens is a text where all its
    bytes are UTF-8, and U+FFFD for each of them otherwise; so nothing of it stands before it ends.
    """

    def __init__(
        self,
        decode: Callable[[list[str]], str],
        token_of: Callable[[int], str | None],
        byte_of: Callable[[str], int | None],
        prompt_ids: TokenIds,
    ) -> None:
        self._decode = decode
        self._token_of = token_of
        self._byte_of = byte_of
        self._context = self._end_of(prompt_ids)  # what is decoded again with every token
        self._run = _last_run(self._context, byte_of)  # the bytes that the context ends with
        self._said = decode(self._context) if self._context else ""
        self._open: list[bool] = []  # the open tokens: whether each is a byte

    def push(self, token_id: int) -> list[bytes]:
        token = self._token_of(token_id)
        if token is None:
            self._open.append(False)
            if self._run:
                return []  # it stands between bytes that may be one character
            return self._close([b""])
        byte = self._byte_of(token)
        if byte is not None:
            self._context.append(token)
            self._run.append(byte)
            self._open.append(True)
            return []
        run = self._close(self.rest())
        if self._run:
            self._said, self._run = self._decode(self._context), bytearray()
        self._context.append(token)
        whole = self._decode(self._context)
        added = whole[len(self._said) :]
        if whole:  # a text that has begun; an empty one has not
            self._context = [ANCHOR, token]
        self._said = self._decode(self._context)
        return [*run, added.encode()]

    def rest(self) -> list[bytes]:
        if not self._open:
            return []
        whole = self._decode(self._context)
        added = whole[len(shared([self._said, whole])) :].encode()
        units = self._units(added)
        found: list[bytes] = []
        for is_byte in reversed(self._open):
            found.append(units.pop() if is_byte and units else b"")
        found[-1] = b"".join(units) + found[-1]
        return found[::-1]

    def _units(self, added: bytes) -> list[bytes]:
        """What a run adds, in the parts that its last tokens add."""
        if bytes(self._run).endswith(added):
            return [added[i : i + 1] for i in range(len(added))]
        broken = BROKEN.encode()
        return [broken] * (len(added) // len(broken)) if not added.replace(broken, b"") else [added]

    def _close(self, adds: list[bytes]) -> list[bytes]:
        self._open.clear()
        return adds

    def _end_of(self, prompt_ids: TokenIds) -> list[str]:
        """The prompt's last tokens, as few as an answer's text depends on; all of them where they have no text."""
        found: deque[str] = deque()
        ended, wanted = False, 1
        for token_id in reversed(prompt_ids):
            token = self._token_of(token_id)
            if token is None:
                continue
            found.appendleft(token)
            ended = ended or self._byte_of(token) is None
            if ended and len(found) >= wanted:
                text = list(found)
                if self._decode(text[: len(text) - len(_last_run(text, self._byte_of))]):
                    return [ANCHOR, *text]
                wanted = 2 * len(found)
        return list(found)


ANCHOR = "a"
"""Stands for any text that has begun."""


def _last_run(tokens: Sequence[str], byte_of: Callable[[str], int | None]) -> bytearray:
    """The bytes that tokens end with."""
    found = bytearray()
    for token in reversed(tokens):
        byte = byte_of(token)
        if byte is None:
            break
        found.append(byte)
    return found[::-1]


class WholeSpelling:
    """Tokens of which nothing is known: prompt and answer are decoded at every token.

    Text stands once `STEADY` more tokens have changed the text without touching it. A tokenizer that changes its text
    further back breaks the law, which is logged.
    """

    def __init__(self, decode: Callable[[TokenIds], str], prompt_ids: TokenIds) -> None:
        self._decode = decode
        self._ids = list(prompt_ids)
        self._prompt = decode(self._ids)
        self._stands: str | None = None  # with the prompt's; None: nothing was added
        self._texts: deque[str] = deque()  # after each open token
        self._changes = 0  # from one of them to the next
        self._warned = False

    def push(self, token_id: int) -> list[bytes]:
        self._ids.append(token_id)
        text = self._decode(self._ids)
        self._changes += bool(self._texts) and text != self._texts[-1]
        self._texts.append(text)
        found = []
        while self._changes >= STEADY:
            added, self._stands = self._added(shared(list(self._texts)), self._stands)
            found.append(added)
            self._changes -= self._texts.popleft() != self._texts[0]
        return found

    def rest(self) -> list[bytes]:
        stands, found, texts = self._stands, [], list(self._texts)
        for index in range(len(texts)):
            added, stands = self._added(shared(texts[index:]), stands)
            found.append(added)
        return found

    def _added(self, certain: str, stands: str | None) -> tuple[bytes, str | None]:
        """What a certain text adds to the one that stands, and the one that stands then."""
        if stands is None:
            added = certain[len(shared([self._prompt, certain])) :]
            return _utf8(added), certain if added else None
        if not certain.startswith(stands):
            if not (stands.startswith(certain) or self._warned):
                self._warned = True
                log.warning("This tokenizer has changed text that it gave %d tokens before.", STEADY)
            return b"", stands
        return _utf8(certain[len(stands) :]), certain


def _utf8(text: str) -> bytes:
    """A text's bytes; half of a character, which some tokenizers have for a token, becomes a question mark."""
    return text.encode(errors="replace")
