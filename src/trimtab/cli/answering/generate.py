"""`trimtab generate`: answer prompts, one JSON object a line.

A prompt that is plain text is put to the model as a user's message, through its chat template, if the model has one:
that is what somebody at a command line means. `--raw` continues the text as it stands (as the Python interface does
with a string); `--chat` insists on a template. Chat messages and token ids in a file are what they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from trimtab.cli import engines, options
from trimtab.cli.answering import answer_file, described
from trimtab.cli.answering.by_method import (
    MethodChoice,
    add_method_options,
    answered,
    check_unweighted,
    method_choice,
)
from trimtab.cli.answering.requests import Request, in_order, located
from trimtab.cli.constraint_options import add_constraint_options, constraint_of, settings
from trimtab.cli.exits import Exit
from trimtab.cli.progress import Progress
from trimtab.cli.prompts import PromptRow, as_asked, prompts_of, read_prompts, use_template
from trimtab.cli.results import as_line, output, print_json
from trimtab.cli.template_options import add_ignored_columns, add_template_options, template_options
from trimtab.errors import ModelError, OptionError, PromptError

if TYPE_CHECKING:
    from trimtab.cli.engines import EngineChoice
    from trimtab.core import SamplingParams
    from trimtab.decoding.engine import GenerationEngine
    from trimtab.engines.maker import GuideSource
    from trimtab.storage.model_source import ModelSource


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
    add_constraint_options(parser)
    engines.add_engine_options(parser)


@dataclass(frozen=True, slots=True)
class _Job:
    """What the flags ask for, read once."""

    model: ModelSource
    engine: EngineChoice
    guides: Mapping[str, GuideSource]
    method: MethodChoice | None
    params: SamplingParams
    draft_quantize: str | None
    template: str
    template_options: Mapping[str, Any]
    batch_size: int
    skip_bad_lines: bool
    out: str | None
    as_json: bool
    as_text: bool
    """Whether answers are written as plain text."""


def run(args: argparse.Namespace) -> Exit:
    """Answer every prompt."""
    started = time.monotonic()
    _check_options(args)
    job = _job(args)
    rows = _read_rows(args, engines.guide_names(job.engine, args.model, [spec.name for spec in args.guides]))
    plan = None if args.out is None else answer_file.plan(args.out, resume=args.resume, overwrite=args.overwrite)
    seed = described.first_seed(args.seed, None if plan is None else plan.settings)
    settings = _settings(args, job, rows, seed)
    if plan is not None:
        settings["contents"] = _contents(job)
        plan.check(settings, rows)
    num_done = 0 if plan is None else plan.num_done
    todo = _requests(rows, seed)[num_done:]
    num_tokens = _answer_all(job, todo, plan, settings) if todo else 0
    if args.out is not None:
        _summarise(job, len(rows), num_done, num_tokens, time.monotonic() - started)
    num_failed = sum(request.failed for request in todo)
    if num_failed:
        raise ModelError(f"{num_failed} of {len(todo)} answers failed while they were made; their rows say why.")
    return Exit.DONE


def _job(args: argparse.Namespace) -> _Job:
    """The flags, checked as far as nothing large has to be read for it."""
    options.check_guide_names(args.guides)
    engine = engines.engine_choice(args)
    params = dataclasses.replace(
        options.sampling_params(args, weights={}, seed=None, trace=args.trace, num_alternatives=args.num_alternatives),
        constraint=constraint_of(args),
    )
    engine.maker.check_params(params)
    method = method_choice(args, engine)
    return _Job(
        model=options.model_source(args),
        engine=engine,
        guides=engines.GuideFlags.of(args).sources(params) if method is None else {},
        method=method,
        params=params,
        draft_quantize=args.draft_quantize,
        template=args.template,
        template_options=template_options(args),
        batch_size=args.batch_size,
        skip_bad_lines=args.skip_bad_lines,
        out=args.out,
        as_json=args.json,
        as_text=args.out is None and not args.json and args.prompt is not None and not args.trace,
    )


def _check_options(args: argparse.Namespace) -> None:
    if args.num_alternatives and not args.trace:
        raise OptionError("--num-alternatives is part of a trace; give --trace with it.")
    if (args.resume or args.overwrite) and args.out is None:
        raise OptionError("--resume and --overwrite are about the file of answers; give --out FILE with them.")
    if (args.skip_bad_lines or args.ignore_columns) and args.prompts is None:
        flag = "--skip-bad-lines" if args.skip_bad_lines else "--ignore-column"
        raise OptionError(f"{flag} is about a file of prompts; give --prompts FILE with it.")
    template_options(args)


def _read_rows(args: argparse.Namespace, guides: Sequence[str]) -> list[PromptRow]:
    if args.prompt is not None:
        return prompts_of(args.prompt)
    return read_prompts(args.prompts, guides, skip_bad_lines=args.skip_bad_lines, ignore_columns=args.ignore_columns)


def _settings(args: argparse.Namespace, job: _Job, rows: Sequence[PromptRow], seed: int) -> dict[str, Any]:
    """Everything that a line of answers depends on, what names stand for aside."""
    return {
        **described.sampling(args, job.engine, job.model, job.template_options, rows, seed),
        **settings(job.params.constraint),
        "trace": args.trace,
        "num_alternatives": args.num_alternatives,
        **({} if job.method is None else {"method": dataclasses.asdict(job.method)}),
    }


def _contents(job: _Job) -> dict[str, Any]:
    """The content of what the names stand for: the model, the guides' bases, and all that the method reads."""
    from trimtab.evaluation.comparison.fingerprints import option_contents

    return {
        **described.contents(job.model, job.guides),
        **({} if job.method is None else {"method": option_contents(job.method.name, job.method.options)}),
    }


