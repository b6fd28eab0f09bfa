"""What a long prompt costs those that are being answered beside it: memory, and the time between their tokens.

    python benchmarks/neighbours.py                                         # the demo model, unguided and guided
    python benchmarks/neighbours.py --streams 15 --num-prompt-tokens 1800 --json figures.json

A server of its own for each arm. Streams of short prompts run (one that ends is asked anew); after some tokens a long
prompt joins, and
the gap between two tokens of a stream is compared before it joined, while it was read (until its first token came) and
after. Memory is the server's resident set: before the long prompt, at most beside it, and when all have left, each less
what it was before the first request, beside the bytes that all these tokens have in the caches.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trimtab.evaluation import throughput
from trimtab.loading import load_model
from trimtab.models.trunk import TrunkSession

AIMS = {
    "gap while a long prompt is read over the usual one, at most": 3.0,
    "memory over what tokens hold, at most": 3.0,
}
GUIDE = "positive"
MIB = 1 << 20


def main() -> int:
    args = _arguments()
    arms = {"unguided": 0.0, "guided": 1.0}
    turns: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    unit = _token_bytes(args.model)
    for _ in range(args.num_repeats):
        for arm, weight in arms.items():
            turns[arm].append(_turn(args, weight, unit * (2 if weight else 1)))
            print(arm, json.dumps(turns[arm][-1]), file=sys.stderr)
    medians = {arm: {key: _spread([turn[key] for turn in found]) for key in found[0]} for arm, found in turns.items()}
    workload = {"streams": args.streams, "num_prompt_tokens": args.num_prompt_tokens, "token_bytes": unit}
    print(throughput.write_report({"arms": medians, "aims": AIMS, **workload}, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab serve (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="(%(default)s)")
    parser.add_argument("--streams", type=int, default=15, help="short requests (%(default)s)")
    parser.add_argument("--num-prompt-tokens", type=int, default=1800, help="of the long request (%(default)s)")
    parser.add_argument("--num-before", type=int, default=16, help="tokens before it joins (%(default)s)")
    parser.add_argument("--num-after", type=int, default=16, help="tokens after it was read (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=3, help="turns (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _token_bytes(model: str) -> int:
    session = load_model(model).open()
    assert isinstance(session, TrunkSession)
    return session.token_bytes


def _spread(values: list[float]) -> list[float]:
    """Median, lowest and highest."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]


def _turn(args: argparse.Namespace, weight: float, token_bytes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "trimtab.cli.main", "serve", "--model", args.model, "--port", "0"]
    command += ["--guide", f"{GUIDE}={args.guide}", "--max-rows", str(args.streams + 1)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if line.startswith("serving "))
            port = int(line.split("127.0.0.1:")[1].split("/")[0])
            return asyncio.run(_measured(args, weight, token_bytes, port, server.pid))
        finally:
            server.send_signal(signal.SIGKILL)


async def _measured(args: argparse.Namespace, weight: float, token_bytes: int, port: int, pid: int) -> dict[str, float]:
    ended = asyncio.Event()
    await _stream(args, port, "Hello", 4, weight, [], ended)  # warms up
    empty = _resident(pid)
    times: list[list[float]] = [[] for _ in range(args.streams)]
    streams = [
        asyncio.create_task(_streams(args, port, f"Story {number}: once", weight, arrived, ended))
        for number, arrived in enumerate(times)
    ]
    while min(map(len, times)) < args.num_before:
        await asyncio.sleep(0.01)
    before = _resident(pid)
    _reset_most(pid)
    joined, first = time.perf_counter(), []
    prompt = " ship" * (args.num_prompt_tokens - 1)
    await _stream(args, port, prompt, 8, weight, first, asyncio.Event())
    read = first[0]
    so_far = [len(arrived) for arrived in times]
    while any(len(arrived) < count + args.num_after for arrived, count in zip(times, so_far, strict=True)):
        await asyncio.sleep(0.01)
    most = _most(pid)
    num_tokens = args.num_prompt_tokens + 8 + sum(6 + _num_last(arrived) for arrived in times)
    ended.set()
    await asyncio.gather(*streams)
    await asyncio.sleep(2)
    gaps = [pair for arrived in times for pair in itertools.pairwise(arrived) if math.isfinite(sum(pair))]
    usual = [later - earlier for earlier, later in gaps if later < joined]
    reading = [later - earlier for earlier, later in gaps if earlier > joined and later <= read + 0.05]
    held = num_tokens * token_bytes / MIB
    return {
        "usual gap, s": statistics.median(usual),
        "gap while it is read, s": statistics.median(reading),
        "longest gap while it is read, s": max(reading),
        "median over usual": statistics.median(reading) / statistics.median(usual),
        "longest over usual": max(reading) / statistics.median(usual),
        "long prompt's first token, s": read - joined,
        "tokens hold, MiB": held,
        "beside the long prompt, MiB more": most - empty,
        "short streams alone, MiB more": before - empty,
        "all have left, MiB more": _resident(pid) - empty,
    }


def _num_last(arrived: list[float]) -> int:
    """Pieces of the last answer."""
    return next((at for at, when in enumerate(reversed(arrived)) if math.isnan(when)), len(arrived))


async def _streams(
    args: argparse.Namespace, port: int, prompt: str, weight: float, arrived: list[float], ended: asyncio.Event
) -> None:
    """One answer after another, NaN before each."""
    while not ended.is_set():
        arrived.append(math.nan)
        await _stream(args, port, prompt, 1000 + len(arrived) % 7, weight, arrived, ended)


async def _stream(
    args: argparse.Namespace,
    port: int,
    prompt: str,
    num: int,
    weight: float,
    arrived: list[float],
    ended: asyncio.Event,
) -> None:
    """Note when each piece of an answer comes, until it ends or is left."""
    body: dict[str, Any] = {"model": args.model, "prompt": prompt, "max_tokens": num, "stream": True, "seed": num}
    body |= {"guidance": {"weights": {GUIDE: weight}}}
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {len(content)}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
    writer.write(f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + content)
    leaving = asyncio.create_task(ended.wait())
    while not ended.is_set():
        reading = asyncio.create_task(reader.readline())
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            reading.cancel()
            break
        if not (line := reading.result()):
            break
        if line.startswith(b'data: {"'):
            arrived.append(time.perf_counter())
    leaving.cancel()
    writer.close()


def _status(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def _resident(pid: int) -> float:
    """MiB."""
    return _status(pid, "VmRSS")


def _most(pid: int) -> float:
    """MiB held at most since `_reset_most`."""
    return _status(pid, "VmHWM")


def _reset_most(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # see proc_pid_clear_refs(5)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
