"""What the web layer costs and what one batch gains: guided streams of `trimtab serve` beside the same work without it.

    python benchmarks/serving.py                                            # the demo model and the guide that ships
    python benchmarks/serving.py --streams 16 --num-new-tokens 64 --json figures.json

Each turn measures, on the same prompts and seeds: the requests one after another; all at once; in this process, as one
batch without a server; and as many clients as there are streams, each sending its next request when the last has ended,
with answers of different lengths, so that requests join while others run. Answers may end early: speeds are tokens a
second of what came. Time to first token is a median over requests. Clients read the stream's lines and parse none but
the last; the server's process and theirs share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.prompt_sets import demo_prompts
from trimtab.storage.loading import load_guide, load_model

AIMS = {
    "batched over sequential": 5.0,
    "first token among streams over idle, at most": 3.0,
    "first token at once over idle, at most": 3.0,
    "server over in-process": 0.9,
}
GUIDE = "positive"
Turn = dict[str, float]


def main() -> int:
    args = _arguments()
    prompts = demo_prompts()[: args.streams]
    command = [sys.executable, "-m", "trimtab.cli.main", "serve", "--model", args.model, "--port", "0"]
    command += ["--guide", f"{GUIDE}={args.guide}", "--max-rows", str(args.streams)]
    decoder = Decoder(load_model(args.model), {GUIDE: load_guide(args.guide)}, max_rows=args.streams)
    _in_process(decoder, args, prompts)  # warms up
    turns: dict[str, list[Turn]] = {"sequential": [], "at once": [], "joining": [], "in process": []}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = _url(server)
            asyncio.run(_turn(url, args, prompts[:2], at_once=True))  # warms up
            for _ in range(args.num_repeats):
                turns["sequential"].append(asyncio.run(_turn(url, args, prompts, at_once=False)))
                turns["at once"].append(asyncio.run(_turn(url, args, prompts, at_once=True)))
                turns["joining"].append(asyncio.run(_joining(url, args, prompts)))
                os.kill(server.pid, signal.SIGSTOP)  # the batch in this process has the machine to itself
                turns["in process"].append(_in_process(decoder, args, prompts))
                os.kill(server.pid, signal.SIGCONT)
        finally:
            server.terminate()
    workload = {"streams": args.streams, "num_new_tokens": args.num_new_tokens}
    report = {**_report(turns), "aims": AIMS, **workload}
    print(throughput.write_report(report, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab serve (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="(%(default)s)")
    parser.add_argument("--streams", type=int, default=16, help="requests at once (%(default)s)")
    parser.add_argument("--num-new-tokens", type=int, default=64, help="an answer (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=3, help="turns (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def _url(server: subprocess.Popen[str]) -> str:
    """Where the server listens; it says so once it is loaded."""
    assert server.stderr is not None
    for line in server.stderr:
        if line.startswith("serving "):
            return line.split(" at ")[1].split("/ (")[0]
    raise SystemExit("the server did not start")


async def _turn(url: str, args: argparse.Namespace, prompts: list[Any], *, at_once: bool) -> Turn:
    started = time.perf_counter()
    asked = [(url, args, prompt, seed, args.num_new_tokens) for seed, prompt in enumerate(prompts)]
    if at_once:
        found = await asyncio.gather(*(_stream(*one) for one in asked))
    else:
        found = [await _stream(*one) for one in asked]
    return _summary(found, time.perf_counter() - started)


async def _joining(url: str, args: argparse.Namespace, prompts: list[Any]) -> Turn:
    """Each client sends three requests; the first of each is not counted in the time to first token."""

    async def visit(number: int) -> list[tuple[float, int]]:
        lengths = [args.num_new_tokens * share // 32 for share in (8 + number * 24 // len(prompts), 32, 24)]
        return [
            await _stream(url, args, prompts[(number + turn) % len(prompts)], number, length)
            for turn, length in enumerate(lengths)
        ]

    started = time.perf_counter()
    found = await asyncio.gather(*(visit(number) for number in range(len(prompts))))
    summary = _summary([one for visits in found for one in visits], time.perf_counter() - started)
    return {**summary, "first_token_s": statistics.median(seconds for visits in found for seconds, _ in visits[1:])}


def _summary(found: list[tuple[float, int]], seconds: float) -> Turn:
    first = statistics.median(seconds for seconds, _ in found)
    return {"tokens_per_s": sum(tokens for _, tokens in found) / seconds, "first_token_s": first}


async def _stream(url: str, args: argparse.Namespace, prompt: Any, seed: int, num_new_tokens: int) -> tuple[float, int]:
    """(seconds to the first piece of text, tokens) of one guided stream, on a connection of its own."""
    body = {
        "model": args.model,
        "messages": prompt,
        "seed": seed,
        "max_tokens": num_new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "guidance": {"weights": {GUIDE: 1.0}},
    }
    content = json.dumps(body).encode()
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {len(content)}"
    started, first, events = time.perf_counter(), None, [b"", b""]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + content)
    async for line in reader:
        if line.startswith(b"data: "):
            events = [events[-1], line]
            if first is None and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - started
    writer.close()
    if events[1].strip() != b"data: [DONE]":
        raise SystemExit(f"a stream was refused or cut: {events}")
    tokens = json.loads(events[0].removeprefix(b"data: "))["usage"]["completion_tokens"]
    return first or time.perf_counter() - started, tokens


def _in_process(decoder: Decoder, args: argparse.Namespace, prompts: list[Any]) -> Turn:
    """The same requests in one batch of a decoder, without a server."""
    started = time.perf_counter()
    answers = list(decoder.generate(prompts, weights={GUIDE: 1.0}, max_new_tokens=args.num_new_tokens, seed=0))
    return {"tokens_per_s": sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - started)}


def _report(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    def ratio(above: str, below: str, what: str) -> list[float]:
        """Median, lowest and highest over the turns."""
        ratios = [one[what] / other[what] for one, other in zip(turns[above], turns[below], strict=True)]
        return [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]

    return {
        "turns": turns,
        "batched over sequential": ratio("at once", "sequential", "tokens_per_s"),
        "first token among streams over idle": ratio("joining", "sequential", "first_token_s"),
        "first token at once over idle": ratio("at once", "sequential", "first_token_s"),
        "server over in-process": ratio("at once", "in process", "tokens_per_s"),
    }


if __name__ == "__main__":
    sys.exit(main())
