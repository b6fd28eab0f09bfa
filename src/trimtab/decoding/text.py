"""Text of an answer while it grows: certain token by token, never taken back, cut at stop strings."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from trimtab.core import TokenIds, Tokenizer
from trimtab.models.tokenizing.spelling import BROKEN, Spelling, bytes_of, spelling_of


class TextStream:
    """The text of one answer: what its tokens add to the decoded prompt, special tokens left out.

    `push` returns what became certain with a token; the pieces concatenate to the answer's text. Held back are bytes
    that may yet become a character, and a tail that may yet become a stop string. A stop string may span tokens; it and
    what follows are left out. It is looked for in the answer's text alone, never across the prompt's end, and it counts
    where a token after the first `num_unsearched` ones makes its last character certain.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stop: Sequence[str] = (),
        prompt_ids: TokenIds = (),
        *,
        num_unsearched: int = 0,
    ) -> None:
        self._spelling: Spelling | None = None if tokenizer is None else spelling_of(tokenizer, prompt_ids)
        self._stop = tuple(stop)
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._held = ""  # certain, but may be part of a stop string
        self._num_unsearched = num_unsearched  # tokens that may still come of those
        self._num_past = 0  # characters of `_held` at which no stop string may end
        self._adds: deque[bytes] = deque()  # of the tokens whose bytes are not all out
        self._num_out = 0  # bytes that are out, of those in `_adds`
        self._num_open = 0  # tokens that the spelling has not closed
        self.pieces: tuple[bytes, ...] = ()
        """What became certain with the last call, in UTF-8: an entry for each token, in their order. Over all calls
        they join to the text."""
        self.text = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain."""
        self.pieces = ()
        if self.stopped:
            return ""
        self._num_open += 1
        is_searched = self._num_unsearched == 0
        self._num_unsearched -= not is_searched
        if self._spelling is None:
            self._num_open, self.pieces = 0, (b"",)
            return ""
        self._close(self._spelling.push(token_id))
        if not is_searched:
            self._num_past = len(self._held)
        elif self._stop and self._num_open and self._stops_if_ended():
            self._close(self._spelling.rest())
        return self._release(final=False)

    def finish(self) -> str:
        """No more tokens: returns what was held back."""
        self.pieces = ()
        if self._spelling is None or self.stopped:
            return ""
        self._close(self._spelling.rest())
        return self._release(final=True)

    def _close(self, adds: Sequence[bytes]) -> None:
        self._adds.extend(adds)
        self._num_open -= len(adds)
        self._held += "".join(self._characters.decode(add) for add in adds)

    def _stops_if_ended(self) -> bool:
        """Whether a stop string would stand in the text if the answer ended here. Then it may as well."""
        assert self._spelling is not None
        before, _ = self._characters.getstate()
        tail = (before + b"".join(self._spelling.rest())).decode(errors="replace")
        finished = self._held + tail.rstrip(BROKEN)
        return self._first_stop(finished) >= 0

    def _first_stop(self, text: str) -> int:
        """Where in a text that begins with what is held the first stop string that counts begins; −1: nowhere."""
        found = (text.find(stop, max(0, self._num_past + 1 - len(stop))) for stop in self._stop)
        return min((at for at in found if at >= 0), default=-1)

    def _release(self, *, final: bool) -> str:
        cut = self._first_stop(self._held)
        if cut >= 0:
            self.stopped = True
            certain, self._held = self._held[:cut], ""
        else:
            keep = 0 if final else self._may_become_stop(self._held)
            certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            self._num_past = max(0, self._num_past - len(certain))
        self.text += certain
        self._num_out += len(certain.encode())
        self.pieces = tuple(self._pieces(final=final or self.stopped))
        return certain

    def _pieces(self, *, final: bool) -> list[bytes]:
        """The tokens all of whose bytes are out; at the end all tokens, with those of their bytes that are."""
        found = []
        while self._adds and (final or len(self._adds[0]) <= self._num_out):
            add = self._adds.popleft()
            found.append(add[: self._num_out])
            self._num_out -= len(found[-1])
        if final:
            found += [b""] * self._num_open
            self._num_open = 0
        return found

    def _may_become_stop(self, text: str) -> int:
        """The length of the longest tail of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for length in range(min(len(text), longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


def text_of(
    tokenizer: Tokenizer, prompt_ids: TokenIds, token_ids: TokenIds, stop: Sequence[str] = ()
) -> tuple[str, int | None]:
    """The text of an answer, and how many of its tokens it took to a stop string; None where there is none."""
    stream = TextStream(tokenizer, stop, prompt_ids)
    for number, token_id in enumerate(token_ids, 1):
        stream.push(token_id)
        if stream.stopped:
            return stream.text, number
    stream.finish()
    return stream.text, len(token_ids) if stream.stopped else None


def shown_tokens(tokenizer: Tokenizer, prompt_ids: TokenIds, token_ids: TokenIds) -> list[str]:
    """Each token of an answer as it stands in the text, so that they read as the text does: a character under the token
    that completes it, a special token by its name."""
    stream = TextStream(tokenizer, (), prompt_ids)
    pieces: list[bytes] = []
    for token_id in token_ids:
        stream.push(token_id)
        pieces += stream.pieces
    stream.finish()
    characters = codecs.getincrementaldecoder("utf-8")()
    return [
        characters.decode(piece) if piece or bytes_of(tokenizer, token_id) else tokenizer.token_text(token_id)
        for token_id, piece in zip(token_ids, [*pieces, *stream.pieces], strict=True)
    ]
