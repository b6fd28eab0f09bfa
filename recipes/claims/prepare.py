"""What stages need and no command of trimtab makes: cut files, pairs of prefixes, merged bases, matched random agents.

    python recipes/claims/prepare.py first FILE.jsonl --start 100 --num 400 --out PROMPTS.jsonl
    python recipes/claims/prepare.py prefixes PAIRS.jsonl --shares 0.25 0.5 0.75 1 --out MORE.jsonl
    python recipes/claims/prepare.py against MIX.jsonl POLICY.jsonl --out PAIRS.jsonl
    python recipes/claims/prepare.py merge --model demo --adapter policies/dpo --out bases/dpo
    python recipes/claims/prepare.py random-agent --model demo --agent agents/a --prompts FILE.jsonl --out agents/random
    python recipes/claims/prepare.py judge --reward harmless=DIR --pairs VALIDATION.jsonl --out judges.jsonl

    python recipes/claims/prepare.py figures --out FIGURES.jsonl        # speeds that the pages give

What is written appears whole or not at all, so a stage that was cut begins anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import DataError

NUM_STEPS = 12
"""Halvings of the bias that a random agent's acceptance rate is matched by."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.make(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, make in MAKERS.items():
        command = commands.add_parser(name, help=(make.__doc__ or "").partition("\n")[0])
        command.set_defaults(make=make)
        command.add_argument("--out", type=Path, required=True)
        if name in ("first", "prefixes", "against"):
            command.add_argument("file", type=Path)
        if name == "against":
            command.add_argument("rejected", type=Path)
        if name == "first":
            command.add_argument("--start", type=int, default=0)
            command.add_argument("--num", type=int, required=True)
        if name == "prefixes":
            command.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
        if name in ("merge", "random-agent"):
            command.add_argument("--model", required=True)
        if name == "merge":
            command.add_argument("--adapter", required=True)
        if name == "random-agent":
            command.add_argument("--agent", required=True)
            command.add_argument("--prompts", type=Path, required=True)
            command.add_argument("--num-prompts", type=int, default=16)
            command.add_argument("--max-new-tokens", type=int, default=32)
            command.add_argument("--seed", type=int, default=0)
        if name == "judge":
            command.add_argument("--reward", action="append", required=True, metavar="NAME=SCORER")
            command.add_argument("--pairs", type=Path, required=True)
            command.add_argument("--num", type=int, default=200)
    return parser


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _prompts(source: str) -> list[dict[str, Any]]:
    """The rows of a file, or the prompts that ship under a name: `builtin:training`."""
    before, colon, name = source.partition(":")
    if before != "builtin" or not colon:
        return _lines(Path(source))
    from trimtab import builtin_prompts

    return [{"prompt": prompt} for prompt in builtin_prompts(name)]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)


def first(args: argparse.Namespace) -> None:
    """Some rows of a file, in its order."""
    rows = _prompts(str(args.file))[args.start : args.start + args.num]
    if len(rows) < args.num:
        raise DataError(f"{len(rows)} rows from row {args.start} on, and {args.num} are asked for.", path=args.file)
    _write(args.out, rows)


def prefixes(args: argparse.Namespace) -> None:
    """Pairs whose two answers are cut to the same share of their words, the whole ones among them."""
    rows = []
    for row in _lines(args.file):
        for share in args.shares:
            rows.append({**row, **{key: _cut(row[key], share) for key in ("chosen", "rejected")}})
    _write(args.out, rows)


def against(args: argparse.Namespace) -> None:
    """Pairs of two files of answers to the same prompts: those of the first are chosen, those of the second rejected.

    A prompt whose two answers are alike makes no pair. These are the pairs of Alignment-Aware Decoding's data engine
    (arXiv 2509.26169): the mix's answers against a policy's.
    """
    found = []
    chosen, rejected = _lines(args.file), _lines(args.rejected)
    if [row["prompt"] for row in chosen] != [row["prompt"] for row in rejected]:
        raise DataError(f"not answers to the prompts of {args.file}, one each in its order.", path=args.rejected)
    for better, worse in zip(chosen, rejected, strict=True):
        if better["text"] != worse["text"]:
            found.append({"prompt": better["prompt"], "chosen": better["text"], "rejected": worse["text"]})
    _write(args.out, found)


def _cut(answer: Any, share: float) -> Any:
    if not isinstance(answer, str):
        return [*answer[:-1], {**answer[-1], "content": _cut(answer[-1]["content"], share)}]
    words = answer.split(" ")
    return " ".join(words[: max(1, round(len(words) * share))])