def _requests(rows: Sequence[PromptRow], seed: int) -> list[Request]:
    return [Request(row, row.weights, seed + index if row.seed is None else row.seed) for index, row in enumerate(rows)]


def _answer_all(job: _Job, requests: list[Request], plan: answer_file.Plan | None, settings: Mapping[str, Any]) -> int:
    """Run the requests and write each answer as soon as it and those before it are there. The number of new tokens."""
    done = _mixed(job, requests) if job.method is None else _by_method(job, job.method, requests)
    if plan is None:
        return _write_all(job, done, len(requests), output())
    try:
        with plan.open(settings) as stream:
            return _write_all(job, done, len(requests), stream)
    except OSError as error:
        reason = f"{error.strerror}. Whole answers stay in the file; --resume continues it"
        raise OSError(error.errno, reason, job.out) from error


def _mixed(job: _Job, requests: list[Request]) -> Iterator[Request]:
    """Answers of the guides in one mix, in one batch that requests join and leave."""
    tokenizer, engine = engines.load(
        job.engine,
        job.model,
        job.guides,
        max_rows=job.batch_size,
        drafts=[job.params.draft],
        draft_quantize=job.draft_quantize,
    )
    try:
        running = _admit(job, engine, requests, chat=use_template(job.template, tokenizer))
    except BaseException:
        engine.close()
        raise
    return _and_then(in_order(engine, running, requests), engine.close)


def _by_method(job: _Job, method: MethodChoice, requests: list[Request]) -> Iterator[Request]:
    """Answers of a method, `batch_size` of them at a time."""
    check_unweighted(requests)
    options.say(f"loading {job.model.name}")
    maker = job.engine.open(job.model)
    chat = use_template(job.template, engines.tokenizer_of(maker, job.model.name))
    parts = [requests[start : start + job.batch_size] for start in range(0, len(requests), job.batch_size)]
    prompts = [
        [as_asked(request.row.prompt, chat=chat, options=job.template_options) for request in part] for part in parts
    ]
    return _and_then(answered(maker, method, job.params, zip(parts, prompts, strict=True)), maker.close)


def _and_then(found: Iterator[Request], close: Callable[[], None]) -> Iterator[Request]:
    """All of `found`, then `close`, whatever ends it."""
    try:
        yield from found
    finally:
        close()


def _write_all(job: _Job, found: Iterator[Request], total: int, stream: TextIO) -> int:
    num_tokens, num_done = 0, 0
    try:
        with Progress("answers", active=job.out is not None) as bar:
            for num_done, request in enumerate(found, start=1):
                num_tokens += len(request.token_ids)
                _write(stream, request, job)
                bar.move(num_done, total)
    except KeyboardInterrupt:
        if job.out is not None:
            options.say(f"interrupted: {num_done} of {total} answers are in {job.out}; --resume goes on")
        raise
    return num_tokens


def _admit(job: _Job, engine: GenerationEngine, requests: list[Request], *, chat: bool) -> dict[int, Request]:
    """Request id -> request, for every prompt, before the first token: a prompt that is too long fails here."""
    running = {}
    usual = {name: guide.weight for name, guide in engine.guides.items()}
    for request in requests:
        request.weights = {**usual, **request.weights}
        params = dataclasses.replace(job.params, weights=dict(request.weights), seed=request.seed)
        try:
            prompt = as_asked(request.row.prompt, chat=chat, options=job.template_options)
            running[engine.add(prompt, params)] = request
        except PromptError as error:
            if not job.skip_bad_lines:
                raise located(error, request.row) from error
            request.refuse(error)
    return running


def _write(stream: TextIO, request: Request, job: _Job) -> None:
    row = request.as_row(trace=job.params.trace)
    stream.write(f"{row['text']}\n" if job.as_text else as_line(row) + "\n")
    stream.flush()


def _summarise(job: _Job, num_answers: int, num_resumed: int, num_tokens: int, seconds: float) -> None:
    summary = {
        "out": job.out,
        "num_answers": num_answers,
        "num_resumed": num_resumed,
        "num_new_tokens": num_tokens,
        "seconds": round(seconds, 3),
    }
    if job.as_json:
        print_json(summary)
    options.say(f"{num_answers} answers in {job.out} ({num_resumed} of them from before), {num_tokens} new tokens")
