"""`trimtab make`: from prompts and a reward, two sentences, a judge or pairs to a guide that one can show.

Pairs, a training, its accuracy on held-out prompts, a calibration on validation prompts, a comparison on test prompts,
and what came of all of it in the guide's card and README. Every stage is a command of its own, which is printed before
it runs, so that one can go on by hand; --resume goes on with what is not finished.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import calibrate, compare, options
from trimtab.cli.exits import Exit
from trimtab.cli.make.ending import Stage, finish
from trimtab.cli.make.recipe import write_recipe
from trimtab.cli.make.stages import (
    CALIBRATE,
    METHODS,
    PAIRS,
    REPORT,
    TRAIN,
    Places,
    Plan,
    flags_of,
    must_stay,
    reward_of,
    say_prompts,
    settings_of,
    shown,
    with_stage,
)
from trimtab.cli.make.stages import words as words_of
from trimtab.cli.pairs import command as pairs
from trimtab.cli.pairs.job import sentences_of
from trimtab.cli.prompts import read_prompts
from trimtab.cli.template_options import add_ignored_columns, add_template_options, template_options
from trimtab.cli.train import command as train
from trimtab.cli.train.interruption import interrupted
from trimtab.cli.train.rewards import REWARD_HELP, add_rewards, reward_argument
from trimtab.cli.train.run_options import naming_flags
from trimtab.errors import DataError, OptionError, OutputExistsError, TrimtabError, require

if TYPE_CHECKING:
    from trimtab.cli.calibrate import Calibrated
    from trimtab.core import Prompt
    from trimtab.making.splits import Splits

_WAYS = "--reward R, --towards SENTENCE with --away SENTENCE, --judge J, or --data PAIRS"
_NOT_YET = {
    "parm": "it is trained on pairs of several objectives: `trimtab train parm`",
    "reward": "it scores whole answers: `trimtab train reward`",
    "distill": "it is trained without pairs: `trimtab train distill`",
    "rl": "it is trained on prompts until it is stopped, and its own page says how: `trimtab train rl`",
}
"""What somebody may ask for as --method, and why it is refused."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "make", help="from prompts and a reward or two sentences to a guide with its report", description=__doc__
    )
    parser.add_argument("guide", metavar="GUIDE", help="the directory to write; GUIDE.work holds all else")
    _add_inputs(parser)
    _add_ways(parser)
    _add_stages(parser)
    group = parser.add_argument_group("output")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with the stages that are not finished")
    existing.add_argument("--overwrite", action="store_true", help="replace GUIDE and GUIDE.work")
    group.add_argument("--json", action="store_true", help="what came of it as JSON on standard output")
    parser.set_defaults(commands=subparsers.choices)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and prompts")
    group.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    options.add_threads_option(group)
    group.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")
    group.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help=".jsonl rows with a prompt, a .txt with one a line, - or builtin:training, which ships",
    )
    group.add_argument("--test-prompts", metavar="FILE", help="prompts of the report (a part of --prompts)")
    group.add_argument(
        "--num-validation", type=options.whole(1), metavar="N", help="prompts to calibrate on (a fifth, at most 48)"
    )
    group.add_argument(
        "--num-test",
        type=options.whole(1),
        metavar="N",
        help="prompts to report on (a fifth, at most 48; all of --test-prompts)",
    )
    group.add_argument("--num-train", type=options.whole(2), metavar="N", help="prompts to train on (the others)")
    add_template_options(parser)
    add_ignored_columns(parser)
    group.add_argument("--skip-bad-lines", action="store_true", help="go on without prompts that cannot be used")


