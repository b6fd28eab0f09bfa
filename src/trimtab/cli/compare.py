"""`trimtab compare`: methods × strengths × seeds × prompts of a recipe on one frozen model, and one report.

A run that is cut, by a crash or a kill, goes on with --resume and makes exactly the missing answers. Answers of
different settings are never mixed; methods, strengths and seeds may be added to a run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.cli import engines, options
from trimtab.cli.exits import Exit
from trimtab.cli.prompts import as_asked, read_prompts, use_template
from trimtab.cli.results import print_json
from trimtab.cli.train.interruption import interrupted
from trimtab.errors import DataError, OptionError, OutputExistsError, PromptError, require

if TYPE_CHECKING:
    from trimtab.cli.engines import EngineChoice
    from trimtab.cli.progress import Progress
    from trimtab.core import Prompt
    from trimtab.engines.maker import EngineMaker
    from trimtab.evaluation.comparison.recipe import PromptSource, Recipe
    from trimtab.evaluation.comparison.run import Progress as Made
    from trimtab.evaluation.report.results import Results
    from trimtab.storage.model_source import ModelSource
    from trimtab.storage.scorers import Scorer


def register(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its flags."""
    parser = subparsers.add_parser(
        "compare", help="compare methods on the same prompts, in one report", description=__doc__
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a recipe (.yaml, docs/evaluation/compare.md); with --report-only the directory of a run",
    )
    parser.add_argument("--out", metavar="DIR", help="the directory of the run: answers, costs and report")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="make the answers that --out does not have yet")
    existing.add_argument("--overwrite", action="store_true", help="begin --out anew")
    existing.add_argument(
        "--report-only", action="store_true", help="decode nothing: draw the report of the run RECIPE again"
    )
    parser.add_argument(
        "--share-prompts",
        action="store_true",
        help="let all strengths and seeds of a method answer a prompt in one batch, which reads it once; the report "
        "then has no times",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (a GPU where there is one)")
    options.add_threads_option(parser)
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let the model run its own code; off unless given"
    )
    parser.add_argument("--json", action="store_true", help="the results as JSON on standard output")
    engines.add_engine_options(parser)


def run(args: argparse.Namespace) -> Exit:
    """Make what is missing, then draw the report."""
    engine = engines.engine_choice(args)
    if args.report_only:
        if args.out is not None:
            raise OptionError("--report-only draws into the run itself; leave --out out.")
        if Path(args.recipe).is_file():
            raise OptionError(
                f"--report-only draws the report of a run, and {args.recipe} is a file. Give the directory of a run."
            )
        return _report(args, Path(args.recipe))
    if args.out is None:
        raise OptionError("--out is missing; give the directory of the run.")
    from trimtab.evaluation.comparison.catalogued import known_methods
    from trimtab.evaluation.comparison.recipe_reader import read_recipe
    from trimtab.methods.catalogue import check_method

    recipe = read_recipe(Path(args.recipe), known_methods(), check_method)
    try:
        make_answers(recipe, args.recipe, engine, Path(args.out), Placement.of(args, share_prompts=args.share_prompts))
        return _report(args, Path(args.out))
    except KeyboardInterrupt:
        return interrupted(args.given)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a comparison's base runs, and what becomes of what is there already."""

    device: str | None
    trust_remote_code: bool
    resume: bool
    overwrite: bool
    share_prompts: bool

    @classmethod
    def of(cls, args: argparse.Namespace, *, share_prompts: bool) -> Placement:
        return cls(args.device, args.trust_remote_code, args.resume, args.overwrite, share_prompts)


def make_answers(recipe: Recipe, name: str, engine: EngineChoice, out: Path, where: Placement) -> None:
    """Make the answers of a recipe, called `name` in errors, that `out` does not have yet; the base is loaded for it.

    Raises OptionError, DataError or OutputExistsError for what can be said before anything is loaded.
    """
    from trimtab.evaluation.comparison.run import RunFiles

    _check(recipe, name, engine)
    _check_out(out, resume=where.resume, overwrite=where.overwrite)
    prompts = _read_all(recipe)
    scorers = _load_scorers(recipe)
    options.say(f"loading {recipe.model}")
    base = engine.open(_source(recipe, where), min_rows=recipe.batch_size)
    try:
        scorers |= _sentence_scorers(recipe, base)
        chat = use_template(recipe.template, engines.tokenizer_of(base, recipe.model))
        template_options = recipe.template_options
        ready = {
            split: [as_asked(item, chat=chat, options=template_options) for item in items]
            for split, items in prompts.items()
        }
        _check_reading(recipe, base, ready)
        if where.overwrite:
            RunFiles(out).remove()
        _answer_all(out, recipe, base, ready, scorers, where)
    finally:
        base.close()


