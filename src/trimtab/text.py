"""Text of an answer while it grows: decoded token by token, never taken back, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.core import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one answer.

    `push` returns what became certain with a token; the pieces concatenate to the answer's text. Bytes of an unfinished
    character are held back, and so is a tail that may yet become a stop string. A stop string may span tokens; it and
    what follows are left out.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._settled = 0  # tokens before this are decoded for good
        self._held = ""  # decoded, but may be part of a stop string
        self.text = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain."""
        if self._tokenizer is None or self.stopped:
            return ""
        self._ids.append(token_id)
        return self._release(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """No more tokens: returns what was held back."""
        if self._tokenizer is None or self.stopped:
            return ""
        return self._release(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        """Text of the tokens since the last call. Decoded beside the token before them, as spaces depend on it."""
        assert self._tokenizer is not None
        start = max(0, self._settled - 1)
        before = self._tokenizer.decode(self._ids[start : self._settled])
        window = self._tokenizer.decode(self._ids[start:])
        if not final and window.endswith(_UNFINISHED) and len(self._ids) - self._settled < 8:
            return ""
        self._settled = len(self._ids)
        return window[len(before) :]

    def _release(self, new: str, *, final: bool) -> str:
        pending = self._held + new
        cut = min((at for at in (pending.find(stop) for stop in self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
            self._held, certain = "", pending[:cut]
        else:
            keep = 0 if final else self._may_become_stop(pending)
            certain, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += certain
        return certain

    def _may_become_stop(self, text: str) -> int:
        """The length of the longest tail of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for length in range(min(len(text), longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
