"""`trimtab generate`: answer prompts, one JSON object a line.

A prompt that is plain text is put to the model as a user's message, through its chat template, if the model has one:
that is what somebody at a command line means. `--raw` continues the text as it stands (as the Python interface does
with a string); `--chat` insists on a template. Chat messages and token ids in a file are what they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from trimtab.cli import engines, guide_options, options
from trimtab.cli.answering import answer_file
from trimtab.cli.answering.by_method import MethodChoice, add_method_options, answered, method_choice
from trimtab.cli.answering.requests import Request, in_order, located
from trimtab.cli.prompts import PromptRow, as_asked, prompts_of, read_prompts, use_template
from trimtab.cli.template_options import add_ignored_columns, add_template_options, template_options
from trimtab.errors import ModelError, OptionError, PromptError

if TYPE_CHECKING:
    from trimtab.decoding.engine import GenerationEngine

_SETTINGS = (
    *("model", "revision", "dtype", "template", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("rule", "plausibility", "repetition_penalty", "stop", "ignore_eos", "trace", "num_alternatives"),
)


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "generate", help="answer prompts from a file or the command line", description=__doc__
    )
    options.add_model_options(parser)
    add_method_options(parser)
    source = parser.add_argument_group("prompts and answers").add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts", metavar="FILE", help=".jsonl rows with a prompt, a .txt with one a line, or - (JSON lines)"
    )
    source.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; repeat for several")
    add_template_options(parser)
    add_ignored_columns(parser)
    parser.add_argument("--skip-bad-lines", action="store_true", help="go on without lines that cannot be used")
    parser.add_argument("--out", metavar="FILE", help="where answers go, one JSON object a line (standard output)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue --out exactly where it was cut")
    existing.add_argument("--overwrite", action="store_true", help="replace --out")
    parser.add_argument(
        "--batch-size", type=options.whole(1), default=16, metavar="N", help="prompts at a time (%(default)s)"
    )
    parser.add_argument("--trace", action="store_true", help="add log-probabilities, ranks and KL for each token")
    parser.add_argument(
        "--num-alternatives", type=options.whole(0), default=0, metavar="N", help="with --trace: rivals of each token"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output: answers, or a summary with --out")
    options.add_sampling_options(parser)
    engines.add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer every prompt."""
    started = time.monotonic()
    options.check_guide_names(args.guides)
    _check_options(args)
    engines.check_engine(args)
    engines.check_sampling(args, options.sampling_params(args, weights={}, seed=None))
    choice = method_choice(args)
    rows = _read_rows(args)
    plan = None if args.out is None else answer_file.plan(args.out, resume=args.resume, overwrite=args.overwrite)
    seed = _first_seed(args.seed, plan)
    settings = _settings(args, rows, seed) | ({} if choice is None else {"method": dataclasses.asdict(choice)})
    if plan is not None:
        settings["contents"] = _contents(args, choice)
        plan.check(settings, rows)
    num_done = 0 if plan is None else plan.num_done
    todo = _requests(args, rows, seed)[num_done:]
    num_tokens = _answer_all(args, todo, plan, settings, choice) if todo else 0
    if args.out is not None:
        _summarise(args, len(rows), num_done, num_tokens, time.monotonic() - started)
    num_failed = sum(request.failed for request in todo)
    if num_failed:
        raise ModelError(f"{num_failed} of {len(todo)} answers failed while they were made; their rows say why.")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if args.num_alternatives and not args.trace:
        raise OptionError("--num-alternatives is part of a trace; give --trace with it.")
    if (args.resume or args.overwrite) and args.out is None:
        raise OptionError("--resume and --overwrite are about the file of answers; give --out FILE with them.")
    if args.method is not None and args.engine != "builtin":
        raise OptionError("--engine vllm answers by guides in one mix; leave --method out, or name it in a recipe.")
    if (args.skip_bad_lines or args.ignore_columns) and args.prompts is None:
        flag = "--skip-bad-lines" if args.skip_bad_lines else "--ignore-column"
        raise OptionError(f"{flag} is about a file of prompts; give --prompts FILE with it.")
    template_options(args)


def _read_rows(args: argparse.Namespace) -> list[PromptRow]:
    if args.prompt is not None:
        return prompts_of(args.prompt)
    names = engines.guide_names(args)
    return read_prompts(args.prompts, names, skip_bad_lines=args.skip_bad_lines, ignore_columns=args.ignore_columns)


def _first_seed(seed: int | None, plan: answer_file.Plan | None) -> int:
    """The seed given, else that of the file to be continued, else a new one."""
    if seed is not None:
        return seed
    if plan is not None and plan.settings is not None and isinstance(plan.settings.get("seed"), int):
        return int(plan.settings["seed"])
    return secrets.randbelow(2**31)


def _settings(args: argparse.Namespace, rows: Sequence[PromptRow], seed: int) -> dict[str, Any]:
    """Everything that an answer depends on. The batch size is not among them: it changes no answer."""
    preferences = options.preferences_of(args)
    forms, bases = guide_options.read(args)
    from trimtab.prompts import as_json

    content = json.dumps([[as_json(row.prompt), row.weights, row.seed] for row in rows], ensure_ascii=True)
    told = template_options(args)
    return {
        **{name: getattr(args, name) for name in _SETTINGS},
        **({"template_options": told} if told else {}),
        "guides": {
            spec.name: {
                "source": _source(spec.path),
                "weight": spec.weight,
                **({"preference": list(preferences[spec.name])} if spec.name in preferences else {}),
                **({"form": forms[spec.name]} if spec.name in forms else {}),
                **({"guide_base": bases[spec.name]} if spec.name in bases else {}),
            }
            for spec in args.guides
        },
        "prompts": hashlib.sha256(content.encode()).hexdigest(),
        "seed": seed,
        **_engine(args),
    }


