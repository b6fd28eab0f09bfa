"""The laws of sessions: a model's, and a guide's beside its base."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from trimtab.core import Guide, LanguageModel, Prompt
from trimtab.prompts import num_readable
from trimtab.testing.drafting import check_drafting
from trimtab.testing.laws import (
    ADMIT,
    ALONE,
    BESIDE,
    DRAFT,
    KEEP,
    PEEK,
    PURE,
    REMEMBERED,
    ROWS,
    SUBSET,
    TOLERANCE,
    WELL_FORMED,
    LawViolation,
    same,
    stating,
)
from trimtab.testing.subjects import (
    ONCE,
    GuideRows,
    ModelRows,
    Row,
    Subject,
    choose_probe,
    choose_prompts,
    encode_starts,
    longer,
)
from trimtab.testing.walks import check_count, check_remembered

LONG = 96
"""Tokens of a long row, where the model holds more."""


def check_model(
    model: LanguageModel,
    prompts: Sequence[Prompt] | None = None,
    *,
    num_steps: int = 4,
    num_candidates: int = 4,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> None:
    """Run every law of a language model: sessions, `logprobs`, `peek` and `context`.

    `prompts` (at least two, of unequal length; random ones if left out) are continued by up to `num_steps` random
    tokens, for which the model needs room, and one more that is peeked at; `num_candidates` tokens are. Raises
    LawViolation.
    """
    rooms = [] if model.max_length is None else [model.max_length]
    num_ids = min(model.vocab_size, num_readable(model))
    encoded = encode_starts(model, choose_prompts(num_ids, prompts, num_steps, rooms, seed))
    starts = [(ids, ids) for ids in encoded]
    probe = choose_probe(num_ids, num_candidates, seed)
    subject = Subject(partial(ModelRows, model, probe), starts, num_ids, num_steps, tolerance, seed)
    with stating(WELL_FORMED):
        _check_tables(subject, "logprobs", normalised=True)
        _check_width(subject, model.vocab_size)
        _check_states(subject, model.hidden_size)
    _check_laws(subject, {**_SESSION_LAWS, PEEK: _check_peek, REMEMBERED: check_remembered, DRAFT: check_drafting})
    with stating(ADMIT):
        _check_long(subject, model.max_length)


def check_guide(
    guide: Guide,
    model: LanguageModel,
    prompts: Sequence[Prompt] | None = None,
    *,
    num_steps: int = 4,
    num_candidates: int = 4,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> None:
    """Run every law of a guide that steers `model`; the other arguments are `check_model`'s. Raises LawViolation.

    A guide that needs the state after each candidate is scored on `num_candidates` tokens, any other on the whole
    vocabulary too.

    Whatever vocabulary the guide has, its sessions are fed the base's token ids after what `prompt_ids` gave, by
    `advance` and, as after an error, by `admit`: a guide of another vocabulary has to make the same of both.
    `prompt_ids` is shown the prompts as they are given here. Random prompts leave room in the guide's `max_length` too,
    and ids that it cannot read (`num_readable`, where it has one) continue no row.

    >>> from trimtab import ARM, TabularModel
    >>> from trimtab.testing import check_guide
    >>> check_guide(ARM(TabularModel.random(9, seed=1)), TabularModel.random(9, seed=0))
    """
    bound = guide.bind(model)
    rooms = [limit for limit in (model.max_length, bound.max_length) if limit is not None]
    num_ids = min(model.vocab_size, num_readable(model))
    readable = min(num_ids, getattr(bound, "num_readable", None) or num_ids)
    given = choose_prompts(readable, prompts, num_steps, rooms, seed)
    read = zip(given, encode_starts(model, given), strict=True)
    starts = [(ids, tuple(bound.prompt_ids(prompt, ids))) for prompt, ids in read]
    probe = choose_probe(num_ids, num_candidates, seed)
    subject = Subject(partial(GuideRows, bound, model, probe), starts, readable, num_steps, tolerance, seed)
    with stating(WELL_FORMED):
        _check_tables(subject, subject.readings[0], normalised=False)
    _check_laws(subject, {**_SESSION_LAWS, SUBSET: _check_subset, REMEMBERED: check_remembered, DRAFT: check_drafting})
    with stating(ROWS):
        _check_base_rows(subject)


def _check_laws(subject: Subject, checks: Mapping[str, Callable[[Subject], None]]) -> None:
    for law, check in checks.items():
        with stating(law):
            check(subject)


def _check_tables(subject: Subject, reading: str, *, normalised: bool) -> None:
    table = subject.fresh(subject.starts).read(reading)
    if table.dtype != torch.float32:
        raise LawViolation(WELL_FORMED, f"{reading} is {table.dtype}; it must be torch.float32")
    broken = torch.isnan(table) | torch.isposinf(table)
    if bool(broken.any()):
        row, column = broken.nonzero()[0].tolist()
        raise LawViolation(WELL_FORMED, f"{reading} is {table[row, column]} in row {row}, column {column}")
    if normalised:
        same(WELL_FORMED, "ln of the total probability", table.logsumexp(1), torch.zeros(len(table)), subject.tolerance)


def _check_width(subject: Subject, vocab_size: int) -> None:
    found, shape = subject.fresh(subject.starts).read("logprobs").shape, (len(subject.starts), vocab_size)
    if found != shape:
        raise LawViolation(WELL_FORMED, f"logprobs has shape {tuple(found)}; it must be {shape}")


def _check_states(subject: Subject, hidden_size: int) -> None:
    rows = subject.fresh(subject.starts)
    for reading in ("context", "peek"):
        width = rows.read(reading).shape[-1]
        if width != hidden_size:
            raise LawViolation(WELL_FORMED, f"{reading} has states of {width} numbers; hidden_size is {hidden_size}")


def _check_pure(subject: Subject) -> None:
    read, unread = subject.fresh(subject.starts), subject.fresh(subject.starts)
    first = {reading: read.read(reading) for reading in read.readings}
    for reading in reversed(read.readings):
        same(PURE, f"{reading} read a second time", read.read(reading), first[reading], subject.tolerance)
    rows = list(range(len(subject.starts)))
    for session in (read, unread):
        session.advance(rows, subject.tokens(len(rows)))
    subject.same(PURE, "after advance, of a session that was read before and one that was not", read, unread)


def _check_alone(subject: Subject) -> None:
    together = subject.fresh(subject.starts)
    alone = [subject.fresh([start]) for start in subject.starts]
    for step in range(subject.num_steps + 1):
        for reading in together.readings:
            single = torch.cat([session.read(reading) for session in alone])
            same(
                ALONE,
                f"{reading} at step {step}, in a batch and alone",
                together.read(reading),
                single,
                subject.tolerance,
            )
        rows = [row for row in range(len(alone)) if (row + step) % 3]  # not all: rows fall further apart
        tokens = subject.tokens(len(rows), step)
        together.advance(rows, tokens)
        for row, token in zip(rows, tokens, strict=True):
            alone[row].advance([0], [token])


def _check_admit(subject: Subject) -> None:
    rows = list(range(len(subject.starts)))
    silent, spoken = subject.fresh(subject.starts), subject.fresh(subject.starts)
    grown = subject.starts
    for step in range(subject.num_steps):
        tokens = subject.tokens(len(rows), step)
        grown = [longer(row, token) for row, token in zip(grown, tokens, strict=True)]
        silent.advance(rows, tokens)
        spoken.advance(rows, tokens)
        subject.same(ADMIT, f"after {step + 1} tokens, read at each", spoken, subject.fresh(grown))
    subject.same(ADMIT, f"after {subject.num_steps} tokens, read at the end", silent, subject.fresh(grown))


def _check_keep(subject: Subject) -> None:
    last = len(subject.starts) - 1
    for picked in ([last, 0], [0, last, 0, 0], [last]):
        session = subject.fresh(subject.starts)
        before = {reading: session.read(reading) for reading in session.readings}
        session.keep(picked)
        check_count(session, len(picked), f"keep({picked})")
        for reading, table in before.items():
            same(KEEP, f"{reading} after keep({picked})", session.read(reading), table[picked], subject.tolerance)
        tokens = [(subject.tokens(1)[0] + index) % subject.num_ids for index in range(len(picked))]
        session.advance(list(range(len(picked))), tokens)
        grown = [longer(subject.starts[row], token) for row, token in zip(picked, tokens, strict=True)]
        subject.same(KEEP, f"after keep({picked}) and a token of its own for each row", session, subject.fresh(grown))
        swapped = [len(picked) - 1, *range(1, len(picked) - 1), 0][: len(picked)]
        session.keep(swapped)  # forks of one row, equal in length: only their last tokens tell them apart
        expected = subject.fresh([grown[row] for row in swapped])
        subject.same(KEEP, f"after keep({picked}), a token and keep({swapped})", session, expected)
        session.keep([])
        check_count(session, 0, "keep([])")
        session.admit(subject.starts[:1])
        subject.same(KEEP, "of a row admitted after keep([])", session, subject.fresh(subject.starts[:1]))
        session.admit(subject.starts)
        session.keep([1])  # before anything was read of the new rows
        subject.same(KEEP, "of a row admitted and kept unread", session, subject.fresh(subject.starts[:1]))


def _check_rows(subject: Subject) -> None:
    """Some rows, in any order, read first or after all, one of them the shortest; and what follows for all of them."""
    rows = list(range(len(subject.starts)))
    dealt = _dealt(rows, subject.tokens(len(rows[::2])))
    grown = [row if token is None else longer(row, token) for row, token in zip(subject.starts, dealt, strict=True)]
    for reading in subject.make().by_rows:
        again = [] if reading in ONCE else [[1, 0, 1]]
        for picked in ([rows[-1], 0], [1], rows[::-1], [], *again):
            fresh = subject.fresh(grown)
            first, whole = fresh.read(reading, picked), fresh.read(reading)
            what = f"{reading} of rows {picked} of {len(rows)}"
            same(ROWS, f"{what}, before all were read", first, whole[picked], subject.tolerance)
            same(ROWS, f"{what}, after all were read", fresh.read(reading, picked), whole[picked], subject.tolerance)
            tokens = subject.tokens(len(rows), len(picked))
            fresh.advance(rows, tokens)
            after = subject.fresh([longer(row, token) for row, token in zip(grown, tokens, strict=True)])
            subject.same(ROWS, f"after {what} and a token more", fresh, after)


def _dealt(rows: Sequence[int], tokens: Sequence[int]) -> list[int | None]:
    """A token for each second row."""
    return [tokens[row // 2] if row % 2 == 0 else None for row in rows]


def _check_base_rows(subject: Subject) -> None:
    """A guide that selects, beside a base whose rows are more than its own and in another order."""
    plain = subject.fresh(subject.starts)
    assert isinstance(plain, GuideRows)
    if plain.guide.selection is None:
        return
    host = _base_of(subject.make())
    host.admit([*subject.starts[::-1], subject.starts[0]])
    guest = subject.make(beside=host.session)
    assert isinstance(guest, GuideRows)
    guest.session.admit([ids for _, ids in subject.starts])
    base_rows = list(range(len(subject.starts)))[::-1]
    for step in range(min(2, subject.num_steps)):
        for picked in (list(range(len(base_rows))), [1], [len(base_rows) - 1, 0]):
            rows = torch.tensor(picked, dtype=torch.int64)
            others = torch.tensor(base_rows, dtype=torch.int64)[rows]
            shown = host.candidates(plain.guide, plain.probe).select(others)
            scores = guest.session.score(replace(shown, rows=rows, base_rows=others)).clone()
            found = scores.gather(1, shown.token_ids.argsort(dim=1).to(scores.device))
            what = f"the scores of rows {picked}, which continue rows {others.tolist()} of the base"
            same(ROWS, what, found, plain.read("some")[picked], subject.tolerance)
        tokens = subject.tokens(len(base_rows), step)
        plain.advance(list(range(len(base_rows))), tokens)
        host.advance(base_rows, tokens)
        guest.session.advance(torch.arange(len(base_rows)), torch.tensor(tokens))
        for reading in host.readings:
            what = f"{reading} of the base after candidates of its rows {base_rows} were scored"
            same(ROWS, what, host.read(reading, base_rows), plain.base.read(reading), subject.tolerance)


def _check_peek(subject: Subject) -> None:
    rows = list(range(len(subject.starts)))
    looked = subject.fresh(subject.starts)
    assert isinstance(looked, ModelRows)
    peeked, probe = looked.read("peek"), looked.probe.tolist()
    for column, token_id in enumerate(probe):
        moved = subject.fresh(subject.starts)
        moved.advance(rows, [token_id] * len(rows))
        same(PEEK, f"the state after token {token_id}", peeked[:, column], moved.read("context"), subject.tolerance)
        accepted = subject.fresh(subject.starts)
        accepted.read("peek")
        accepted.advance(rows, [token_id] * len(rows))
        subject.same(PEEK, f"after peeking and taking token {token_id}", accepted, moved)
    for columns in ([len(probe) - 1], list(range(len(probe)))[::-2]):
        some = looked.session.peek(looked.probe[columns].expand(len(rows), -1))
        same(SUBSET, f"peek at columns {columns} of {probe}", some, peeked[:, columns], subject.tolerance)


def _check_long(subject: Subject, limit: int | None) -> None:
    """A row that is far longer than its neighbour, at the end of what the model holds where that is not too far."""
    length = (LONG if limit is None else min(limit, LONG)) - 3
    if length < 1:
        return
    drawn = random.Random(f"{subject.seed} long").choices(range(subject.num_ids), k=length)
    rows: list[Row] = [(tuple(ids), tuple(ids)) for ids in (drawn, drawn[-1:])]
    together, alone = subject.fresh(rows), [subject.fresh([row]) for row in rows]
    for taking in ([], [0, 1, 0, 1, 1, 1]):  # so that the long row is filled up past its end where both are read
        for step, row in enumerate(taking):
            tokens = subject.tokens(1, step)
            together.advance([row], tokens)
            alone[row].advance([0], tokens)
        for reading in together.readings:
            single = torch.cat([session.read(reading) for session in alone])
            what = f"{reading} of rows of {length} and 1 tokens, after {len(taking)} more"
            same(ALONE, what, together.read(reading), single, subject.tolerance)


def _check_subset(subject: Subject) -> None:
    session = subject.fresh(subject.starts)
    assert isinstance(session, GuideRows)
    whole = session.read(session.readings[0])
    probe = session.probe
    for size in range(1, len(probe) + 1):
        some = probe[:size].sort().values
        columns = some if session.readings[0] == "all" else torch.searchsorted(probe.sort().values, some)
        expected = whole[:, columns.to(whole.device)]
        same(SUBSET, f"the scores of tokens {some.tolist()}", session.score(some), expected, subject.tolerance)


def _check_beside(subject: Subject) -> None:
    """A session opened beside another, whose rows come and go, reads what one of its own reads; so does the other."""
    base, undisturbed = (_base_of(subject.make()) for _ in range(2))
    for host in (base, undisturbed):
        host.admit(subject.starts[::-1])
    plain, guest = subject.fresh(subject.starts), subject.make(beside=base.session)
    guest.admit(subject.starts)
    rows = list(range(len(subject.starts)))
    for step in range(min(2, subject.num_steps)):
        subject.same(BESIDE, f"at step {step}, of a session opened beside another", guest, plain)
        subject.same(BESIDE, f"at step {step}, of a session beside which another was opened", base, undisturbed)
        tokens = subject.tokens(len(rows), step)
        for host in (base, undisturbed):
            host.keep([host.num_rows - 1])
            host.advance([0], tokens[:1])
        guest.advance(rows, tokens)
        plain.advance(rows, tokens)
    subject.same(BESIDE, "at the end, of a session opened beside another", guest, plain)
    subject.same(BESIDE, "at the end, of a session beside which another was opened", base, undisturbed)


def _base_of(rows: ModelRows | GuideRows) -> ModelRows:
    """The rows of a model, a guide's base's among them."""
    return rows.base if isinstance(rows, GuideRows) else rows


_SESSION_LAWS = {
    PURE: _check_pure,
    ALONE: _check_alone,
    ADMIT: _check_admit,
    KEEP: _check_keep,
    BESIDE: _check_beside,
    ROWS: _check_rows,
}
