"""`trimtab train distill`: a guide that does what a sentence does, or two, without reading them.

Answers are drawn from the model as it is steered by the sentences, and the guide learns the whole distribution at each
of their tokens from the prompt alone (context distillation). No pairs are needed. The guide is a LoRA adapter of the
model, or with --head-only a low-rank head. Interrupted, it goes on with --resume exactly where its last checkpoint
stands, and draws no answer again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab import environment
from trimtab.cli import flags
from trimtab.cli.exits import Exit
from trimtab.cli.progress import Progress
from trimtab.cli.prompts import read_prompts
from trimtab.cli.results import print_json
from trimtab.cli.sentences import read_sentence
from trimtab.cli.train.rewards import add_prompts
from trimtab.cli.train.run_options import NOT_SETTINGS, add_model_options, add_outputs, is_main
from trimtab.cli.train.spec import PromptsSpec, RunSpec
from trimtab.guides.sentences import Sentences
from trimtab.training.distill.settings import DistillSettings

if TYPE_CHECKING:
    from trimtab.training.distill.train import DistillResult, TrainProgress


def register(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = methods.add_parser(
        "distill", help="a guide that does what sentences do", description=__doc__, allow_abbrev=False
    )
    group = parser.add_argument_group("model, prompts and sentences")
    add_model_options(group)
    add_prompts(parser, group)
    group.add_argument(
        "--towards", required=True, metavar="SENTENCE", help="what the guide steers towards; @FILE: its text"
    )
    group.add_argument("--away", metavar="SENTENCE", help="what it steers away from (the model without a sentence)")
    flags.add_fields(parser.add_argument_group("training"), DistillSettings(), but=NOT_SETTINGS)
    add_outputs(parser, "where the guide goes")


def run(args: argparse.Namespace) -> Exit:
    """Distill sentences into a guide."""
    environment.NO_TELEMETRY.give()
    settings = flags.read_fields(DistillSettings, args)
    sentences = Sentences(
        read_sentence("towards", args.towards), None if args.away is None else read_sentence("away", args.away)
    )
    return _train(settings, sentences, PromptsSpec.of(args), RunSpec.of(args), push_to_hub=args.push_to_hub)


def _train(
    settings: DistillSettings, sentences: Sentences, source: PromptsSpec, run: RunSpec, *, push_to_hub: str | None
) -> Exit:
    rows = read_prompts(source.path, (), skip_bad_lines=source.skip_bad_lines, ignore_columns=source.ignore_columns)
    with Progress("steps", active=is_main()) as progress:
        progress.say(f"{len(rows)} prompts to train on and to measure with")
        from trimtab.training.distill.train import train_distill

        with contextlib.redirect_stdout(sys.stderr):  # as in `pairs.train`
            result = train_distill(
                run.model,
                [row.prompt for row in rows],
                sentences.towards,
                sentences.away,
                settings=settings,
                out=run.out,
                template=source.template,
                template_options=source.template_options,
                prompt_files=[Path(source.path).name],
                resume=run.resume,
                overwrite=run.overwrite,
                trust_remote_code=run.trust_remote_code,
                revision=run.revision,
                push_to_hub=push_to_hub,
                progress=progress.following(_line),
            )
        progress.say(_summary(result))
    if run.as_json:
        print_json({**dataclasses.asdict(result), "out": str(result.out)})
    return Exit.DONE


def _line(progress: TrainProgress) -> str:
    metrics = progress.metrics
    shown = {"loss": "loss", "KL": "kl", "of the base": "base_kl", "tokens/s": "tokens_per_s"}
    held = {"held-out KL": "eval_kl", "of the base": "eval_base_kl"}
    names = held if "eval_kl" in metrics else shown
    values = "  ".join(f"{label} {metrics[name]:.3g}" for label, name in names.items() if name in metrics)
    return f"step {progress.step:>{len(str(progress.num_steps))}}/{progress.num_steps}  {values}"


def _summary(result: DistillResult) -> str:
    learnt = f"{result.num_prompts} answers learnt from, {result.num_cut} of all cut at the length limit"
    if result.eval_kl is None:
        return f"{result.out}: {learnt}; none held out"
    around = "" if result.eval_kl_low is None else f" [{result.eval_kl_low:.3g}, {result.eval_kl_high:.3g}]"
    return (
        f"{result.out}: {result.eval_kl:.3g}{around} nats an answer from what the sentences do, on "
        f"{result.num_eval_prompts} held-out prompts; the base is {result.eval_base_kl:.3g} from it. {learnt}"
    )
