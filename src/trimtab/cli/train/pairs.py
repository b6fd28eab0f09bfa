"""What the kinds of training on preference pairs share on the command line: flags, the curve, the result."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from trimtab import environment
from trimtab.cli import flags, options
from trimtab.cli.exits import Exit
from trimtab.cli.progress import Progress
from trimtab.cli.results import print_json
from trimtab.cli.template_options import add_ignored_columns, add_template_option
from trimtab.cli.train.run_options import NOT_SETTINGS, add_model_options, add_outputs, is_main
from trimtab.cli.train.spec import PairsSpec, RunSpec

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData
    from trimtab.training.pairs.run import PairResult
    from trimtab.training.run.settings import PairSettings, TrainProgress

Given = TypeVar("Given", contravariant=True)
GivenSettings = TypeVar("GivenSettings", contravariant=True)


class TrainsOn(Protocol[Given, GivenSettings]):
    """`train_arm`, `train_reward`, `train_dpo`, `train_parm`: one signature, but for what the pairs are given as."""

    def __call__(
        self,
        model: str,
        pairs: Given,
        *,
        out: str,
        eval_pairs: Given | None,
        settings: GivenSettings | None,
        resume: bool,
        overwrite: bool,
        trust_remote_code: bool,
        revision: str | None,
        push_to_hub: str | None,
        progress: Callable[[TrainProgress], None],
    ) -> PairResult: ...


AnyPairs = TypeVar("AnyPairs")
AnySettings = TypeVar("AnySettings", bound="PairSettings")


def add_options(
    parser: argparse.ArgumentParser, defaults: PairSettings, where: str, *, objectives: Collection[str] = ()
) -> argparse._ArgumentGroup:
    """Every flag of a method that trains on pairs. The group of the training flags, for more.

    With several objectives, pairs are named (`NAME=SOURCE`) and `objectives` are the settings that have no plain flag.
    """
    _add_inputs(parser, bool(objectives))
    group = parser.add_argument_group("training")
    flags.add_fields(group, defaults, but=(*NOT_SETTINGS, *objectives))
    add_outputs(parser, where)
    return group


def settings_of(kind: type[AnySettings], args: argparse.Namespace, *, but: Collection[str] = ()) -> AnySettings:
    """The settings that the flags ask for; those in `but` have no flag."""
    return flags.read_fields(kind, args, but=("share_rows", *but))


def run_method(
    args: argparse.Namespace, kind: type[AnySettings], load: Callable[[], TrainsOn[PairData, AnySettings]]
) -> Exit:
    """Train with what `load` imports on the pairs and the settings that the flags name."""
    settings, source, run = settings_of(kind, args), PairsSpec.of(args), RunSpec.of(args)
    pairs = read(source, source.data)
    held = read(source, source.eval_data) if source.eval_data else None
    return train(run, settings, load, pairs, held, len(pairs.pairs), push_to_hub=args.push_to_hub)


def read(source: PairsSpec, names: Sequence[str]) -> PairData:
    """The pairs of some of the source's data."""
    environment.NO_TELEMETRY.give()
    if is_main():
        options.say(f"reading {', '.join(names)}")
    from trimtab.training.pairs.data import read_pairs

    return read_pairs(
        names,
        format=source.format,
        skip_bad_lines=source.skip_bad_lines,
        ignore_columns=source.ignore_columns,
        template_options=source.template_options,
    )


def train(
    run: RunSpec,
    settings: AnySettings,
    load: Callable[[], TrainsOn[AnyPairs, AnySettings]],
    pairs: AnyPairs,
    held: AnyPairs | None,
    num_pairs: int,
    *,
    push_to_hub: str | None,
) -> Exit:
    """Train with what `load` imports, and say what came of it."""
    with Progress("steps", active=is_main()) as progress:
        progress.say(f"{num_pairs} pairs to train on")
        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs on standard output, which is the result's
            result = load()(
                run.model,
                pairs,
                eval_pairs=held,
                out=run.out,
                settings=settings,
                resume=run.resume,
                overwrite=run.overwrite,
                trust_remote_code=run.trust_remote_code,
                revision=run.revision,
                push_to_hub=push_to_hub,
                progress=progress.following(_line),
            )
        progress.say(_summary(result))
    if run.as_json:
        print_json(_as_json(result))
    return Exit.DONE


def _add_inputs(parser: argparse.ArgumentParser, objectives: bool) -> None:
    whose = " of one objective" if objectives else ""
    metavar = "NAME=SOURCE" if objectives else "SOURCE"
    group = parser.add_argument_group("model and data")
    add_model_options(group)
    group.add_argument(
        "--data",
        action="append",
        required=True,
        metavar=metavar,
        help=f"preference pairs{whose}: a .jsonl file, or a hub data set as owner/name or owner/name@split; repeat for "
        "several",
    )
    group.add_argument(
        "--eval-data", action="append", default=[], metavar=metavar, help="pairs to measure the accuracy on"
    )
    group.add_argument(
        "--format",
        default="auto",
        metavar="NAME",
        help="shape of the rows: auto, preference (TRL), hh, pku-helpful, pku-safer or ultrafeedback (%(default)s)",
    )
    group.add_argument("--skip-bad-lines", action="store_true", help="go on without lines that cannot be used")
    add_ignored_columns(group)
    add_template_option(group)


def _line(progress: TrainProgress) -> str:
    metrics = progress.metrics
    prefix = "eval_" if "eval_loss" in metrics else ""
    values = "  ".join(f"{name} {metrics[prefix + name]:.3f}" for name in ("loss", "accuracy", "margin"))
    speed = f"{metrics[f'{prefix}pairs_per_s']:.2f} pairs/s  {metrics[f'{prefix}tokens_per_s']:.0f} tokens/s"
    what = "evaluation" if prefix else f"step {progress.step:>{len(str(progress.num_steps))}}/{progress.num_steps}"
    return f"{what}  {values}  {speed}"


def _summary(result: PairResult) -> str:
    if result.eval_accuracy is None:
        return f"{result.out}: trained on {result.num_pairs} pairs; none were held out"
    from trimtab.storage.card_values import SHIFT_ACCURACY, accuracy_in

    shift = accuracy_in(result.metrics, SHIFT_ACCURACY)
    beside = f" ({shift} less its base's share)" if shift is not None else ""
    return (
        f"{result.out}: accuracy {result.eval_accuracy:.3f} "
        f"[{result.eval_accuracy_low:.3f}, {result.eval_accuracy_high:.3f}]{beside} on {result.num_eval_pairs} "
        f"held-out pairs, trained on {result.num_pairs}{_by_objective(result)}{_few(result)}"
    )


def _few(result: PairResult) -> str:
    from trimtab.training.run.card import few_prompts

    warning = few_prompts(result.metrics)
    return f"\n{warning}" if warning else ""


def _by_objective(result: PairResult) -> str:
    """A line for each of several objectives."""
    lines = [
        f"\n{name}: " + ", ".join(f"{share:.3f} at {probe}" for probe, (share, _, _) in measured["accuracy_at"].items())
        for name, measured in result.metrics.get("objectives", {}).items()
    ]
    return "".join(lines)


def _as_json(result: PairResult) -> dict[str, object]:
    names = ("num_pairs", "num_eval_pairs", "eval_accuracy", "eval_accuracy_low", "eval_accuracy_high")
    return {
        "out": str(result.out),
        **{name: getattr(result, name) for name in names},
        "metrics": dict(result.metrics),
    }
