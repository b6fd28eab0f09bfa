"""A server's memory is planned before it serves: what does not fit is refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_module, write_lora
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.models import machine
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.serving.limits import Limits
from trimtab.serving.memory import Memory, memory_of, plan
from trimtab.storage.loading import load_guide

GIB = 1 << 30
UNIT = 384
"""Bytes that a token of the tiny model takes."""


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(HFModel(tiny_module(max_position_embeddings=100_000)))


def gib(number: float) -> Memory:
    return Memory(int(number * GIB), GIB // 4, "a test")


def test_the_plan_is_rows_times_their_longest(decoder: Decoder) -> None:
    limits = Limits(max_rows=10, max_prompt_tokens=1000, max_new_tokens=500)
    planned = plan(decoder, limits, ["max_rows"], gib(64))
    assert planned is not None
    assert decoder.capacity.token_bytes == UNIT
    assert planned.max_cached_tokens == 15_000
    assert 1.5 * 15_000 * UNIT < planned.num_bytes - GIB // 2 < 2 * 15_000 * UNIT + 32 * UNIT * 100
    assert "15,000 cached tokens of 0.375 KiB" in planned.text


def test_a_guide_is_a_row_more_and_a_model_ends_where_it_ends(tmp_path: Path) -> None:
    module = tiny_module(max_position_embeddings=64)
    guided = Decoder(HFModel(module), {"lora": load_guide(write_lora(tmp_path, module))})
    planned = plan(guided, Limits(max_rows=2), [], gib(64))
    assert planned is not None
    assert planned.max_cached_tokens == 2 * 64 * 2


def test_defaults_give_way_to_the_machine(decoder: Decoder) -> None:
    limits = Limits(max_prompt_tokens=50_000, max_new_tokens=40_000)
    roomy = plan(decoder, limits, [], gib(64))
    small = plan(decoder, limits, [], gib(1))
    assert roomy is not None
    assert small is not None
    assert roomy.max_cached_tokens == 16 * 90_000
    assert 10_000 < small.max_cached_tokens < roomy.max_cached_tokens
    assert small.num_bytes <= GIB


@pytest.mark.parametrize(
    ("name", "value"), [("max_rows", 1000), ("max_prompt_tokens", 99_000), ("max_new_tokens", 99_000)]
)
def test_what_was_asked_for_and_does_not_fit_is_refused_with_what_does(decoder: Decoder, name: str, value: int) -> None:
    limits = Limits(**{"max_prompt_tokens": 50_000, "max_new_tokens": 40_000, name: value})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"cached tokens fit. Lower one of the three, or give max_cached_tokens") as e:
        plan(decoder, limits, [name], gib(1))
    fitting = int(str(e.value).split(" cached tokens fit")[0].split()[-1].replace(",", ""))
    given = Limits(**{name: value, "max_cached_tokens": fitting})  # type: ignore[arg-type]
    planned = plan(decoder, given, [name, "max_cached_tokens"], gib(1))
    assert planned is not None
    assert planned.max_cached_tokens == fitting
    assert planned.num_bytes <= GIB
    with pytest.raises(OptionError, match=f"max_cached_tokens is {fitting + 1:,}"):
        plan(decoder, Limits(**{name: value, "max_cached_tokens": fitting + 1}), [name], gib(1))  # type: ignore[arg-type]


def test_rows_have_a_price_of_their_own(decoder: Decoder) -> None:
    with pytest.raises(OptionError, match=r"max_rows is 99,000,000, .* Lower max_rows"):
        plan(decoder, Limits(max_rows=99_000_000, max_cached_tokens=100), ["max_rows"], gib(1))


def test_a_smaller_limit_than_the_default_is_never_refused(decoder: Decoder) -> None:
    planned = plan(decoder, Limits(max_rows=8, max_prompt_tokens=4000), ["max_rows", "max_prompt_tokens"], gib(0.7))
    assert planned is not None


def test_a_machine_that_is_full_is_said_to_be(decoder: Decoder) -> None:
    with pytest.raises(OptionError, match="there is no room for the caches"):
        plan(decoder, Limits(), [], gib(0.3))


def test_a_model_without_a_cache_needs_no_plan() -> None:
    assert plan(Decoder(TabularModel.random(11, seed=0)), Limits(), [], gib(0.1)) is None


def test_the_scarcest_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Physical memory, a control group of either version, of this process or above it, and `ulimit -v`."""
    here = torch.device("cpu")
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    monkeypatch.setattr(machine, "_PROC", proc)
    monkeypatch.setattr(machine, "_CGROUPS", groups)
    assert memory_of(here).what == "this machine"  # no /proc, no groups
    (proc / "statm").write_text("4000 1000 0 0")
    (proc / "cgroup").write_text("4:memory:/job/one\n0::/user/job\n")
    assert memory_of(here).total > 64 << 20
    for folder, name, number in (
        ("memory/job", "memory.limit_in_bytes", 512 << 20),
        ("user/job", "memory.max", 256 << 20),
        ("user", "memory.max", 128 << 20),
    ):
        (groups / folder).mkdir(parents=True, exist_ok=True)
        (groups / folder / name).write_text(str(number))
        assert (memory_of(here).total, memory_of(here).what) == (number, "this control group")
    (groups / "user" / "memory.max").write_text("max\n")
    assert memory_of(here).total == 256 << 20
    monkeypatch.setattr(machine, "address_space", lambda: 100 << 20)
    assert memory_of(here).what.startswith("this process")
