"""What the kinds of training on preference pairs share on the command line: flags, the curve, the result."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from trimtab.cli import options
from trimtab.cli.template_options import add_ignored_columns, add_template_option, template_options
from trimtab.cli.train.progress import Progress
from trimtab.cli.train.run_options import (
    ADAPTER,
    OPTIMISER,
    STEPS,
    Settings,
    above_zero,
    add_outputs,
    add_weight_options,
    below_one,
    count,
    count_or_none,
    given,
    is_main,
)
from trimtab.training.run.settings import PairSettings

if TYPE_CHECKING:
    from trimtab.training.pairs.data import PairData
    from trimtab.training.pairs.run import PairResult
    from trimtab.training.run.settings import TrainProgress

SHARED: Settings = {
    **OPTIMISER,
    "epochs": (above_zero, "passes over the pairs; fractions are accepted"),
    "batch_size": (count, "pairs in one forward pass of a process"),
    "gradient_accumulation": (count, "forward passes in one step"),
    "max_pairs": (count_or_none, "train on a random sample of so many pairs; 0: all"),
    "max_prompts_per_response": (
        count_or_none,
        "leave out pairs with a response that answers more different prompts than this; 0: keep all",
    ),
    "max_length": (count, "tokens of prompt and response; what is longer is cut and counted"),
    "eval_share": (below_one, "share of the prompts held out where there is no --eval-data; 0: none"),
    **ADAPTER,
    "seed": (options.seed_number, "of the adapter, the order and the sample"),
    **STEPS,
    "eval_steps": (count_or_none, "steps between evaluations; 0: only at the end"),
}


Given = TypeVar("Given", contravariant=True)


class TrainsOn(Protocol[Given]):
    """`train_arm`, `train_reward`, `train_dpo`, `train_parm`: one signature, but for what the pairs are given as."""

    def __call__(
        self,
        model: str,
        pairs: Given,
        *,
        out: str,
        eval_pairs: Given | None,
        settings: Any,
        resume: bool,
        overwrite: bool,
        trust_remote_code: bool,
        revision: str | None,
        push_to_hub: str | None,
        progress: Callable[[TrainProgress], None],
    ) -> PairResult: ...


Trains: TypeAlias = "TrainsOn[PairData]"
AnyPairs = TypeVar("AnyPairs")
AnySettings = TypeVar("AnySettings", bound=PairSettings)


def add_options(
    parser: argparse.ArgumentParser, own: Settings, defaults: PairSettings, where: str, *, objectives: bool = False
) -> argparse._ArgumentGroup:
    """Every flag of a method that trains on pairs; `own` are its settings beside the shared ones. The group of the
    training flags, for more.

    With `objectives`, pairs are named (`NAME=SOURCE`) and an adapter is all that can be trained.
    """
    _add_inputs(parser, objectives)
    group = parser.add_argument_group("training")
    if objectives:
        parser.set_defaults(full=False)
    else:
        group.add_argument("--full", action="store_true", help="train all weights, not an adapter")
    options.add_settings(group, {**own, **SHARED, **own}, defaults)  # own ones come first, and say it their way
    add_weight_options(group, defaults)
    add_outputs(parser, where)
    return group


def settings_of(kind: type[AnySettings], args: argparse.Namespace, own: Settings) -> AnySettings:
    """The settings that the flags ask for."""
    return kind(**given(args, (*own, *SHARED)))


def run_training(args: argparse.Namespace, settings: PairSettings, load: Callable[[], Trains]) -> int:
    """Read the pairs, train with what `load` imports, and say what came of it."""
    pairs = read(args, args.data)
    held = read(args, args.eval_data) if args.eval_data else None
    return train(args, settings, load, pairs, held, len(pairs.pairs))


def read(args: argparse.Namespace, sources: Sequence[str]) -> PairData:
    """The pairs of some sources, as the flags say."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each run
    if is_main():
        options.say(f"reading {', '.join(sources)}")
    from trimtab.training.pairs.data import read_pairs

    return read_pairs(
        sources,
        format=args.format,
        skip_bad_lines=args.skip_bad_lines,
        ignore_columns=args.ignore_columns,
        template_options=template_options(args),
    )


def train(
    args: argparse.Namespace,
    settings: PairSettings,
    load: Callable[[], TrainsOn[AnyPairs]],
    pairs: AnyPairs,
    held: AnyPairs | None,
    num_pairs: int,
) -> int:
    """Train with what `load` imports, and say what came of it."""
    if not is_main():
        args.json = False
    with Progress("steps", _line, active=is_main()) as progress:
        progress.say(f"{num_pairs} pairs to train on")
        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs on standard output, which is the result's
            result = load()(
                args.model,
                pairs,
                eval_pairs=held,
                out=args.out,
                settings=settings,
                resume=args.resume,
                overwrite=args.overwrite,
                trust_remote_code=args.trust_remote_code,
                revision=args.revision,
                push_to_hub=args.push_to_hub,
                progress=progress.show,
            )
        progress.say(_summary(result))
    if args.json:
        print(json.dumps(_as_json(result), allow_nan=False))
    return 0


def _add_inputs(parser: argparse.ArgumentParser, objectives: bool) -> None:
    whose = " of one objective" if objectives else ""
    metavar = "NAME=SOURCE" if objectives else "SOURCE"
    group = parser.add_argument_group("model and data")
    group.add_argument("--model", required=True, metavar="NAME", help='a hub id, a directory, a .gguf file, or "demo"')
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    group.add_argument("--trust-remote-code", action="store_true", help="let the model run its own code")
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
    return (
        f"{result.out}: accuracy {result.eval_accuracy:.3f} "
        f"[{result.eval_accuracy_low:.3f}, {result.eval_accuracy_high:.3f}] on {result.num_eval_pairs} held-out pairs, "
        f"trained on {result.num_pairs}{_by_objective(result.metrics)}{_few(result.metrics)}"
    )


def _few(metrics: Mapping[str, Any]) -> str:
    from trimtab.training.run.card import few_prompts

    said = few_prompts(metrics)
    return f"\n{said}" if said else ""


def _by_objective(metrics: Mapping[str, Any]) -> str:
    """A line for each of several objectives."""
    lines = [
        f"\n{name}: " + ", ".join(f"{share:.3f} at {probe}" for probe, (share, _, _) in own["accuracy_at"].items())
        for name, own in metrics.get("objectives", {}).items()
    ]
    return "".join(lines)


def _as_json(result: PairResult) -> dict[str, Any]:
    names = ("num_pairs", "num_eval_pairs", "eval_accuracy", "eval_accuracy_low", "eval_accuracy_high")
    return {
        "out": str(result.out),
        **{name: getattr(result, name) for name in names},
        "metrics": dict(result.metrics),
    }
