"""The sides of the decoding loop: the base's session and each guide's, and the requests in their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from trimtab.caches import num_known
from trimtab.core import Candidates, Guide, GuideSession, ModelSession, Selection, Session, TokenIds
from trimtab.decoding.gating import Gates
from trimtab.decoding.looks import Looks, look_cost
from trimtab.decoding.places import Places
from trimtab.decoding.requests import Columns, Request
from trimtab.drafting import drafting
from trimtab.errors import ModelError
from trimtab.mixing.rules import NEVER
from trimtab.mixing.sampling import plausible
from trimtab.mixing.selecting import Begun, Walk, survivors, walk
from trimtab.sessions import PolicySession

S_co = TypeVar("S_co", bound=Session, covariant=True)


class Rows(Generic[S_co]):
    """A session, the requests in its rows, and what of their prompts it has not been given yet."""

    def __init__(self, session: S_co) -> None:
        self._session = session
        self._requests: list[Request] = []
        self._left: dict[int, TokenIds] = {}
        self._drafted: dict[int, int] = {}  # request id -> drafted tokens that its row has

    @property
    def session(self) -> S_co:
        """The session itself."""
        return self._session

    @property
    def num_rows(self) -> int:
        """Rows that are remembered, by the session or here."""
        return max(self._session.num_rows, len(self._requests), len(self._left))

    def row(self, request: Request) -> int:
        """The row of a request."""
        return self._requests.index(request)

    def left(self, request: Request) -> int:
        """How many tokens of a request's prompt are still to be fed."""
        return len(self._left.get(request.request_id, ()))

    def unknown(self, prompt: TokenIds) -> int:
        """How many tokens of a prompt would have to be fed."""
        return len(prompt) - num_known(self._session, prompt)

    def admit(self, starts: Sequence[tuple[Request, TokenIds, int]]) -> None:
        """A row for each (request, prompt, limit): it starts from what is known and `limit` tokens more."""
        if not starts:
            return
        lengths = [num_known(self._session, prompt) + limit for _, prompt, limit in starts]
        self._session.admit([prompt[:length] for (_, prompt, _), length in zip(starts, lengths, strict=True)])
        for (request, prompt, _), length in zip(starts, lengths, strict=True):
            self._requests.append(request)
            if len(prompt) > length:
                self._left[request.request_id] = prompt[length:]

    def fill(self, request: Request, limit: int) -> None:
        """The next `limit` tokens of a request's prompt."""
        left = self._left.pop(request.request_id, ())
        if not left:
            return
        row = torch.tensor([self.row(request)])
        for token_id in left[:limit]:
            self._session.advance(row, torch.tensor([token_id]))
        if len(left) > limit:
            self._left[request.request_id] = left[limit:]

    def keep(self, running: set[int]) -> None:
        rows = [row for row, request in enumerate(self._requests) if request.request_id in running]
        if len(rows) < len(self._requests):
            self._session.keep(torch.tensor(rows, dtype=torch.int64))
            self._requests = [self._requests[row] for row in rows]
            self._left = {key: left for key, left in self._left.items() if key in running}

    def advance(self, tokens: Mapping[int, int]) -> None:
        """One token to each row whose request has one."""
        rows, ids = self._grown(tokens)
        if rows:
            self._session.advance(torch.tensor(rows), torch.tensor(ids))

    def draft(self, drafts: Mapping[int, Sequence[int]]) -> None:
        """What is drafted for each request, by its id, as far as its row does not have it yet."""
        for place in range(max(map(len, drafts.values()), default=0)):
            some = {
                key: draft[place] for key, draft in drafts.items() if self._drafted.get(key, 0) <= place < len(draft)
            }
            rows, ids = self._grown(some)
            if rows:
                drafting(self._session).draft(torch.tensor(rows), torch.tensor(ids))
                for row in rows:
                    key = self._requests[row].request_id
                    self._drafted[key] = self._drafted.get(key, 0) + 1

    def settle(self, counts: Mapping[int, int]) -> None:
        """Keep so many of each request's drafted tokens, and take all others back."""
        if self._drafted:
            kept = [min(counts.get(key, 0), self._drafted.get(key, 0)) for key in self._ids()]
            drafting(self._session).settle(torch.tensor(kept))
            self._drafted = {}

    def _ids(self) -> list[int]:
        return [request.request_id for request in self._requests]

    def _grown(self, tokens: Mapping[int, int]) -> tuple[list[int], list[int]]:
        """The rows whose request has a token, and these."""
        rows = [row for row, key in enumerate(self._ids()) if key in tokens]
        return rows, [tokens[self._requests[row].request_id] for row in rows]


