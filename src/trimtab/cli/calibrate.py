"""`trimtab calibrate`: the form and the strength that a guide is best run at, on validation prompts.

The guide answers at every form and strength, and the base once; the strength at which the reward peaks is named with
its interval (a paired bootstrap over prompts), or it is said why none can be. With --gold another reward than the one
that the guide was trained for decides, which shows where the training reward is over-optimised. --write puts it into
the guide's card; generate, chat, explain and serve then run the guide so where nothing else is said.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import compare, engines, flags, options
from trimtab.cli.exits import Exit
from trimtab.cli.pairs.job import sentences_of
from trimtab.cli.prompts import SHIPPED
from trimtab.cli.results import print_json
from trimtab.cli.template_options import add_ignored_columns, add_template_options, template_options
from trimtab.cli.train.interruption import interrupted
from trimtab.cli.train.rewards import REWARD_HELP, add_rewards
from trimtab.errors import InputError, OptionError
from trimtab.making.settings import AWAY, TOWARDS
from trimtab.mixing.forms import FORMS
from trimtab.models.quantize import KINDS
from trimtab.params import SamplingParams

if TYPE_CHECKING:
    from trimtab.evaluation.comparison.summary import Estimate
    from trimtab.evaluation.report.results import Results
    from trimtab.making.calibration import Decision
    from trimtab.making.sweep import Sweep
    from trimtab.storage.calibrated import Calibration
    from trimtab.training.run.rewards import AgentReward

SENTENCES = "sentences"
"""What the reward is called that two sentences are."""
_NOT_HERE = ("weights", "seed", "trace", "num_alternatives", "forced", "draft", "draft_tokens", "constraint")
"""Fields of `SamplingParams` that a comparison decides itself."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "calibrate", help="the form and strength that a guide is best run at", description=__doc__
    )
    parser.add_argument(
        "guide", metavar="GUIDE", help="a directory, a hub id, builtin:NAME, or prompt:SENTENCE (without --write)"
    )
    _add_inputs(parser)
    _add_sweep(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--write", action="store_true", help="put the form and the strength into the guide's card")
    group.add_argument("--out", metavar="DIR", help="the directory of the comparison (GUIDE.work/calibration)")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="make the answers that --out does not have yet")
    existing.add_argument("--overwrite", action="store_true", help="begin --out anew")
    group.add_argument("--json", action="store_true", help="the decision as JSON on standard output")
    defaults = SamplingParams(max_new_tokens=64)
    flags.add_fields(parser.add_argument_group("sampling"), defaults, but=_NOT_HERE)
    engines.add_engine_options(parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model, prompts and rewards")
    group.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    group.add_argument(
        "--guide-base", metavar="MODEL", help="the model that the guide was trained on, where that is another"
    )
    group.add_argument("--dtype", default="auto", help="auto (float32 on a CPU), float32, bfloat16 or float16")
    group.add_argument("--quantize", choices=KINDS, help="what weights are held in on a CPU")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    options.add_threads_option(group)
    group.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")
    group.add_argument(
        "--prompts", required=True, metavar="FILE", help="validation prompts: .jsonl, .txt, or builtin:demo"
    )
    add_template_options(parser)
    add_ignored_columns(parser)
    add_rewards(
        group,
        "--reward",
        f"what the guide was trained for: {REWARD_HELP}; repeat for a sum",
    )
    group.add_argument(
        "--towards", metavar="SENTENCE", help="the reward is how much likelier an answer is under this; @FILE: its text"
    )
    group.add_argument("--away", metavar="SENTENCE", help="than under this")
    add_rewards(
        group,
        "--gold",
        "what decides in its stead: a reward that the guide was not trained for; repeat for a sum",
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is tried")
    group.add_argument(
        "--strengths",
        type=options.list_of(options.number(0, 1000, open_low=True)),
        default=[],
        metavar="W,W,...",
        help="strengths, above 0 (0.5,1,2,4,8; thresholds of an agent 0.3,0.5,0.7,0.8,0.9)",
    )
    group.add_argument(
        "--forms", type=_forms, default=[], metavar="FORM,...", help=f"{' or '.join(FORMS)} (each that the guide has)"
    )
    group.add_argument(
        "--seeds",
        type=options.list_of(options.seed_number),
        default=[0],
        metavar="N,N,...",
        help="an answer to each prompt under each seed (0)",
    )
    group.add_argument(
        "--batch-size", type=options.whole(1), default=64, metavar="N", help="answers at a time (%(default)s)"
    )


def _forms(text: str) -> list[str]:
    found = text.split(",")
    for form in found:
        if form not in FORMS:
            raise argparse.ArgumentTypeError(f"{form!r} is not a form; give {' or '.join(FORMS)}")
    return found


def run(args: argparse.Namespace) -> Exit:
    """Measure, decide, write."""
    try:
        decided = calibrate(args)
    except KeyboardInterrupt:
        return interrupted(args.given)
    if decided.decision.chosen is None:
        from trimtab.making.calibration import too_few

        other = "Other" if too_few(decided.decision.num_prompts) else "More strengths go on with --resume; other"
        raise InputError(
            f"No strength is named. {decided.decision.why} {other} prompts or rewards want --overwrite. "
            f"Report: {decided.report}"
        )
    return Exit.DONE


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration came to."""

    decision: Decision
    calibration: Calibration | None
    report: Path


def calibrate(args: argparse.Namespace) -> Calibrated:
    """All that the command does but for its exit code: where no strength is named, nothing is written into the card.

    Raises what a comparison raises, and OptionError for what can be said before.
    """
    engine = engines.engine_choice(args)
    sweep = _sweep(args)
    _check_write(args)
    from trimtab.evaluation.comparison.catalogued import known_methods
    from trimtab.evaluation.comparison.recipe_reader import parse_recipe
    from trimtab.evaluation.report.files import write_report
    from trimtab.evaluation.report.results import read_results
    from trimtab.making.calibration import decide, too_few
    from trimtab.making.sweep import calibration_of, points_of
    from trimtab.methods.catalogue import check_method

    recipe = parse_recipe(sweep.recipe(), Path.cwd(), known_methods(), check_method, name="The calibration")
    out = _out(args)
    if why := too_few(compare.count_prompts(recipe)):
        options.say(f"no strength will be named: {why}")
    compare.make_answers(recipe, "The calibration", engine, out, compare.Placement.of(args, share_prompts=True))
    options.say("measuring")
    results = read_results(out, known_methods(), measure_coherence=False)
    decision = decide(*points_of(results, sweep))
    today = date.today().isoformat()
    calibration = calibration_of(decision, sweep, max_new_tokens=args.max_new_tokens, date=today)
    report = write_report(out, results)
    if args.write and calibration is not None:
        _write(Path(args.guide), calibration)
    _show(args, decision, calibration, results, report)
    return Calibrated(decision, calibration, report)


def _sweep(args: argparse.Namespace) -> Sweep:
    """What the flags ask for. Raises OptionError where nothing says what is better, or two things do."""
    from trimtab.making.sweep import Sweep
    from trimtab.storage.directories import locate_guide

    params = flags.read_fields(SamplingParams, args, but=_NOT_HERE)
    usual = SamplingParams()
    decoding = {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in dataclasses.fields(SamplingParams)
        if field.name not in _NOT_HERE and (value := getattr(params, field.name)) != getattr(usual, field.name)
    }
    settings: dict[str, object] = {
        "dtype": args.dtype,
        **({"quantize": args.quantize} if args.quantize else {}),
        "template": args.template,
        **({"template_options": found} if (found := template_options(args)) else {}),
        "decoding": {"max_new_tokens": args.max_new_tokens, **decoding},
        "seeds": args.seeds,
        "batch_size": args.batch_size,
    }
    return Sweep(
        guide=args.guide,
        kind=locate_guide(args.guide).card.kind,
        model=args.model,
        prompts=prompt_entry(args.prompts, args.ignore_columns),
        rewards=training_rewards(args),
        golds=args.golds,
        strengths=args.strengths,
        forms=args.forms,
        guide_base=args.guide_base,
        settings=settings,
    )


def prompt_entry(name: str, ignore_columns: list[str]) -> dict[str, object]:
    """A file of prompts, or a list that ships, as a recipe says it."""
    if name == "-":
        raise OptionError("--prompts - is standard input, which --resume could not read again; give a file.")
    ignored = {"ignore_columns": list(ignore_columns)} if ignore_columns else {}
    named = {"builtin": name.removeprefix(SHIPPED)} if name.startswith(SHIPPED) else {"path": name}
    return {**named, **ignored}


def training_rewards(args: argparse.Namespace) -> list[AgentReward]:
    """The rewards of --reward, or the one that --towards and --away are; none where --gold alone is given.

    Raises OptionError where both are given, or nothing at all.
    """
    sentences = sentences_of(args)
    if args.rewards and sentences:
        raise OptionError("--reward and --towards both say what is better; give one of them.")
    if sentences:
        return [sentence_reward(sentences[TOWARDS], sentences[AWAY])]
    if not args.rewards and not args.golds:
        raise OptionError(
            "Nothing says which answers are better; give --reward R, or --towards SENTENCE with --away SENTENCE."
        )
    return list(args.rewards)


def sentence_reward(towards: str, away: str) -> AgentReward:
    """The reward that two sentences are (`evaluation.sentence_reward`)."""
    from trimtab.guides.sentences import Sentences
    from trimtab.storage.sentences import sentence_name
    from trimtab.training.run.rewards import AgentReward

    return AgentReward(SENTENCES, sentence_name(Sentences(towards, away)))


def _check_write(args: argparse.Namespace) -> None:
    if args.write and not Path(args.guide).is_dir():
        raise OptionError(
            f"--write puts the strength into the guide's card, and {args.guide} is not a directory here. Leave --write "
            "out, or give the directory of a guide."
        )


def _out(args: argparse.Namespace) -> Path:
    if args.out is not None:
        return Path(args.out)
    if Path(args.guide).is_dir():
        guide = Path(args.guide)
        return guide.with_name(f"{guide.name}.work") / "calibration"
    raise OptionError("--out is missing; give the directory of the comparison.")


def _write(directory: Path, calibration: Calibration) -> None:
    """Put the calibration into the card, and what a reader should know of it into the README."""
    from trimtab.making.readme import STRENGTH, add_section, strength_lines
    from trimtab.storage.cards import change_card, read_card

    change_card(directory, read_card(directory).with_calibration(calibration))
    add_section(directory, STRENGTH, strength_lines(calibration))


def _show(
    args: argparse.Namespace, decision: Decision, calibration: Calibration | None, results: Results, report: Path
) -> None:
    if args.json:
        print_json(_as_json(args, decision, calibration, report))
        return
    _print_table(results)
    if calibration is not None:
        form = f"as a {calibration.form}, " if calibration.form else ""
        where = " (in the card)" if args.write else " (--write puts it into the card)"
        print(
            f"Run {args.guide} {form}at {calibration.strength:g}: the interval of the peak is "
            f"{calibration.strength_low:g} to {calibration.strength_high:g}{where}. {decision.why}"
        )
    print(f"Report: {report}")


def _print_table(results: Results) -> None:
    """What was measured at each strength, on standard output."""
    from rich.console import Console
    from rich.table import Table

    from trimtab.evaluation.comparison.recipe import strength_text
    from trimtab.evaluation.report.wording import in_brackets

    def shown(estimate: Estimate | None, digits: int) -> str:
        return "unknown" if estimate is None else in_brackets(estimate, digits=digits)

    table = Table(box=None, pad_edge=False)
    names = [reward.name for reward in results.recipe.rewards]
    for heading in ("strength", *(f"{name} (95 % interval)" for name in names), "KL, nats an answer"):
        table.add_column(heading, justify="right")
    for one in results.measured:
        is_base = one.cell.spec == results.recipe.baseline
        label = one.label if is_base else f"{one.label} {strength_text(one.strength)}".removeprefix("strength ")
        table.add_row(label, *(shown(one.rewards[name], 3) for name in names), shown(one.kl, 1))
    Console().print(table)


def _as_json(
    args: argparse.Namespace, decision: Decision, calibration: Calibration | None, report: Path
) -> dict[str, object]:
    return {
        "guide": args.guide,
        "calibration": None if calibration is None else calibration.as_json(),
        "written": bool(args.write and calibration is not None),
        "why": decision.why,
        "peaks": [dataclasses.asdict(peak) for peak in decision.peaks],
        "num_prompts": decision.num_prompts,
        "report": str(report),
    }
