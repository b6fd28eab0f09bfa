"""A server that many use at a time, some of them badly: no answer is lost, crossed or cut, and nothing is left behind.

TRIMTAB_SOAK_MINUTES says how long the mixed load lasts (10; `make test-all` says 60); with -s its figures are printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.server_process import serving, until
from tests.serving.conftest import GUIDES, Start
from tests.serving.load import Asked, Seen, hang_up, pool, stream, visit, whole
from tests.tiny import byte_tokenizer, write_lora
from trimtab.answers import Step
from trimtab.decoding.decoder import Decoder
from trimtab.models.forward.shelves import bound
from trimtab.models.forward.trunk import Trunk
from trimtab.models.hf import HFModel
from trimtab.serving.limits import Limits
from trimtab.serving.memory import Memory, plan

pytestmark = pytest.mark.alone

SOAK_S = 60 * float(os.environ.get("TRIMTAB_SOAK_MINUTES", "10"))
LIMITS = Limits(
    max_rows=12,
    max_queue=16,
    max_cached_tokens=7000,  # of a long prompt and its answer, with both guides, there are some 5000
    default_new_tokens=24,
    prefill_chunk=64,
    max_prompt_tokens=1900,
)
MIB = 1 << 20


@pytest.fixture(scope="module")
def asked(tiny_model: HFModel, guides: dict[str, Any]) -> list[Asked]:
    return pool(Decoder(tiny_model, guides, max_rows=1), 60, seed=0)


async def visitors(url: str, asked: list[Asked], seen: Seen, *, num: int, seconds: float) -> None:
    """`num` clients for so long, each with one request after another."""
    end = time.monotonic() + seconds

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        dice = random.Random(number)
        while time.monotonic() < end:
            await visit(session, asked, seen, dice)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        await asyncio.gather(*(one(session, number) for number in range(num)))


def test_every_answer_of_a_mixed_load_is_the_one_it_has_alone(
    start: Start, asked: list[Asked], tiny_model: HFModel, guides: dict[str, Any]
) -> None:
    seen, taken = Seen(), [0]
    decoder = Decoder(
        tiny_model,
        guides,
        max_rows=LIMITS.max_rows,
        prefill_chunk=LIMITS.prefill_chunk,
        max_cached_tokens=LIMITS.max_cached_tokens,
    )
    step = decoder.step

    def weighed() -> list[Step]:
        steps = step()
        taken.append(decoder.capacity.num_bytes)
        return steps

    decoder.step = weighed  # type: ignore[method-assign]
    with start(LIMITS, engine=decoder) as server:
        asyncio.run(visitors(server.url, asked, seen, num=24, seconds=5))
        until(lambda: server.batch.num_open == 0)
        assert_nothing_is_left(decoder)
    assert not seen.wrong, seen.wrong[:5]
    assert seen.counts["answers compared"] > 20
    assert seen.counts["hang up"] > 10
    rows = LIMITS.max_rows * (1 + len(GUIDES))
    most = decoder.capacity.token_bytes * bound(LIMITS.max_cached_tokens, rows)
    assert most / 8 < max(taken) < most  # long prompts are in it


def test_a_thousand_clients_that_hang_up_leave_nothing(start: Start, asked: list[Asked]) -> None:
    seen = Seen()
    limits = Limits(max_rows=12, max_queue=1000, default_new_tokens=200, prefill_chunk=64, max_prompt_tokens=1900)

    async def leave(url: str) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        gate = asyncio.Semaphore(50)
        async with aiohttp.ClientSession(url, connector=connector) as session:

            async def one(number: int) -> None:
                async with gate:
                    dice = random.Random(number)
                    long = Asked("/v1/completions", {**dice.choice(asked).body, "prompt": "a", "max_tokens": 200}, ())
                    await hang_up(session, dice.choice([long, *asked]), seen, dice)

            await asyncio.gather(*(one(number) for number in range(1000)))

    with start(limits) as server:
        asyncio.run(leave(server.url))
        until(lambda: server.batch.num_open == 0)
        assert_nothing_is_left(server.service.engine)
        metrics = server.server.config.app.state.metrics  # type: ignore[union-attr]
        ended = {
            sample.labels["finish_reason"]: sample.value
            for family in metrics.answers.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        assert ended["cancelled"] > 300, ended


def assert_nothing_is_left(decoder: Decoder) -> None:
    """No request, no row of the base or of a guide, and no slot of their caches."""
    assert decoder.num_running == decoder.num_waiting == 0
    assert decoder.num_rows == decoder.capacity.num_bytes == 0
    for cache in decoder.capacity.caches:
        assert isinstance(cache, Trunk)
        assert cache.num_rows == 0


@contextmanager
def served(tiny_model: HFModel, root: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`trimtab serve` of the tiny model in a process of its own, and its address."""
    tiny_model.module.save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    argv = ["--model", str(root / "model"), "--name", "tiny"]
    for seed, name in enumerate(GUIDES):
        argv += [
            "--guide",
            f"{name}={write_lora(root / name, tiny_model.module, seed=seed)}",
            "--form",
            f"{name}=shift",
        ]
    names = ("max_rows", "max_queue", "max_cached_tokens", "default_new_tokens", "prefill_chunk", "max_prompt_tokens")
    for name in names:
        argv += [f"--{name.replace('_', '-')}", str(getattr(LIMITS, name))]
    with serving(*argv, OMP_NUM_THREADS="1") as (server, port):
        yield server, f"http://127.0.0.1:{port}"