class Lane(Rows[GuideSession]):
    """A guide's session and the requests in its rows: only those in which it has a weight."""

    def __init__(self, name: str, guide: Guide, beside: ModelSession) -> None:
        super().__init__(guide.open(beside))
        self.name = name
        self.guide = guide

    def part(
        self, candidates: Candidates, places: Places, acting: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """A tilting guide's scores [B, K] and weights [B] for all places of a step (weight 0 where it does not run).

        `acting` [B] bool says where its gates are open; where none of its own places is, nothing is asked of it, and
        tokens that wait in a session of its own go on waiting.
        """
        if not self._requests:
            return None
        base = candidates.logprobs
        mine = [
            (index, row, num) for row, key in enumerate(self._ids()) for num, index in enumerate(places.of_request(key))
        ]
        indices, rows, drafted = (list(column) for column in zip(*mine, strict=True))
        at = None if indices == list(range(len(base))) else torch.tensor(indices, device=base.device)
        is_open = acting if acting is None or at is None else acting[at]
        if is_open is not None and not bool(is_open.any()):
            return None
        some = candidates if at is None else candidates.select(at)
        weights = self._weights(base.device)
        if len(mine) > len(self._requests):
            some = replace(some, rows=torch.tensor(rows), drafted=torch.tensor(drafted))
            weights = weights[torch.tensor(rows, device=base.device)]
        if is_open is not None:
            weights = torch.where(is_open, weights, 0.0)
        scores = self._session.score(some)
        check_shape(self.name, scores, some)
        scores = self._plausible(scores, some, rows)
        if at is None:
            return scores, weights
        return torch.zeros_like(base).index_copy(0, at, scores), base.new_zeros(len(base)).index_copy(0, at, weights)

    def _plausible(self, scores: Tensor, candidates: Candidates, rows: Sequence[int]) -> Tensor:
        """Scores [B, K] of requests in these rows, −inf where the guide itself hardly gives a token, if they ask."""
        masks = [self._requests[row].params.guide_plausibility.get(self.name, 0.0) for row in rows]
        if not any(masks):
            return scores
        assert isinstance(self._session, PolicySession), "sessions.check_masks refuses what has no policy"
        policy = self._session.policy(candidates)
        kept = plausible(policy, torch.tensor(masks, dtype=torch.float32, device=policy.device))
        return scores.masked_fill(~kept.to(scores.device), NEVER)

    def _weights(self, device: torch.device) -> Tensor:
        return torch.tensor([request.weights[self.name] for request in self._requests], device=device)


class SelectingLane(Lane):
    """The lane of a guide that selects among candidates."""

    def __init__(self, name: str, guide: Guide, selection: Selection, beside: ModelSession) -> None:
        super().__init__(name, guide, beside)
        self.selection = selection
        self._base = beside
        self._looks = Looks(lambda num: look_cost(beside, num))
        self._begun: dict[int, Begun] = {}  # request id -> what was found of its next token's candidates

    def keep(self, running: set[int]) -> None:
        super().keep(running)
        self._begun = {key: begun for key, begun in self._begun.items() if key in running}

    def select(
        self,
        policy: Tensor,
        columns: Columns,
        places: Places,
        failed: Mapping[int, object],
        gates: Gates,
    ) -> tuple[Tensor, Walk, Tensor] | None:
        """Places [R] in which this guide selects, its walk there, and the rule's policy [R, K].

        `policy` is [B, V]: the tilted policy at temperature 1. Places that have failed already, and those where its
        gate is closed before it is asked (`Gates.acting`), are left out. Those that stay undecided (`Walk.left`) are
        asked about again in the next step, with the candidates that follow.
        """
        mine = [(row, index) for row, key in enumerate(self._ids()) for index in places.of_request(key)]
        acting = gates.acting.get(self.name)
        closed = set() if acting is None else set((~acting).nonzero().flatten().tolist())
        mine = [(row, index) for row, index in mine if index not in failed and index not in closed]
        if not mine:
            return None
        lane_rows = torch.tensor([row for row, _ in mine], device=policy.device)
        batch = torch.tensor([index for _, index in mine], device=policy.device)
        base_rows = torch.tensor([places[index].row for _, index in mine], device=policy.device)
        candidates, counts = survivors(
            policy[batch], top_k=columns.top_k[batch], top_p=columns.top_p[batch], min_p=columns.min_p[batch]
        )
        context = self._base.context() if self.guide.needs_context else None

        def look(rows: Tensor, some: Candidates, asked: Tensor) -> Tensor:
            hidden = self._base.peek(some.token_ids, base_rows[rows]) if self.guide.needs_hidden else None
            before = None if context is None else context[base_rows[rows].to(context.device)]
            shown = replace(some, hidden=hidden, context=before)
            scores = torch.zeros_like(some.logprobs)
            mine = replace(shown.select(asked), rows=lane_rows[rows[asked]], base_rows=base_rows[rows[asked]])
            found = self._session.score(mine)
            check_shape(self.name, found, mine)
            scores[asked] = found.to(scores)
            return scores

        keys = [places[index].request.request_id for _, index in mine]
        others = len(places) > len(mine) + len(failed)
        can_wait = self.selection.rule.lazy and not places.are_ahead
        found = walk(
            candidates,
            counts,
            self._weights(policy.device)[lane_rows],
            self.selection,
            look,
            pays=self._looks.width,
            begun=[self._begun.get(key) for key in keys],
            ends=(lambda decided: others or bool(decided.any())) if can_wait else None,
            gate=gates.of_significance(self.name, places, batch.tolist(), candidates.token_ids[:, 0]),
        )
        self._begun = {keys[row]: begun for row, begun in found.left.items()}
        if self.selection.rule.lazy:
            self._looks.note(found)
        return batch, found, found.policy(self.selection.rule)


def check_shape(name: str, scores: Tensor, candidates: Candidates) -> None:
    """Raise ModelError for scores that are not one number for each candidate."""
    wanted = candidates.token_ids.shape
    if scores.shape != wanted:
        raise ModelError(
            f"Guide {name} gave scores of shape {list(scores.shape)} for candidates of shape {list(wanted)}; its score "
            "gives one number for each candidate of each row, [B, K]."
        )
