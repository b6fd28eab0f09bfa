"""What the web layer costs and what one batch gains: guided streams of `trimtab serve` beside the same work without it.

    python benchmarks/serving.py                                            # the demo model and the guide that ships
    python benchmarks/serving.py --streams 16 --num-new-tokens 32 --json figures.json

One run measures, on the same prompts and seeds: the requests one after another, all at once, and the time to first
token of both; then, with the server ended, a batch of the same requests inside this process. Answers may end early:
figures are tokens a second of what came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import torch

from trimtab.decoding import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.prompts import demo_prompts
from trimtab.loading import load_guide, load_model

AIMS = {"batched over sequential": 5.0, "first token at once over idle, at most": 3.0, "server over in-process": 0.9}
GUIDE = "positive"


def main() -> int:
    args = _arguments()
    prompts = [[{"role": "user", "content": text}] for text in demo_prompts()[: args.streams]]
    command = [sys.executable, "-m", "trimtab.cli.main", "serve", "--model", args.model, "--port", "0"]
    command += ["--guide", f"{GUIDE}={args.guide}", "--max-rows", str(args.streams)]
    turns: dict[str, list[dict[str, float]]] = {"sequential": [], "at once": [], "in process": []}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        client = openai.AsyncOpenAI(base_url=f"{_url(server)}/v1", api_key="none", timeout=600)
        try:
            asyncio.run(_serve(client, args, prompts, turns))
        finally:
            server.terminate()
    _in_process(args, prompts, turns["in process"])
    report = {**_report(turns), "aims": AIMS, "machine": throughput.machine(torch.device("cpu"))}
    report |= {"streams": args.streams, "num_new_tokens": args.num_new_tokens, "versions": throughput.versions()}
    print(json.dumps(report, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab serve (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="(%(default)s)")
    parser.add_argument("--streams", type=int, default=16, help="requests at once (%(default)s)")
    parser.add_argument("--num-new-tokens", type=int, default=32, help="an answer (%(default)s)")
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


async def _serve(
    client: openai.AsyncOpenAI, args: argparse.Namespace, prompts: list[Any], turns: dict[str, list[dict[str, float]]]
) -> None:
    while True:  # until it is loaded
        try:
            await client.models.list()
            break
        except openai.APIConnectionError:
            await asyncio.sleep(0.2)
    await _turn(client, args, prompts[:2], at_once=True)  # warms up
    for _ in range(args.num_repeats):
        turns["sequential"].append(await _turn(client, args, prompts, at_once=False))
        turns["at once"].append(await _turn(client, args, prompts, at_once=True))


async def _turn(
    client: openai.AsyncOpenAI, args: argparse.Namespace, prompts: list[Any], *, at_once: bool
) -> dict[str, float]:
    started = time.perf_counter()
    if at_once:
        found = await asyncio.gather(*(_stream(client, args, seed, one) for seed, one in enumerate(prompts)))
    else:
        found = [await _stream(client, args, seed, one) for seed, one in enumerate(prompts)]
    seconds = time.perf_counter() - started
    first = statistics.median(seconds for seconds, _ in found)
    return {"tokens_per_s": sum(tokens for _, tokens in found) / seconds, "first_token_s": first}


async def _stream(client: openai.AsyncOpenAI, args: argparse.Namespace, seed: int, prompt: Any) -> tuple[float, int]:
    """(seconds to the first token, tokens) of one guided stream."""
    started, first, tokens = time.perf_counter(), None, 0
    stream = await client.chat.completions.create(
        model=args.model,
        messages=prompt,
        seed=seed,
        max_tokens=args.num_new_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"guidance": {"weights": {GUIDE: 1.0}}},
    )
    async for chunk in stream:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - started
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
    return first or time.perf_counter() - started, tokens


def _in_process(args: argparse.Namespace, prompts: list[Any], turns: list[dict[str, float]]) -> None:
    """The same requests in one batch of a decoder, without a server."""
    decoder = Decoder(load_model(args.model), {GUIDE: load_guide(args.guide)}, max_rows=args.streams)
    for turn in range(args.num_repeats + 1):
        started = time.perf_counter()
        answers = list(decoder.generate(prompts, weights={GUIDE: 1.0}, max_new_tokens=args.num_new_tokens, seed=0))
        tokens = sum(len(answer.token_ids) for answer in answers)
        if turn:  # the first warms up
            turns.append({"tokens_per_s": tokens / (time.perf_counter() - started)})


def _report(turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    def ratio(above: str, below: str, what: str) -> list[float]:
        ratios = [one[what] / other[what] for one, other in zip(turns[above], turns[below], strict=True)]
        return [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]

    return {
        "turns": turns,
        "batched over sequential": ratio("at once", "sequential", "tokens_per_s"),
        "first token at once over idle": ratio("at once", "sequential", "first_token_s"),
        "server over in-process": ratio("at once", "in process", "tokens_per_s"),
    }


if __name__ == "__main__":
    sys.exit(main())
