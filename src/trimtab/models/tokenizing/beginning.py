"""The one rule for what stands in front of a text's ids: a beginning-of-sequence token once, never twice, never cut."""

from __future__ import annotations

from collections.abc import Sequence


def begun_once(
    token_ids: Sequence[int], bos: int | None, habit: Sequence[int], *, as_written: bool = False
) -> tuple[list[int], list[int]]:
    """(what stands in front, the ids behind it).

    `habit` is what the tokenizer puts before a text by itself; it stands in front once, however often a template or the
    text wrote it too. Where the tokenizer has no habit, `as_written` takes the `bos` that the ids begin with for it.
    """
    start = list(habit)
    if as_written and not start and bos is not None and list(token_ids[:1]) == [bos]:
        start = [bos]
    written = 0
    while start:
        if list(token_ids[written : written + len(start)]) == start:
            written += len(start)
        elif bos in start and list(token_ids[written : written + 1]) == [bos]:
            written += 1
        else:
            break
    return start, list(token_ids[written:])
