"""`trimtab demo`: steer a real model with the guide that ships, at several strengths, and write what came of it.

It is a comparison: the base beside one guide at several strengths, under one reward.

With --train it goes the whole road, which is `trimtab make` on prompts that ship: pairs of the base's own answers that
the scorer tells apart, a guide trained on them, its calibration, and a comparison with what needs no guide.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli.demo.recipe import SHIPPED_GUIDE, demo_recipe, notes_of, strengths_in_words
from trimtab.cli.exits import Exit
from trimtab.cli.make import command as make
from trimtab.cli.make.stages import shown
from trimtab.cli.options import list_of, number, say, seed_number, whole
from trimtab.cli.prompts import SHIPPED
from trimtab.cli.tenths import Tenths
from trimtab.errors import OptionError, OutputExistsError, require

if TYPE_CHECKING:
    from trimtab.evaluation.comparison.recipe import Recipe
    from trimtab.evaluation.comparison.run import Progress
    from trimtab.evaluation.report.results import Results
    from trimtab.models.hf import HFModel
    from trimtab.storage.scorers import Scorer

NUM_PROMPTS = 64
STRENGTHS = [-1.0, 0.0, 0.5, 1.0, 2.0]
NUM_TOKENS, NUM_TOKENS_TRAINED = 32, 40
NUM_TRAINING_PROMPTS = 150
"""How many of the 400 that ship, for what takes less than a quarter of an hour on two cores."""


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "demo", help="see it work: a real model at several strengths, and a report", description=__doc__
    )
    parser.add_argument("--train", action="store_true", help="make the guide first, from the base's own answers")
    parser.add_argument("--model", default="demo", metavar="NAME", help="a model as in generate (%(default)s)")
    parser.add_argument("--guide", metavar="PATH", help=f"steer with this guide ({SHIPPED_GUIDE})")
    parser.add_argument(
        "--scorer", default="sentiment", metavar="NAME", help="sentiment, or module:function of your own (%(default)s)"
    )
    parser.add_argument(
        "--strengths",
        type=list_of(number(-100, 100)),
        metavar="W,W,...",
        help="strengths of the guide as a shift; those above 0 also as a product (-1,0,0.5,1,2); with --train those "
        "that the calibration tries (0.5,1,2,4,8)",
    )
    parser.add_argument(
        "--prompts", type=whole(2, NUM_PROMPTS), default=NUM_PROMPTS, metavar="N", help="how many of the %(default)s"
    )
    parser.add_argument(
        "--max-new-tokens", type=whole(1), metavar="N", help=f"({NUM_TOKENS}; with --train {NUM_TOKENS_TRAINED})"
    )
    parser.add_argument("--batch-size", type=whole(1), default=64, metavar="N", help="answers at once (%(default)s)")
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="the seed of the run (%(default)s)")
    parser.add_argument("--out", metavar="DIR", help="where the report goes (a new directory under runs)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="with --train: go on with what was begun in --out")
    existing.add_argument("--overwrite", action="store_true", help="write into --out though it exists")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(commands=subparsers.choices)


def run(args: argparse.Namespace) -> Exit:
    """Check, load, steer, report; or make the guide first, and report that."""
    _check(args)
    out = _directory(args)
    if args.train:
        return _make(args, out)
    args.strengths = STRENGTHS if args.strengths is None else args.strengths
    args.max_new_tokens = args.max_new_tokens or NUM_TOKENS
    from trimtab.cli.demo.printing import print_results, print_summary, write_files
    from trimtab.storage.scorers import load_scorer

    scorer = load_scorer(args.scorer)
    guide = args.guide or SHIPPED_GUIDE
    recipe = demo_recipe(args, guide, scorer.name)
    once = " (the first time it is converted, which takes about half a minute)" if args.model == "demo" else ""
    say(f"loading {args.model}{once}")
    from trimtab.storage.loading import load_model

    model = load_model(args.model)
    results = _measure(args, recipe, guide, model, scorer, out)
    report = write_files(results, out)
    (print_summary if args.json else print_results)(results, report)
    return Exit.DONE


def _make(args: argparse.Namespace, out: Path) -> Exit:
    """`trimtab make` with prompts that ship: the whole road."""
    strengths = [] if args.strengths is None else ["--strengths", ",".join(f"{weight:g}" for weight in args.strengths)]
    command = [
        *(str(out / "guide"), "--model", args.model, "--reward", args.scorer, *strengths),
        *("--prompts", f"{SHIPPED}training", "--num-train", str(NUM_TRAINING_PROMPTS)),
        *("--test-prompts", f"{SHIPPED}demo", "--num-test", str(args.prompts)),
        *("--max-new-tokens", str(args.max_new_tokens or NUM_TOKENS_TRAINED), "--batch-size", str(args.batch_size)),
        *("--seed", str(args.seed)),
        *(flag for flag, given in (("--resume", args.resume), ("--overwrite", args.overwrite)) if given),
        *(["--json"] if args.json else []),
    ]
    say(shown(["make", *command]))
    parsed = args.commands["make"].parse_args(command)
    parsed.verbose = args.verbose
    parsed.given = args.given if args.out is not None else [*args.given, "--out", str(out)]
    return make.run(parsed)


def _check(args: argparse.Namespace) -> None:
    """Raise for flags that do not go together, before anything is loaded."""
    if args.train and args.guide is not None:
        raise OptionError("--train makes the guide that it steers with; leave --guide out, or --train.")
    if args.resume and not (args.train and args.out):
        raise OptionError("--resume continues a training; give --train and the --out DIR that it was begun with.")
    if args.train and args.strengths is not None and min(args.strengths) <= 0:
        raise OptionError(
            f"--strengths has {min(args.strengths):g}; with --train they are what the calibration tries, which looks "
            "for a peak above 0."
        )
    if args.overwrite and args.out is None:
        raise OptionError("--overwrite is about the directory of the report; give --out DIR with it.")
    require("matplotlib", extra="report", purpose="The report")
    if args.train:
        require("trl", extra="train", purpose="Training")


def _directory(args: argparse.Namespace) -> Path:
    """Where to write; by default a directory that is not there yet."""
    if args.out is None:
        name = "demo-train" if args.train else "demo"
        tries = (Path("runs") / (name if count == 1 else f"{name}-{count}") for count in range(1, sys.maxsize))
        return next(path for path in tries if not path.exists())
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; give a directory.")
    if out.is_dir() and any(out.iterdir()) and not (args.resume or args.overwrite):
        raise OutputExistsError(out, resume=args.train)
    return out


def _measure(
    args: argparse.Namespace, recipe: Recipe, guide: str, model: HFModel, scorer: Scorer, out: Path
) -> Results:
    """Run the comparison."""
    from importlib.util import find_spec

    from trimtab.engines.builtin import BuiltinMaker
    from trimtab.engines.maker import DEFAULT_ROWS
    from trimtab.evaluation.comparison.catalogued import about_run, known_methods
    from trimtab.evaluation.comparison.fingerprints import run_settings
    from trimtab.evaluation.comparison.run import RunFiles, open_run, run_comparison
    from trimtab.evaluation.prompt_sets import demo_prompts
    from trimtab.evaluation.report.results import read_results
    from trimtab.methods.catalogue import build_policy

    prompts, scorers = {"test": demo_prompts()[: args.prompts]}, {recipe.main_reward.name: scorer}
    # All are built before anything is written, so that a guide that does not fit leaves nothing behind.
    engines = BuiltinMaker(model, max_rows=max(DEFAULT_ROWS, recipe.batch_size))
    policies = {spec.name: build_policy(engines, spec.method, recipe.options_of(spec)) for spec in recipe.methods}
    if args.overwrite:
        RunFiles(out).remove()
    about = about_run(recipe, model.device, scorers, notes_of(args, guide))
    files = open_run(out, recipe, run_settings(recipe, prompts, model.describe()), about, resume=False)
    with Tenths(f"{args.prompts} answers of the base, then at {strengths_in_words(recipe)}") as bar:

        def show(progress: Progress) -> None:
            bar.move(progress.num_done, progress.num_answers)

        run_comparison(
            recipe, prompts, scorers, lambda spec: policies[spec.name], files, device=model.device, progress=show
        )
    return read_results(out, known_methods(), measure_coherence=find_spec("wordllama") is not None)
