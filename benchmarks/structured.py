"""What a constraint costs a token: the same prompts with a JSON schema and without, at several batch sizes.

    python benchmarks/structured.py                    # the demo model, batches of 1 and 16

Arms take turns in one process; figures are medians over turns of the constrained arm's seconds a token over the free
arm's of the same turn, with the smallest and the largest. The schema asks for a long list of objects, so that no answer
ends before its last token. Every row has a schema of its own. What comes once is timed apart: the vocabulary in bytes,
and a schema compiled, its trial in a process of its own included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trimtab import Constraint, Decoder, SamplingParams, load_guide, load_model
from trimtab.constraining.grammars import Grammars
from trimtab.core import Guide
from trimtab.evaluation import throughput
from trimtab.models.hf import HFModel
from trimtab.prompts import encode_prompt

AIM = "constrained over free, batch 16: at most 1.05"
GUIDE = "steering"
PROMPT = [{"role": "user", "content": "Make up people for a story, as a JSON list with name, age, town and tags."}]


def main() -> int:
    args = _arguments()
    model = load_model(args.model)
    guides: dict[str, Guide] = {} if args.guide == "none" else {GUIDE: load_guide(args.guide, beside=model)}
    report = {
        "once": _once(model),
        "batches": {str(num): _measured(args, model, guides, num) for num in args.batch_sizes},
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "aim": AIM,
    }
    print(throughput.write_report(report, args.json))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="as in trimtab generate (%(default)s)")
    parser.add_argument("--guide", default="builtin:sentiment", help="a guide, or none (%(default)s)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16], help="rows (1 16)")
    parser.add_argument("--num-new-tokens", type=int, default=48, help="of an answer (%(default)s)")
    parser.add_argument("--num-repeats", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def schema(number: int) -> Constraint:
    """A long list of people; another constraint for another number."""
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 100 + number},
            "town": {"type": "string", "maxLength": 40},
            "tags": {"type": "array", "items": {"enum": ["kind", "old", "young", "tall", "quick"]}, "maxItems": 3},
        },
        "required": ["name", "age", "town", "tags"],
        "additionalProperties": False,
    }
    return Constraint.json_schema({"type": "array", "items": person, "minItems": 500})


def _once(model: HFModel) -> Mapping[str, float]:
    """Seconds."""
    started = time.perf_counter()
    grammars = Grammars(model)
    made = time.perf_counter()
    grammars.compiled(schema(0))
    return {"vocabulary_s": round(made - started, 3), "schema_s": round(time.perf_counter() - made, 3)}


def _measured(
    args: argparse.Namespace, model: HFModel, guides: Mapping[str, Guide], num_rows: int
) -> Mapping[str, object]:
    decoder = Decoder(model, guides)
    prompt = encode_prompt(model, PROMPT)

    def arm(*, constrained: bool, draft: str = "none") -> Callable[[], int]:
        wanted = [
            SamplingParams(
                max_new_tokens=args.num_new_tokens,
                seed=row,
                draft=draft,
                ignore_eos=not constrained,
                constraint=schema(row) if constrained else None,
            )
            for row in range(num_rows)
        ]
        return lambda: sum(len(answer.token_ids) for answer in decoder.answers([(prompt, one) for one in wanted]))

    arms = {
        "free": arm(constrained=False),
        "constrained": arm(constrained=True),
        "constrained, certain drafts": arm(constrained=True, draft="certain"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(args.num_repeats + 1):  # the first warms up
        for name, run in arms.items():
            started = time.perf_counter()
            num_tokens = run()
            assert num_tokens == num_rows * args.num_new_tokens, "an answer ended early"
            if turn:
                seconds[name].append((time.perf_counter() - started) / num_tokens)
    ratios = {
        name: [one / free for one, free in zip(seconds[name], seconds["free"], strict=True)]
        for name in arms
        if name != "free"
    }
    return {
        "ms_per_token": {name: round(1000 * statistics.median(times), 3) for name, times in seconds.items()},
        "over_free": {
            name: {
                "median": round(statistics.median(found), 3),
                "min": round(min(found), 3),
                "max": round(max(found), 3),
            }
            for name, found in ratios.items()
        },
    }


if __name__ == "__main__":
    raise SystemExit(main())
