"""What a long prompt costs those that are decoded beside it: memory, and the time between their tokens.

    python benchmarks/neighbours.py                                     # the demo model, unguided and guided
    python benchmarks/neighbours.py --streams 15 --num-prompt-tokens 1800 --json figures.json
    python benchmarks/neighbours.py --processor-time                    # on a machine that others use too

A process of its own for each arm and turn. Short requests are decoded as a server does it (`prefill_chunk` 256); once
each has had some tokens, a long prompt joins. The time between two tokens of the short ones is compared before it
joined, while it is read (until its first token has come) and after. Memory is the resident set: with the short ones
alone, at most beside the long one, and once all have left, each less what it was before the first of them, beside the
bytes that all their tokens have in the caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from trimtab.core import SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation import throughput
from trimtab.evaluation.throughput import peak_memory_mb, reset_peak_memory
from trimtab.serving.limits import Limits
from trimtab.storage.loading import load_guide, load_model

AIMS = {"gap while it is read over the usual one, at most": 3.0, "memory over what tokens hold, at most": 3.0}
ARMS = {"unguided": 0.0, "guided": 1.0}
GUIDE = "positive"
MIB = 1 << 20


def main() -> int:
    args = _arguments()
    if args.arm is not None:
        print(json.dumps(_turn(args, ARMS[args.arm])))
        return 0
    turns: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for _ in range(args.num_repeats):
        for arm in args.arms:
            command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            turns[arm].append(json.loads(said.splitlines()[-1]))
            print(arm, json.dumps(turns[arm][-1]), file=sys.stderr)
    report = {arm: {key: _spread([turn[key] for turn in found]) for key in found[0]} for arm, found in turns.items()}
    workload = {"streams": args.streams, "num_prompt_tokens": args.num_prompt_tokens}
    print(throughput.write_report({"arms": report, "aims": AIMS, **workload}, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab serve (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="(%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="(both)")
    parser.add_argument("--streams", type=int, default=15, help="short requests (%(default)s)")
    parser.add_argument("--num-prompt-tokens", type=int, default=1800, help="of the long request (%(default)s)")
    parser.add_argument("--num-before", type=int, default=8, help="tokens before it joins (%(default)s)")
    parser.add_argument("--num-after", type=int, default=4, help="tokens after it was read (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=3, help="turns (%(default)s)")
    parser.add_argument("--processor-time", action="store_true", help="seconds of this process's processor time")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _spread(values: list[float]) -> list[float]:
    """Median, lowest and highest."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]


def _turn(args: argparse.Namespace, weight: float) -> dict[str, float]:
    model = load_model(args.model)
    chunk = Limits().prefill_chunk
    decoder = Decoder(model, {GUIDE: load_guide(args.guide)}, max_rows=args.streams + 1, prefill_chunk=chunk)
    clock = time.process_time if args.processor_time else time.perf_counter
    decoder._pace.clock = clock

    def join(length: int, number: int, num_new_tokens: int) -> int:
        prompt = [(7 * place + 3 * number + 1) % 1000 for place in range(length)]
        how = SamplingParams(weights={GUIDE: weight}, max_new_tokens=num_new_tokens, temperature=0, ignore_eos=True)
        return decoder.add(prompt, how)

    def gap() -> float:
        started = clock()
        with_token.append({step.request_id for step in decoder.step()})
        return clock() - started

    with_token: list[set[int]] = []
    join(8, 0, 2)
    gap(), gap()
    empty = _resident_mb()
    short = [join(12, number, 1500) for number in range(args.streams)]
    usual = [gap() for _ in range(args.num_before)][1:]
    alone = _resident_mb()
    reset_peak_memory(model.device)
    long = join(args.num_prompt_tokens, 99, 2 + args.num_after)
    reading: list[float] = []
    while not reading or long not in with_token[-1]:
        reading.append(gap())
    after = [gap() for _ in range(args.num_after)]
    most = peak_memory_mb(model.device)
    num_tokens = args.num_prompt_tokens + args.num_after + len(short) * (12 + len(usual) + len(reading) + len(after))
    for request_id in [*short, long]:
        decoder.cancel(request_id)
    return {
        "usual gap, s": statistics.median(usual),
        "gap while it is read, s": statistics.median(reading),
        "longest gap while it is read, s": max(reading),
        "gap after, s": statistics.median(after),
        "median over usual": statistics.median(reading) / statistics.median(usual),
        "longest over usual": max(reading) / statistics.median(usual),
        "steps to read it": len(reading),
        "tokens hold, MiB": num_tokens * decoder.capacity.token_bytes * (2 if weight else 1) / MIB,
        "short ones alone, MiB more": alone - empty,
        "beside the long one, MiB more": most - empty,
        "all have left, MiB more": _resident_mb() - empty,
    }


def _resident_mb() -> float:
    """The resident set in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
