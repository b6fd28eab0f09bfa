"""The laws of sessions whose last tokens may be taken back (`trimtab.drafting`)."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.testing.laws import DRAFT, same
from trimtab.testing.subjects import Row, Subject, longer


def check_drafting(subject: Subject) -> None:
    """Drafts read as the tokens would be, stay as far as they are settled, and else leave nothing.

    A session that does not draft owes nothing here.
    """
    if not subject.make().drafts:
        return
    for was_read in (False, True):
        for num_kept in range(subject.num_steps + 1):
            _check_run(subject, was_read, num_kept)


def _check_run(subject: Subject, was_read: bool, num_kept: int) -> None:
    """Drafts of 0, 1, ... tokens, of rows whose numbers were read before or not; `num_kept` of each stay."""
    session = subject.fresh(subject.starts)
    if was_read:
        for reading in session.readings:
            session.read(reading)
    drafts = [subject.tokens(row % (subject.num_steps + 1), row) for row in range(1, len(subject.starts) + 1)]
    for place in range(subject.num_steps):
        rows = [row for row, draft in enumerate(drafts) if len(draft) > place]
        if rows:
            session.draft(rows, [drafts[row][place] for row in rows])
    when = "that was read before" if was_read else "that was not read before"
    places = [(row, num) for row, draft in enumerate(drafts) for num in range(len(draft) + 1)]
    after = [_grown(subject.starts[row], drafts[row][:num]) for row, num in places]
    expected = subject.fresh(after)
    same(
        DRAFT,
        f"what is read after drafts, of a session {when},",
        session.read_after(places[::-1]).flip(0),
        expected.read(expected.readings[0]),
        subject.tolerance,
    )
    states = session.states_after(places[::-1])
    if states is not None:
        what = f"the state after drafts, of a session {when},"
        same(DRAFT, what, states.flip(0), expected.read("context"), subject.tolerance)
    counts = [min(num_kept, len(draft)) for draft in drafts]
    session.settle(counts)
    grown = [_grown(start, draft[:num]) for start, draft, num in zip(subject.starts, drafts, counts, strict=True)]
    if num_kept % 2:
        subject.same(DRAFT, f"after {num_kept} drafts were kept", session, subject.fresh(grown))
    rows = list(range(len(grown)))
    tokens = subject.tokens(len(grown), num_kept + 1)
    session.advance(rows, tokens)
    longest = [longer(row, token) for row, token in zip(grown, tokens, strict=True)]
    subject.same(DRAFT, f"after {num_kept} drafts were kept, and another token", session, subject.fresh(longest))


def _grown(row: Row, token_ids: Sequence[int]) -> Row:
    return (*row[0], *token_ids), (*row[1], *token_ids)
