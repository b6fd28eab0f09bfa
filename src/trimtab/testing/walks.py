"""The law of what is remembered: random walks over a session's verbs, against sessions without a past."""

from __future__ import annotations

import random
from typing import TypeAlias

from trimtab.testing.laws import KEEP, REMEMBERED, LawViolation, same
from trimtab.testing.subjects import GuideRows, ModelRows, Row, Subject, longer

NUM_WALKS = 4
Rows: TypeAlias = ModelRows | GuideRows


def check_remembered(subject: Subject) -> None:
    """Random walks over all verbs; whatever is read on the way, a session without a past must read the same."""
    for walk in range(NUM_WALKS):
        rng = random.Random(f"{subject.seed} {walk}")
        session, rows, steps = subject.fresh(subject.starts), list(subject.starts), ["admit"]
        longest = max(len(ids) for row in rows for ids in row) + subject.num_steps
        for _ in range(4 * subject.num_steps):
            verb = rng.choice([_walk_admit, _walk_advance, _walk_advance, _walk_keep])
            rows, said = verb(session, rows, subject, longest, rng)
            steps.append(said)
            check_count(session, len(rows), ", ".join(steps))
            if rng.random() < 0.5:
                reading = rng.choice(session.readings)
                found, expected = session.read(reading), subject.fresh(rows).read(reading)
                same(REMEMBERED, f"{reading} after {', '.join(steps)}", found, expected, subject.tolerance)
                steps.append(reading)


def _walk_admit(
    session: Rows, rows: list[Row], subject: Subject, longest: int, rng: random.Random
) -> tuple[list[Row], str]:
    if len(rows) > 2 * len(subject.starts):
        return rows, "nothing"
    new = rng.choice(subject.starts)
    session.admit([new])
    return [*rows, new], "admit"


def _walk_advance(
    session: Rows, rows: list[Row], subject: Subject, longest: int, rng: random.Random
) -> tuple[list[Row], str]:
    picked = [row for row in range(len(rows)) if max(map(len, rows[row])) < longest and rng.random() < 0.7]
    rng.shuffle(picked)
    peeked: list[int] = session.probe[session.probe < subject.num_ids].tolist()  # such a token is special
    choices = peeked if peeked and rng.random() < 0.5 else range(subject.num_ids)
    tokens = dict(zip(picked, rng.choices(choices, k=len(picked)), strict=True))
    session.advance(picked, list(tokens.values()))
    return [longer(row, tokens[i]) if i in tokens else row for i, row in enumerate(rows)], f"advance {tokens}"


def _walk_keep(
    session: Rows, rows: list[Row], subject: Subject, longest: int, rng: random.Random
) -> tuple[list[Row], str]:
    picked = rng.sample(range(len(rows)), len(rows))  # an order, then perhaps something lost and something twice
    if rng.random() < 0.5:
        picked = rng.choices(picked, k=rng.randint(1, len(subject.starts)))
    session.keep(picked)
    return [rows[row] for row in picked], f"keep {picked}"


def check_count(session: Rows, expected: int, after: str) -> None:
    """Raise LawViolation for another number of rows."""
    if session.num_rows != expected:
        raise LawViolation(KEEP, f"num_rows is {session.num_rows} after {after}; it must be {expected}")
