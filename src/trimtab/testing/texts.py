"""The law of a tokenizer: the text of an answer is the text of its tokens, however it is put together."""

from __future__ import annotations

import random
from collections.abc import Sequence

from trimtab.core import TokenIds, Tokenizer
from trimtab.decoding.text import TextStream
from trimtab.errors import OptionError
from trimtab.models.tokenizing.spelling import bytes_of, shared
from trimtab.testing.laws import TEXT, LawViolation, stating


def check_tokenizer(tokenizer: Tokenizer, *, num_answers: int = 200, max_tokens: int = 16, seed: int = 0) -> None:
    """Check on random prompts and answers that their text is what decoding both at once adds to the decoded prompt:
    streamed and whole, cut at stop strings, and put together from what each token adds.

    The ids are drawn from all that the tokenizer names, so characters fall apart and special tokens stand anywhere.
    Raises LawViolation with the ids, and OptionError for fewer than one answer or token.
    """
    if num_answers < 1 or max_tokens < 1:
        raise OptionError(f"num_answers is {num_answers} and max_tokens {max_tokens}; give at least 1 of each.")
    draws = random.Random(seed)
    known = sorted(set(tokenizer.tokens.values()))
    with stating(TEXT):
        rare = [token_id for token_id in known if not _is_text(bytes_of(tokenizer, token_id))] or known
    for _ in range(num_answers):
        pool = draws.choice((known, known, [*rare, draws.choice(known)]))
        prompt_ids = draws.choices(pool, k=draws.randrange(5))
        token_ids = draws.choices(pool, k=draws.randint(1, max_tokens))
        with stating(TEXT):
            _check_answer(tokenizer, prompt_ids, token_ids, ())
            text = _added(tokenizer, prompt_ids, token_ids)
        if text:
            start = draws.randrange(len(text))
            with stating(TEXT):
                _check_answer(tokenizer, prompt_ids, token_ids, (text[start : start + draws.randint(1, 3)],))


def _check_answer(tokenizer: Tokenizer, prompt_ids: TokenIds, token_ids: TokenIds, stop: Sequence[str]) -> None:
    stream, streamed, pieces, taken = TextStream(tokenizer, stop, prompt_ids), "", b"", 0
    for token_id in token_ids:
        streamed += stream.push(token_id)
        pieces += b"".join(stream.pieces)
        taken += 1
        if stream.stopped:
            break
    streamed += stream.finish()
    pieces += b"".join(stream.pieces) if not stream.stopped or taken == len(token_ids) else b""
    whole = _added(tokenizer, prompt_ids, token_ids[:taken])
    expected = whole[: min((at for at in map(whole.find, stop) if at >= 0), default=len(whole))]
    where = f"prompt {list(prompt_ids)}, answer {list(token_ids[:taken])}, stop {list(stop)}"
    if not streamed == stream.text == expected:
        raise LawViolation(TEXT, f"{where}: {streamed!r} in pieces, {stream.text!r} whole instead of {expected!r}")
    if pieces != expected.encode():
        raise LawViolation(TEXT, f"{where}: the tokens add {pieces!r} instead of {expected.encode()!r}")


def _added(tokenizer: Tokenizer, prompt_ids: TokenIds, token_ids: TokenIds) -> str:
    before, whole = tokenizer.decode(prompt_ids), tokenizer.decode([*prompt_ids, *token_ids])
    return whole[len(shared([before, whole])) :]


def _is_text(added: bytes) -> bool:
    """Whether a token is more than a special one, spaces, or a part of a character."""
    try:
        return bool(added.decode().strip())
    except UnicodeDecodeError:
        return False