def _engine(args: argparse.Namespace) -> dict[str, Any]:
    """What vLLM adds to that: its draws are others. Nothing where the built-in engine answers."""
    if args.engine == "builtin":
        return {}
    manifest = engines.packed(args.model)
    return {
        "engine": args.engine,
        **({} if manifest is None else {"packed": json.loads(json.dumps(manifest.as_config()))}),
    }


def _source(path: str) -> str:
    """What a guide is: its content, so that one trained anew is not taken for the old; its name where it has none."""
    from trimtab.storage.digests import model_contents

    files = model_contents(path).get("files")
    return path if files is None else f"sha256:{files}"


def _contents(args: argparse.Namespace, choice: MethodChoice | None) -> dict[str, Any]:
    """The content of what the names stand for: the model, the guides' bases, and all that the method reads."""
    from trimtab.evaluation.comparison.fingerprints import option_contents
    from trimtab.storage.digests import model_contents

    bases = guide_options.read(args)[1]
    return {
        "model": model_contents(str(args.model)),
        **({"guide_bases": {name: model_contents(base) for name, base in bases.items()}} if bases else {}),
        **({} if choice is None else {"method": option_contents(choice.options)}),
    }


def _requests(args: argparse.Namespace, rows: Sequence[PromptRow], seed: int) -> list[Request]:
    return [Request(row, row.weights, seed + index if row.seed is None else row.seed) for index, row in enumerate(rows)]


def _answer_all(
    args: argparse.Namespace,
    requests: list[Request],
    plan: answer_file.Plan | None,
    settings: Mapping[str, Any],
    choice: MethodChoice | None,
) -> int:
    """Run the requests and write each answer as soon as it and those before it are there. The number of new tokens."""
    found = _mixed(args, requests) if choice is None else answered(args, requests, choice, trace=args.trace)
    if plan is None:
        return _write_all(args, found, len(requests), sys.stdout)
    try:
        with plan.open(settings) as stream:
            return _write_all(args, found, len(requests), stream)
    except OSError as error:
        reason = f"{error.strerror}. Whole answers stay in the file; --resume continues it"
        raise OSError(error.errno, reason, args.out) from error


def _mixed(args: argparse.Namespace, requests: list[Request]) -> Iterator[Request]:
    """Answers of the guides in one mix, in one batch that requests join and leave."""
    tokenizer, decoder = engines.load(args, max_rows=args.batch_size)
    try:
        running = _admit(args, decoder, requests, chat=use_template(args.template, tokenizer))
    except BaseException:
        decoder.close()
        raise
    return _and_then(in_order(decoder, running, requests), decoder.close)


def _and_then(found: Iterator[Request], close: Callable[[], None]) -> Iterator[Request]:
    """All of `found`, then `close`, whatever ends it."""
    try:
        yield from found
    finally:
        close()


def _write_all(args: argparse.Namespace, found: Iterator[Request], total: int, stream: TextIO) -> int:
    num_tokens = 0
    with _Progress(total, shown=args.out is not None) as progress:
        for request in found:
            num_tokens += len(request.token_ids)
            _write(stream, request, args)
            progress.advance()
    return num_tokens


def _admit(
    args: argparse.Namespace, decoder: GenerationEngine, requests: list[Request], *, chat: bool
) -> dict[int, Request]:
    """Request id -> request, for every prompt, before the first token: a prompt that is too long fails here."""
    running, told = {}, template_options(args)
    own = {name: guide.weight for name, guide in decoder.guides.items()}
    for request in requests:
        request.weights = {**own, **request.weights}
        params = options.sampling_params(
            args,
            weights=request.weights,
            seed=request.seed,
            trace=args.trace,
            num_alternatives=args.num_alternatives,
        )
        try:
            prompt = as_asked(request.row.prompt, chat=chat, options=told)
            running[decoder.add(prompt, params)] = request
        except PromptError as error:
            if not args.skip_bad_lines:
                raise located(error, request.row) from error
            request.refuse(error)
    return running


def _write(stream: TextIO, request: Request, args: argparse.Namespace) -> None:
    row = request.as_row(trace=args.trace)
    as_text = args.out is None and not args.json and args.prompt is not None and not args.trace
    stream.write(f"{row['text']}\n" if as_text else json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    stream.flush()


class _Progress:
    """A bar on standard error, where that is a terminal and answers do not go there too."""

    def __init__(self, total: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), disable=not (shown and sys.stderr.isatty()), transient=True)
        self._task = self._bar.add_task("answers", total=total)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One more answer."""
        self._bar.advance(self._task)


def _summarise(args: argparse.Namespace, num_answers: int, num_resumed: int, num_tokens: int, seconds: float) -> None:
    summary = {
        "out": args.out,
        "num_answers": num_answers,
        "num_resumed": num_resumed,
        "num_new_tokens": num_tokens,
        "seconds": round(seconds, 3),
    }
    if args.json:
        print(json.dumps(summary))
    options.say(f"{num_answers} answers in {args.out} ({num_resumed} of them from before), {num_tokens} new tokens")