def test_kill_9_under_load_is_a_connection_error_and_never_a_cut_answer(
    tiny_model: HFModel, asked: list[Asked], tmp_path: Path
) -> None:
    seen, outcomes = Seen(), Counter[str]()

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        dice = random.Random(number)
        while True:
            try:
                await dice.choice((stream, whole))(session, dice.choice(asked), seen, dice)
                outcomes["as it is alone"] += 1
            except aiohttp.ClientConnectorError:
                return
            except aiohttp.ClientError:
                outcomes["connection error"] += 1

    async def run(url: str, server: subprocess.Popen[str]) -> None:
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
            asking = [asyncio.create_task(one(session, number)) for number in range(20)]
            while outcomes["as it is alone"] <= 20:
                await asyncio.sleep(0.05)
            server.kill()
            await asyncio.gather(*asking)

    with served(tiny_model, tmp_path) as (server, url):
        asyncio.run(run(url, server))
    assert not seen.wrong, seen.wrong[:5]
    assert outcomes["connection error"] > 5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_is_flat_under_a_long_mixed_load(
    tiny_model: HFModel, guides: dict[str, Any], asked: list[Asked], tmp_path: Path
) -> None:
    seen, memory = Seen(), []

    async def watch(pid: int) -> None:
        while True:
            memory.append(resident_bytes(pid))
            await asyncio.sleep(min(10.0, SOAK_S / 40))

    async def run(url: str, pid: int) -> None:
        watching = asyncio.create_task(watch(pid))
        await visitors(url, asked, seen, num=24, seconds=SOAK_S)
        watching.cancel()

    with served(tiny_model, tmp_path) as (server, url):
        asyncio.run(run(url, server.pid))
        left = asyncio.run(gauges(url))
    early, late = max(memory[len(memory) // 10 : len(memory) // 4]), max(memory[-len(memory) // 4 :])
    planned = plan(Decoder(tiny_model, guides), LIMITS, [], Memory(1 << 50, memory[0], "a test"))
    assert planned is not None
    figures = {"minutes": SOAK_S / 60, **seen.counts, "wrong": len(seen.wrong), "left": left}
    series = [round(value / MIB, 1) for value in memory[:: max(1, len(memory) // 12)]]
    print(json.dumps({**figures, "MiB early": early / MIB, "MiB late": late / MIB, "MiB": series}))
    assert not seen.wrong, seen.wrong[:5]
    assert seen.counts["answers compared"] > 20 * SOAK_S / 60
    assert left == {"trimtab_batch_size": 0.0, "trimtab_queue_length": 0.0}
    assert max(memory) < planned.num_bytes  # what the server says at start
    assert late - early < 32 * MIB  # a leak of 1 KiB a visit would be 30 MiB in ten minutes, 150 in an hour


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


async def gauges(url: str) -> dict[str, float]:
    """Batch and queue once nothing runs."""
    names = ("trimtab_batch_size", "trimtab_queue_length")
    async with aiohttp.ClientSession(url) as session:
        for _ in range(100):
            async with session.get("/metrics") as reply:
                lines = (await reply.text()).splitlines()
            found = {name: float(line.split()[1]) for name in names for line in lines if line.startswith(f"{name} ")}
            if not any(found.values()):
                break
            await asyncio.sleep(0.1)
    return found
