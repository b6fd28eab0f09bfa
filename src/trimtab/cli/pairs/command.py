"""`trimtab pairs`: preference pairs out of anything that can tell two answers to a prompt apart.

The model answers each prompt several times. A reward pairs good answers with bad ones (--reward), or two sentences that
the answers were sampled under do (--towards, --away), or a judge that compares two answers in both orders (--judge).
What took time is kept beside --out: a run that was cut goes on with --resume where it was, and so does one with another
reward, judge or margin.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options
from trimtab.cli.answering import described
from trimtab.cli.exits import Exit
from trimtab.cli.judge import load_judge
from trimtab.cli.pairs.job import Job, add_options, job_of
from trimtab.cli.pairs.report import report, write
from trimtab.cli.progress import Progress
from trimtab.cli.prompts import PromptRow, as_asked, read_prompts, use_template
from trimtab.cli.tenths import Tenths
from trimtab.cli.train.interruption import interrupted
from trimtab.errors import PromptError

if TYPE_CHECKING:
    from trimtab.making.files import PairFiles, Plan
    from trimtab.making.result import PairSet
    from trimtab.making.run import Way
    from trimtab.making.sampling import Ask, Samples


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "pairs", help="preference pairs from a reward, from two sentences or from a judge", description=__doc__
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Sample, tell apart, choose, write."""
    job = job_of(args)
    rows = read_prompts(
        args.prompts,
        engines.guide_names(job.engine, args.model, [spec.name for spec in args.guides]),
        skip_bad_lines=args.skip_bad_lines,
        ignore_columns=args.ignore_columns,
    )
    from trimtab.making.files import plan

    place = plan(args.out, resume=args.resume, overwrite=args.overwrite)
    seed = described.first_seed(args.seed, place.before)
    unlike = _unlike(rows)
    settings = _settings(args, job, unlike, seed)
    place.check(settings)
    way = _way(job, place.files)
    try:
        _sample(job, place, settings, unlike, seed)
        found = _choose(job, place.files, way, seed)
        write(job, place.files, way, found, settings, num_repeated=len(rows) - len(unlike))
    except KeyboardInterrupt:
        return interrupted(args.given)
    except OSError as error:
        reason = f"{error.strerror}. What was made until then stays in {place.files.work}; --resume continues it"
        raise OSError(error.errno, reason, error.filename or args.out) from error
    report(place.files, found, as_json=args.json)
    return Exit.DONE


def _unlike(rows: Sequence[PromptRow]) -> list[PromptRow]:
    """The rows whose prompt has not been there before."""
    from trimtab.making.choosing import prompt_key

    found: dict[str, PromptRow] = {}
    for row in rows:
        found.setdefault(prompt_key(row.prompt), row)
    return list(found.values())


def _settings(args: argparse.Namespace, job: Job, rows: Sequence[PromptRow], seed: int) -> dict[str, Any]:
    """Everything that an answer depends on."""
    return {
        **described.sampling(args, job.engine, job.model, job.template_options, rows, seed),
        **dataclasses.asdict(job.samples),
        "sentences": dict(job.sentences),
        "contents": described.contents(job.model, job.guides),
    }


def _way(job: Job, files: PairFiles) -> Way:
    """What tells the answers apart, loaded: better now than when all answers are there."""
    from trimtab.making.run import ByJudge, ByReward, BySentence

    if job.sentences:
        return BySentence()
    if job.judge is not None:
        judge = load_judge(job.judge)
        return ByJudge(judge, files, {"judge": judge.name, **judge.settings})
    from trimtab.evaluation.judging.judges import COSTS
    from trimtab.making.rating import Rewarder
    from trimtab.storage.scorers import load_scorer
    from trimtab.training.run.rating import reward_contents, rewards_card

    for reward in job.rewards:
        if reward.source in COSTS and reward.multiplier > 0:
            options.say(f"{reward.source} is a cost, and more of it is chosen; for less: --reward {reward.source}:-1")
    rewarder = Rewarder([(reward, load_scorer(str(reward.source))) for reward in job.rewards])
    about = {"rewards": rewards_card(job.rewards), "contents": reward_contents(job.rewards)}
    return ByReward(rewarder, files, about)


def _sample(job: Job, place: Plan, settings: Mapping[str, Any], rows: Sequence[PromptRow], seed: int) -> None:
    """The answers that are not there yet."""
    from trimtab.making.sampling import Sampler, check_prompts, read_samples, write_samples
    from trimtab.making.sentences import takes_system

    files = place.files
    num_done = 0 if place.before is None else len(read_samples(files.samples))
    if num_done >= len(rows):
        options.say(f"{num_done} prompts are answered, in {files.samples}")
        return
    tokenizer, engine = engines.load(
        job.engine,
        job.model,
        job.guides,
        max_rows=job.batch_size,
        drafts=[job.params.draft],
        draft_quantize=job.draft_quantize,
    )
    try:
        asks = _asks(job, rows, chat=use_template(job.template, tokenizer))
        check_prompts(asks)
        params = dataclasses.replace(job.params, seed=seed)
        has_system = bool(job.sentences) and tokenizer.has_chat_template and takes_system(tokenizer)
        if job.sentences and not has_system and not isinstance(asks[0].prompt, str):
            options.say("the chat template has no system message, so a sentence begins the user's")
        sampler = Sampler(engine, params, job.samples, job.sentences, has_system, job.skip_bad_lines)
        answered = sampler.answer(asks, num_done)
        if place.before is None:
            files.begin(settings)
        rate = _Rate()
        with Tenths(f"{job.samples.num_samples} answers to each of {len(rows)} prompts") as bar:
            bar.move(num_done, len(rows))

            def count(samples: Samples) -> None:
                rate.count(samples)
                bar.move(num_done + rate.num_prompts, len(rows))

            write_samples(files.samples, answered, on_prompt=count)
        options.say(rate.line())
    finally:
        engine.close()


def _asks(job: Job, rows: Sequence[PromptRow], *, chat: bool) -> list[Ask]:
    from trimtab.making.sampling import Ask

    asks = []
    for row in rows:
        ask = Ask(row.prompt, row.weights, row.seed, row.path, row.line)
        try:
            prompt = as_asked(row.prompt, chat=chat, options=job.template_options)
        except PromptError as error:
            raise ask.located(error) from error
        asks.append(dataclasses.replace(ask, prompt=prompt))
    return asks


class _Rate:
    """How many answers and tokens there are, and how fast they came."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.num_prompts = self._num_answers = self._num_tokens = 0

    def count(self, samples: Samples) -> None:
        self.num_prompts += 1
        self._num_answers += len(samples.texts)
        self._num_tokens += samples.num_tokens

    def line(self) -> str:
        from trimtab.training.run.pace import duration

        seconds = max(time.monotonic() - self._started, 1e-9)
        return (
            f"{self._num_answers:,} answers to {self.num_prompts:,} prompts in {duration(seconds)}: "
            f"{self._num_answers / seconds:.1f} answers and {self._num_tokens / seconds:.0f} tokens a second"
        )


def _choose(job: Job, files: PairFiles, way: Way, seed: int) -> PairSet:
    from trimtab.making.run import ByJudge, ByReward, pairs_from
    from trimtab.making.sampling import read_samples

    samples = read_samples(files.samples)
    if not isinstance(way, ByJudge | ByReward):
        return pairs_from(samples, way, job.choice, seed=seed)
    with Progress("verdicts" if isinstance(way, ByJudge) else "prompts rated") as bar:
        return pairs_from(samples, dataclasses.replace(way, progress=bar.move), job.choice, seed=seed)