def _check(recipe: Recipe, name: str, engine: EngineChoice) -> None:
    """Raise for a recipe that names what is not there, or that the engine cannot run."""
    from trimtab.engines.maker import QUANTIZE
    from trimtab.evaluation.comparison.recipe_reader import path_problems, role_problems
    from trimtab.methods.catalogue import check_engine

    if problems := path_problems(recipe):
        raise OptionError(f"{name} names what is not there:\n" + "\n".join(problems))
    check_engine((spec.method for spec in recipe.methods), engine.maker)
    if problems := _source_problems(recipe):
        raise OptionError(f"{name} has methods that cannot run:\n" + "\n".join(problems))
    if problems := _weight_problems(recipe):
        raise OptionError(f"{name}:\n" + "\n".join(problems))
    if problems := role_problems(recipe):
        raise OptionError(f"{name} says of a reward what is not so:\n" + "\n".join(problems))
    if recipe.quantize is not None:
        engine.maker.check_features([QUANTIZE], what=f"quantize: {recipe.quantize}")
    engine.maker.check_params(recipe.params)
    _check_packages(recipe)


def _source(recipe: Recipe, where: Placement) -> ModelSource:
    from trimtab.evaluation.comparison.recipe import resolved
    from trimtab.storage.gguf_files import TRANSFORMERS
    from trimtab.storage.model_source import ModelSource

    return ModelSource(
        str(resolved(recipe.model, recipe.directory)),
        recipe.dtype,
        where.device,
        trust_remote_code=where.trust_remote_code,
        quantize=recipe.quantize,
        backend=TRANSFORMERS,  # figures do not depend on what is installed
    )


def _source_problems(recipe: Recipe) -> list[str]:
    """What is wrong with what the methods name, and with strengths that do not go with it, with their places."""
    from trimtab.methods.checking import source_problem

    found = [source_problem(spec.method, recipe.options_of(spec), spec.strengths) for spec in recipe.methods]
    return [f"{_place(recipe, index)}: {problem}" for index, problem in enumerate(found) if problem]


def _place(recipe: Recipe, index: int) -> str:
    return f"methods[{index}] ({recipe.methods[index].method})"