def merge(args: argparse.Namespace) -> None:
    """A base with a LoRA adapter added to its weights, as a model of its own."""
    from peft import PeftModel

    from trimtab import load_guide, load_model, save_guide

    model = load_model(args.model, dtype="float32")
    assert model.tokenizer is not None
    with tempfile.TemporaryDirectory() as directory:
        adapter = save_guide(load_guide(args.adapter), Path(directory) / "adapter")
        merged = PeftModel.from_pretrained(model.module, str(adapter)).merge_and_unload()
    beside = args.out.with_name(f".{args.out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    merged.save_pretrained(beside)
    model.tokenizer.hf.save_pretrained(beside)
    shutil.rmtree(args.out, ignore_errors=True)
    beside.replace(args.out)


def random_agent(args: argparse.Namespace) -> None:
    """An agent with a random network that accepts as large a share of what it meets as another agent does."""
    import torch

    from trimtab import Agent, AgentNetwork, load_guide, load_model, save_guide

    model, agent = load_model(args.model), load_guide(args.agent)
    assert isinstance(agent, Agent)
    texts = [row["prompt"] for row in _lines(args.prompts)[: args.num_prompts]]
    prompts = [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in texts]
    wanted = _acceptance(model, agent, prompts, args)
    torch.manual_seed(args.seed)
    network = AgentNetwork(model.hidden_size, agent.network.width).eval().requires_grad_(False)
    random = dataclasses.replace(agent, network=network)
    low, high, found = -8.0, 8.0, 0.0
    for _ in range(NUM_STEPS):
        bias = (low + high) / 2
        network.output_linear.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
        found = _acceptance(model, random, prompts, args)
        low, high = (bias, high) if found < wanted else (low, bias)
    save_guide(random, args.out, overwrite=True)
    print(f"acceptance rate: the agent {wanted:.3f}, the random network {found:.3f}")


def _acceptance(model: Any, agent: Any, prompts: Sequence[Any], args: argparse.Namespace) -> float:
    from trimtab import Decoder, acceptance_of

    decoder = Decoder(model, {"agent": agent}, max_rows=len(prompts))
    options = {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "trace": True, "temperature": 1.0}
    return acceptance_of(list(decoder.generate(prompts, weights={"agent": 0.5}, **options))).acceptance_rate


def judge(args: argparse.Namespace) -> None:
    """A line for each reward and pair: whether the answer that people chose earns more."""
    from trimtab import load_scorer, read_pairs

    pairs = read_pairs([args.pairs]).pairs[: args.num]
    rows = []
    for text in args.reward:
        name, _, source = text.partition("=")
        score = load_scorer(source)
        prompts = [pair.prompt for pair in pairs]
        chosen, rejected = (score(prompts, [_text(getattr(p, k)) for p in pairs]) for k in ("chosen", "rejected"))
        rows += [
            {"judge": name, "pair": number, "right": float(better > worse) + 0.5 * float(better == worse)}
            for number, (better, worse) in enumerate(zip(chosen, rejected, strict=True))
        ]
    _write(args.out, rows)


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer[-1]["content"])


def figures(args: argparse.Namespace) -> None:
    """The speeds of the pages on performance and on GGUF files over the base's, each with what measured it."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    _write(args.out, [*_methods(docs / "evaluation" / "performance.md"), *_llama(docs / "serving" / "llama.md")])


RATIO = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)")


def _methods(page: Path) -> Iterator[dict[str, Any]]:
    text = page.read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Methods$(.*?)^## ", text, flags=re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"`(python benchmarks/methods.py .*?)`", section, flags=re.DOTALL)
    for requests, table in re.findall(r"\| method, batch (\d+) \|.*?\n\|[-|]+\n(.*?)\n\n", section, flags=re.DOTALL):
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            found, method = RATIO.fullmatch(cells[2]), re.match(r"`([\w-]+)`", cells[0])
            assert found, line
            assert method, line
            yield {
                "method": method[1],
                "said": cells[0],
                "engine": "builtin",
                "requests": int(requests),
                "model": "135M",
                **dict(zip(("of_base", "lowest", "highest"), map(float, found.groups()), strict=True)),
                "command": " ".join(command.split()),
                "page": "docs/evaluation/performance.md",
            }


def _llama(page: Path) -> Iterator[dict[str, Any]]:
    text = page.read_text(encoding="utf-8")
    (line,) = re.findall(r"^\| guided, over unguided \|.*$", text, flags=re.MULTILINE)
    columns = [("135M, Q4_1", 1), ("135M, Q4_1", 16), ("1.5B, Q4_K_M, guide of 0.5B", 1)]
    for (model, requests), found in zip(columns, RATIO.findall(line), strict=True):
        yield {
            "method": "genarm",
            "said": "guided, over unguided",
            "engine": "llama.cpp",
            "requests": requests,
            "model": model,
            **dict(zip(("of_base", "lowest", "highest"), map(float, found), strict=True)),
            "command": "python benchmarks/llama.py",
            "page": "docs/serving/llama.md",
        }


MAKERS = {
    "figures": figures,
    "first": first,
    "prefixes": prefixes,
    "against": against,
    "merge": merge,
    "random-agent": random_agent,
    "judge": judge,
}

if __name__ == "__main__":
    sys.exit(main())
