"""How much memory a server may come to take: known before it serves, and refused where the machine has less.

What is loaded is measured. The caches are bounded by the tokens that running answers may hold (`capacity.Capacity`), of
which a cache takes at most half more (`shelves.bound`). What a step works in is an estimate.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, naming
from trimtab.guides.brought import SentencePlace
from trimtab.models import machine
from trimtab.models.forward.shelves import bound
from trimtab.serving.limits import Limits

USABLE = 0.9
"""The share of a machine's memory that a server plans with."""
_WORK = 256 << 20
_TABLES = 8
"""Tables [rows, V] of float32 that a step makes, at most, at a time."""
_LEAST = 64
"""Cached tokens below which there is nothing to serve with."""
_SIZES = ("max_rows", "max_prompt_tokens", "max_new_tokens")


@dataclass(frozen=True, slots=True)
class Memory:
    """A kind of memory, in bytes: how much there is, and how much of it is taken."""

    total: int
    used: int
    what: str
    """Whose it is, as a sentence names it."""

    @property
    def room(self) -> int:
        """What a server may still take."""
        return int(USABLE * self.total) - self.used


@dataclass(frozen=True, slots=True)
class Plan:
    """What a server's limits come to."""

    max_cached_tokens: int
    num_bytes: int
    """All that the process may come to take."""
    text: str
    """That, as a line."""


def memory_of(device: torch.device) -> Memory:
    """The memory that a model on this device lives in: the scarcest of those that bound this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, total - free, f"the GPU {torch.cuda.get_device_name(device)}")
    resident, virtual = machine.held()
    memories = [Memory(total, resident, what) for total, what in machine.totals()]
    if (space := machine.address_space()) is not None:
        memories.append(Memory(space, virtual, "this process (its limit of address space)"))
    return min(memories, key=lambda memory: memory.room)


def plan(decoder: Decoder, limits: Limits, asked: Collection[str], memory: Memory) -> Plan | None:
    """How many tokens running answers may hold together, and what that comes to; None for a model without a cache.

    `asked` are the limits that somebody set. Raises OptionError for those that do not fit: the defaults give way to the
    machine, what was asked for does not.
    """
    unit = decoder.capacity.token_bytes
    if not unit:
        return None
    rows, wanted = _wanted(decoder, limits)
    work = _WORK + 4 * _TABLES * (rows + decoder.max_drafted) * decoder.model.vocab_size
    fitting = max(0, int(((memory.room - work) / (1.1 * unit) - bound(0, rows)) / 1.5))

    def taken(num_tokens: int) -> int:
        return int(memory.used + work + 1.1 * unit * bound(num_tokens, rows))

    tokens = limits.max_cached_tokens or wanted
    larger = [name for name in _SIZES if name in asked and getattr(limits, name) > getattr(Limits(), name)]
    there = (_gib(memory.total), memory.what, _gib(memory.used), f"{fitting:,}")
    if fitting < _LEAST and "max_rows" in larger:
        raise naming(
            OptionError,
            "{max_rows} is {4}, and that many answers take {5} GiB to work in, whatever they hold. Of the {0} GiB of "
            "{1}, {2} are in use. Lower {max_rows}.",
            *there,
            f"{limits.max_rows:,}",
            _gib(taken(0) - memory.used),
        )
    if fitting < _LEAST:
        raise OptionError(
            f"Of the {there[0]} GiB of {there[1]}, {there[2]} are in use: there is no room for the caches of running "
            "answers. Serve a smaller model or fewer guides, or a dtype of fewer bytes, or find more memory."
        )
    if limits.max_cached_tokens > fitting:
        raise naming(
            OptionError,
            "{max_cached_tokens} is {0}, which may take {1} GiB with what is loaded. Of the {2} GiB of {3}, {4} are in "
            "use, and {5} cached tokens fit. Give at most that many.",
            *(f"{tokens:,}", _gib(taken(tokens)), *there),
        )
    if tokens > fitting and larger:
        raise naming(
            OptionError,
            "{max_rows} answers of {max_prompt_tokens} and {max_new_tokens} may come to {0} cached tokens, the guides' "
            "included, which may take {1} GiB with what is loaded. Of the {2} GiB of {3}, {4} are in use, and {5} "
            "cached tokens fit. Lower one of the three, or give {max_cached_tokens}, at most that many: answers then "
            "wait where there is no room for them.",
            *(f"{tokens:,}", _gib(taken(tokens)), *there),
        )
    tokens = min(tokens, fitting)
    text = (
        f"memory: at most {_gib(taken(tokens))} of the {_gib(memory.total)} GiB of {memory.what}: {_gib(memory.used)} "
        f"in use, {_gib(taken(tokens) - memory.used - work)} for {tokens:,} cached tokens of {unit / 1024:.4g} KiB, "
        f"{_gib(work)} to work in"
    )
    return Plan(tokens, taken(tokens), text)


def _wanted(decoder: Decoder, limits: Limits) -> tuple[int, int]:
    """(rows of caches, tokens of the base's in them) of as many of the largest answers as may run.

    A row that reads a sentence which its request brings is longer by that sentence.
    """
    longest = limits.max_prompt_tokens + limits.max_new_tokens
    held = decoder.model.max_length
    with_sentence = longest + limits.max_sentence_tokens
    if held is not None:
        longest, with_sentence = min(longest, held), min(with_sentence, held)
    tokens = [
        share * (with_sentence if isinstance(decoder.guides[name], SentencePlace) else longest)
        for name, share in decoder.capacity.shares.items()
    ]
    largest = sorted(tokens, reverse=True)[: limits.max_guides]
    rows = limits.max_rows * (1 + sum(num > 0 for num in largest))
    return rows, int(limits.max_rows * (longest + sum(largest)))


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.3g}" if num_bytes < 2**30 * 100 else f"{num_bytes / 2**30:,.0f}"