def _add_ways(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is wanted")
    add_rewards(
        group,
        "--reward",
        f"{REWARD_HELP}; repeat for several",
        read=_reward,
    )
    group.add_argument("--towards", metavar="SENTENCE", help="answers as under this sentence; @FILE: its text")
    group.add_argument("--away", metavar="SENTENCE", help="and not as under this one")
    group.add_argument("--judge", metavar="NAME", help="openai:MODEL, reward:PATH or scorer:NAME, as in pairs")
    group.add_argument("--base-url", metavar="URL", help="of the judge's endpoint")
    group.add_argument("--lower-is-better", action="store_true", help="the judge is a cost model")
    group.add_argument(
        "--data", action="append", default=[], metavar="PAIRS", help="pairs that are there already; repeat for several"
    )
    add_rewards(
        group,
        "--gold",
        "a reward that the guide is not trained for and that decides the calibration; needed with --data, and "
        "with a judge that gives no numbers",
        read=_reward,
    )


def _add_stages(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stages")
    group.add_argument(
        "--method",
        default="arm",
        metavar="|".join(METHODS),
        help="what is trained: an autoregressive reward model, a low-rank head on the model's final state, a policy by "
        "DPO, or an accept-reject agent, which takes --reward and no pairs (%(default)s)",
    )
    group.add_argument(
        "--max-new-tokens", type=options.whole(1), default=40, metavar="N", help="of every answer (%(default)s)"
    )
    group.add_argument(
        "--strengths",
        type=options.list_of(options.number(0, 1000, open_low=True)),
        default=[],
        metavar="W,W,...",
        help="strengths that the calibration tries (0.5,1,2,4,8)",
    )
    group.add_argument(
        "--batch-size", type=options.whole(1), default=64, metavar="N", help="answers at a time (%(default)s)"
    )
    group.add_argument("--seed", type=options.seed_number, default=0, metavar="N", help="of all stages (%(default)s)")
    for stage, example in (("pairs", "--num-samples 8"), ("train", "--epochs 2"), ("calibrate", "--forms shift")):
        group.add_argument(
            f"--{stage}-flags",
            default="",
            metavar="FLAGS",
            help=f'more flags of that stage, in one text: ="{example}"; they go before what make gives',
        )


def _reward(text: str) -> str:
    """A reward as it was written, checked."""
    reward_argument(text)
    return text


def run(args: argparse.Namespace) -> Exit:
    """Do what is not done yet."""
    plan = _plan(args)
    sentences = {} if args.towards is None and args.away is None else sentences_of(args)
    _check_place(args, plan.places)
    parts = _parts(args)
    _begin(args, plan, parts)
    stages: list[Stage] = []
    calibrated: Calibrated | None = None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for what came of all of it
            for number, name in enumerate(plan.stages, 1):
                if name == REPORT:
                    write_recipe(plan, sentences)
                command = plan.command(name)
                options.say(f"\n[{number}/{len(plan.stages)}] {name}\n{shown(command)}")
                started = time.monotonic()
                code, found = _run(args, name, command)
                if code:
                    return code
                calibrated = found or calibrated
                if found is not None and found.decision.chosen is None:
                    options.say(f"no strength is named: {found.decision.why}")
                stages.append(Stage(name, shown(command), time.monotonic() - started))
    except KeyboardInterrupt:
        return interrupted(args.given)
    finish(plan, stages, calibrated, as_json=args.json)
    return Exit.DONE


def _run(args: argparse.Namespace, name: str, command: list[str]) -> tuple[Exit, Calibrated | None]:
    """A stage, by the parser and the function of its command."""
    parsed = args.commands[command[0]].parse_args(command[1:])
    parsed.command, parsed.given, parsed.verbose = command[0], args.given, args.verbose
    functions: Mapping[str, Callable[[argparse.Namespace], Exit]] = {
        PAIRS: pairs.run,
        TRAIN: train.run,
        REPORT: compare.run,
    }
    try:
        with naming_flags(parsed.flags):
            if name == CALIBRATE:
                return Exit.DONE, calibrate.calibrate(parsed)
            return functions[name](parsed), None
    except TrimtabError as error:
        vars(error).pop("naming", None)  # its settings have their names
        error.args = (with_stage(str(error), name, of_make=args.flags, of_stage=parsed.flags),)
        options.say(f"the stage {name} ended with an error; what is there stays, and --resume goes on from it")
        raise


def _plan(args: argparse.Namespace) -> Plan:
    """The flags, checked as far as nothing has to be read for it."""
    _check_method(args)
    _check_way(args)
    judge = () if args.judge is None else words_of(args, {"judge": "--judge"})
    if judge:
        judge += words_of(args, {"base_url": "--base-url", "lower_is_better": "--lower-is-better"})
    existing = ("--resume",) if args.resume else ("--overwrite",) if args.overwrite else ()
    plan = Plan(
        places=Places(Path(args.guide)),
        model=args.model,
        rewards=tuple(args.rewards),
        towards=args.towards,
        away=args.away,
        judge=judge,
        data=tuple(args.data),
        golds=tuple(args.golds),
        measured=_judge_reward(args),
        method=args.method,
        template=args.template,
        template_options=tuple(template_options(args).items()),
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        seed=args.seed,
        strengths=tuple(args.strengths),
        common=words_of(args, {"trust_remote_code": "--trust-remote-code", "threads": "--threads"}),
        pairs_flags=flags_of(args.pairs_flags, "--pairs-flags"),
        train_flags=flags_of(args.train_flags, "--train-flags"),
        calibrate_flags=flags_of(args.calibrate_flags, "--calibrate-flags"),
        existing=existing,
    )
    if plan.pairs_flags and not plan.makes_pairs:
        raise OptionError("--pairs-flags is of a stage that is not run: no pairs are made here. Leave it out.")
    _check_stages(args, plan)
    _check_sources(plan)
    return plan


def _check_sources(plan: Plan) -> None:
    """Raise what the last stages would, before the first one is done, for names, strengths and files that are wrong,
    and for packages that are not installed."""
    from trimtab.storage.scorers import check_scorer

    _check_packages(plan)
    for text in (*plan.rewards, *plan.golds, *plan.measured):
        check_scorer(str(reward_of(text).source))
    for name in plan.data:
        if name.endswith((".jsonl", ".json")) and not Path(name).is_file():
            raise OptionError(f"--data {name} is not there. Give a file of pairs, or a hub data set as owner/name.")


def _check_packages(plan: Plan) -> None:
    if plan.method == "agent":
        from trimtab.training.agent.train import require_extra
    else:
        from trimtab.training.run.run import require_extra
    require_extra()
    require("matplotlib", extra="compare", purpose="The report")


def _check_stages(args: argparse.Namespace, plan: Plan) -> None:
    """Raise OptionError, before anything is done, for flags that a stage's command does not take, and for strengths
    among which no peak could be."""
    from trimtab.making.sweep import in_order

    if plan.strengths:
        in_order(plan.strengths)
    for stage in plan.stages:
        command = plan.command(stage)
        try:
            with naming_flags({"strengths": "--strengths"}):
                read = args.commands[command[0]].parse_args(command[1:])
                if stage == CALIBRATE and read.strengths:
                    in_order(read.strengths)
        except OptionError as error:
            raise OptionError(f"--{stage}-flags does not fit `trimtab {command[0]}`: {error}") from None


def _check_method(args: argparse.Namespace) -> None:
    if args.method in METHODS:
        if args.method == "agent" and not args.rewards:
            raise OptionError("--method agent is trained on prompts and a reward; give --reward R.")
        return
    why = _NOT_YET.get(args.method)
    reason = f" cannot be made here: {why}" if why else " is not known"
    raise OptionError(f"--method {args.method}{reason}. Accepted: {', '.join(METHODS)}.")


def _check_way(args: argparse.Namespace) -> None:
    """Raise OptionError unless one thing says what is wanted, and something can measure what came of it."""
    ways = {
        "--reward": args.rewards,
        "--towards": args.towards or args.away,
        "--judge": args.judge,
        "--data": args.data,
    }
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        both = f"{' and '.join(given)} both say what is wanted" if given else "Nothing says what is wanted"
        raise OptionError(f"{both}; give one of {_WAYS}.")
    if args.judge is None and (args.base_url is not None or args.lower_is_better):
        flag = "--lower-is-better" if args.lower_is_better else "--base-url"
        raise OptionError(f"{flag} is of a judge; give --judge NAME with it.")
    if not args.golds and not _judge_reward(args) and (args.data or args.judge):
        judge = f"the judge {args.judge}, which compares two answers, gives"
        what = "pairs that are given give" if args.data else judge
        raise OptionError(
            f"Nothing can measure the guide: {what} an answer no number. Give --gold R, a reward to calibrate and "
            "report by."
        )
    sentences_of(args)


def _judge_reward(args: argparse.Namespace) -> tuple[str, ...]:
    """The reward that a judge is which scores answers one by one; empty for another judge, or none."""
    if args.judge is None:
        return ()
    from trimtab.evaluation.judging.judges import COSTS, split_judge

    kind, name = split_judge(args.judge)
    if kind == "openai":
        return ()
    return (f"{name}:-1" if args.lower_is_better or name in COSTS else name,)


def _check_place(args: argparse.Namespace, places: Places) -> None:
    for path in (places.guide, places.work):
        if path.exists() and not path.is_dir():
            raise OptionError(f"{path} is a file; a guide is a directory. Give another path.")
        if path.exists() and not (args.resume or args.overwrite):
            raise OutputExistsError(path)


def _parts(args: argparse.Namespace) -> Splits:
    """The prompts in three parts."""
    from trimtab.making.splits import split

    def read(path: str) -> list[Prompt]:
        rows = read_prompts(path, (), skip_bad_lines=args.skip_bad_lines, ignore_columns=args.ignore_columns)
        return [row.prompt for row in rows]

    test = None if args.test_prompts is None else read(args.test_prompts)
    return split(
        read(args.prompts),
        test=test,
        num_validation=args.num_validation,
        num_test=args.num_test,
        num_train=args.num_train,
        seed=args.seed,
    )


def _begin(args: argparse.Namespace, plan: Plan, parts: Splits) -> None:
    """Write the prompts of each part, once it is known that a make that is continued is this one."""
    from trimtab.storage.files import text_digest, write_text
    from trimtab.storage.same_run import check_same

    texts = parts.texts()
    settings = settings_of(plan, {name: text_digest(text) for name, text in texts.items()})
    if args.resume and plan.places.settings.exists():
        try:
            before = json.loads(plan.places.settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"not readable ({error}). Give --overwrite.", path=plan.places.settings) from None
        check_same(
            must_stay(plan, before),
            must_stay(plan, settings),
            problem=f"Cannot go on with {plan.places.guide}",
            way_out="Give what it was begun with, --overwrite, or another directory.",
        )
    plan.places.work.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(plan.places.prompts(name), text)
    write_text(plan.places.settings, json.dumps(settings, indent=1) + "\n")
    made = (
        "to train on" if plan.method == "agent" else "to make pairs from" if plan.makes_pairs else "that are not used"
    )
    say_prompts(parts, made)