def _check_reading(recipe: Recipe, base: EngineMaker, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Raise PromptError for a prompt that does not fit the context with what a method has the base read before it."""
    from trimtab.engines.maker import IN_PROCESS
    from trimtab.methods.checking import reading_problem
    from trimtab.methods.table import METHODS

    if not base.runs([IN_PROCESS]):  # an engine would be started for it
        return
    plain = dict.fromkeys(prompts, 0)  # how many of a split were read with nothing before them
    for index, spec in enumerate(recipe.methods):
        for split, items in prompts.items():
            options_of, read = recipe.options_of(spec), items[: spec.max_prompts]
            if not METHODS[spec.method].readers:
                if len(read) <= plain[split]:
                    continue
                plain[split] = len(read)
            found = reading_problem(base, spec.method, options_of, read, recipe.params)
            if found is not None:
                number, error = found
                place = "" if number is None else f", prompt {number} of {split}"
                raise PromptError(f"{_place(recipe, index)}{place}: {error}") from error


def _weight_problems(recipe: Recipe) -> list[str]:
    """Strengths that no request of the recipe could run at, with their places."""
    from trimtab.methods.checking import check_weights

    params = recipe.params
    return [
        f"methods[{index}].strengths: {problem}"
        for index, spec in enumerate(recipe.methods)
        for problem in check_weights(
            spec.method,
            recipe.options_of(spec),
            spec.strengths,
            temperature=params.temperature,
            plausibility=params.plausibility,
        )
    ]


def _answer_all(
    out: Path,
    recipe: Recipe,
    base: EngineMaker,
    prompts: Mapping[str, Sequence[Prompt]],
    scorers: Mapping[str, Scorer],
    where: Placement,
) -> None:
    from trimtab.cli.progress import Progress
    from trimtab.evaluation.comparison.catalogued import about_run
    from trimtab.evaluation.comparison.fingerprints import run_settings
    from trimtab.evaluation.comparison.run import open_run, run_comparison
    from trimtab.methods.catalogue import build_policy

    settings = {**run_settings(recipe, prompts, base.describe()), **base.settings}
    files = open_run(out, recipe, settings, about_run(recipe, base.device, scorers), resume=where.resume)
    with Progress("answers") as bar:
        num_made = run_comparison(
            recipe,
            prompts,
            scorers,
            lambda spec: build_policy(base, spec.method, recipe.options_of(spec)),
            files,
            device=base.device,
            share_prompts=where.share_prompts,
            progress=partial(_show, bar),
        )
    options.say(f"{num_made} answers made, in {files.answers}")


def _show(bar: Progress, state: Made) -> None:
    """One answer more, or another method."""
    bar.move(state.num_done, state.num_answers)
    if state.message:
        bar.say(f"{state.message} ({state.num_done} of {state.num_answers} answers are there)")


def _report(args: argparse.Namespace, directory: Path) -> Exit:
    from trimtab.evaluation.comparison.catalogued import known_methods
    from trimtab.evaluation.report.files import write_report
    from trimtab.evaluation.report.results import read_results, summary_of
    from trimtab.evaluation.report.win_rates import win_rate_sections

    options.say("measuring")
    results = read_results(directory, known_methods())
    path = write_report(directory, results, more=win_rate_sections(directory))
    if args.json:
        print_json({**summary_of(results), "report": str(path)})
    else:
        _print(results, path)
    return Exit.DONE


def _print(results: Results, path: Path) -> None:
    print(results.lead)
    if results.num_missing:
        print(f"{results.num_missing} of {results.num_wanted} answers are missing.")
    print(f"Report: {path}")


def count_prompts(recipe: Recipe) -> int:
    """How many prompts the test split has. Raises DataError for a file that cannot be read."""
    return len(_read("test", recipe.prompts["test"], recipe.directory))


def _read_all(recipe: Recipe) -> dict[str, list[Prompt]]:
    """Split -> prompts; no prompt may be in both, for a strength chosen on a prompt flatters on it."""
    prompts = {split: _read(split, source, recipe.directory) for split, source in recipe.prompts.items()}
    seen = {json.dumps(item, sort_keys=True) for item in prompts.get("validation", [])}
    shared = sum(json.dumps(item, sort_keys=True) in seen for item in prompts["test"])
    if shared:
        raise DataError(f"{shared} prompts are in both splits; validation and test need different ones.")
    return prompts


def _read(split: str, source: PromptSource, directory: Path) -> list[Prompt]:
    if source.builtin is not None:
        from trimtab.evaluation.prompt_sets import builtin_prompts

        everything: list[Prompt] = list(builtin_prompts(source.builtin))
    else:
        path = directory / Path(source.path or "").expanduser()
        everything = [
            row.prompt for row in read_prompts(str(path), (), skip_bad_lines=None, ignore_columns=source.ignore_columns)
        ]
    end = len(everything) if source.num is None else source.start + source.num
    if end > len(everything) or source.start >= len(everything):
        raise DataError(
            f"prompts.{split} asks for rows {source.start} to {end} of {source.builtin or source.path}, which has "
            f"{len(everything)}. Ask for fewer."
        )
    return everything[source.start : end]


def _check_out(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Before anything is loaded, what can be said about --out already."""
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; give a directory.")
    if (out / "run.json").exists() and not (resume or overwrite):
        raise OutputExistsError(out)


def _check_packages(recipe: Recipe) -> None:
    """What the report will need, before hours of decoding and not after."""
    require("matplotlib", extra="compare", purpose="The figures of the report")
    if recipe.is_pareto:
        require("moarchiving", extra="compare", purpose="The hypervolume")


def _load_scorers(recipe: Recipe) -> dict[str, Scorer]:
    from trimtab.storage.scorers import load_scorer
    from trimtab.storage.sentences import is_sentence

    for name in recipe.own_scorers:  # those of methods too: better now than when the method's turn comes
        load_scorer(name)
    return {
        reward.name: load_scorer(recipe.scorer_of(reward))
        for reward in recipe.rewards
        if not is_sentence(reward.scorer)
    }


def _sentence_scorers(recipe: Recipe, base: EngineMaker) -> dict[str, Scorer]:
    """The rewards that are sentences, which the base itself reads."""
    from trimtab.engines.maker import IN_PROCESS
    from trimtab.evaluation.sentence_reward import sentence_scorer
    from trimtab.storage.sentences import is_sentence

    found = {}
    for reward in recipe.rewards:
        if is_sentence(reward.scorer):
            base.check_features([IN_PROCESS], what=f"The reward {reward.name}, which the base reads,")
            found[reward.name] = sentence_scorer(recipe.scorer_of(reward), base.model)
    return found
