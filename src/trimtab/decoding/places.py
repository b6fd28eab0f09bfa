"""Where tokens are asked for in one step: after each running request, and after each of the tokens drafted for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.decoding.requests import Request


@dataclass(frozen=True, slots=True)
class Place:
    """A request, the row of the base's session that it has, and the drafted tokens that come before the place."""

    request: Request
    row: int
    drafted: tuple[int, ...]

    @property
    def position(self) -> int:
        """How many tokens of the answer come before it."""
        return len(self.request.token_ids) + len(self.drafted)

    @property
    def must_go_on(self) -> bool:
        """Whether the answer is too short to end with the token here."""
        return self.position < self.request.params.min_tokens

    @property
    def answered(self) -> tuple[int, ...]:
        """The tokens of the answer before it."""
        return (*self.request.token_ids, *self.drafted)

    def read(self) -> tuple[int, ...]:
        """Every token before it, as the model reads them."""
        return (*self.request.read_by(None), *self.drafted)

    def forced(self) -> int | None:
        """The token here, where the request gives it."""
        given = self.request.params.forced
        return given[self.position] if self.position < len(given) else None


class Places:
    """All places of a step: those of a request stand together, in order; requests in the order of their rows."""

    def __init__(self, running: Sequence[Request], drafts: Mapping[int, Sequence[int]]) -> None:
        """The places of running requests with these drafts, by request id."""
        self._places: list[Place] = []
        self._of_row: list[range] = []
        for row, request in enumerate(running):
            draft, first = drafts.get(request.request_id, ()), len(self._places)
            self._places += [Place(request, row, tuple(draft[:num])) for num in range(len(draft) + 1)]
            self._of_row.append(range(first, len(self._places)))
        self._rows = {request.request_id: row for row, request in enumerate(running)}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __getitem__(self, index: int) -> Place:
        return self._places[index]

    @property
    def are_ahead(self) -> bool:
        """Whether any comes after a drafted token."""
        return len(self._places) > len(self._of_row)

    def of_request(self, request_id: int) -> range:
        """The places of a request: after none of its drafted tokens, after one, and so on."""
        return self._of_row[self._rows[request_id]]

    def first(self, row: int) -> int:
        """The place after none of a row's drafted tokens."""
        return self._of_row[row].start

    def tensors(self) -> tuple[Tensor, Tensor]:
        """[B] int64 each: the row of each place, and after how many of its drafted tokens it comes."""
        rows = [place.row for place in self._places]
        return torch.tensor(rows), torch.tensor([len(place.drafted) for place in self._places])

    def run(self, row: int, tokens: Mapping[int, int], failures: Collection[int]) -> list[int]:
        """The places of a row whose tokens count: up to the first whose token is not what was drafted after it.

        One that failed after drafted tokens is asked again in the next step, then without them.
        """
        run: list[int] = []
        for index in self._of_row[row]:
            if index in failures or (run and self._places[index].drafted[-1] != tokens[run[-1]]):
                break
            run.append(index)
        return run
