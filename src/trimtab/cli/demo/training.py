"""`trimtab demo --train`: from the base's own answers to a guide, by way of pairs that the scorer labels."""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.demo.tenths import Tenths
from trimtab.cli.options import say

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.storage.scorers import Scorer
    from trimtab.training.arm.train import ArmSettings

NUM_HELD_OUT_PROMPTS = 60


def trained(args: argparse.Namespace, model: HFModel, scorer: Scorer, out: Path) -> bool:
    """Train the guide; False where a signal ended its training, once it is said how to go on."""
    from trimtab.cli.train.interruption import resume_command
    from trimtab.training.run.interruption import Interrupted

    try:
        _train(args, model, scorer, out)
    except Interrupted as stop:
        given = args.given if args.out is not None else [*args.given, "--out", str(out)]
        say(f"{stop}. Go on with:\n{resume_command(given)}")
        return False
    return True


def _train(args: argparse.Namespace, model: HFModel, scorer: Scorer, out: Path) -> None:
    """The whole road to a guide, which is written into `guide` below `out`."""
    from trimtab.decoding.decoder import Decoder
    from trimtab.evaluation.prompt_sets import training_prompts
    from trimtab.training.arm.train import train_arm
    from trimtab.training.pairs import synthetic
    from trimtab.training.pairs.data import read_pairs
    from trimtab.training.run.card import few_prompts

    prompts = training_prompts()
    path = out / "samples.jsonl"
    if args.overwrite:
        path.unlink(missing_ok=True)
    # Far from the seeds that the measurement draws from.
    settings, labels = synthetic.SamplingSettings(seed=args.seed + 1000), synthetic.LabelSettings()
    with Tenths(f"[1/3] {settings.num_answers} answers of the base to {len(prompts)} prompts") as bar:
        num_sampled = count(1)
        decoder = Decoder(model, max_rows=args.batch_size)
        samples = synthetic.sample_into(
            path, decoder, prompts, settings, on_prompt=lambda: bar.move(next(num_sampled), len(prompts))
        )
    parts = {"pairs.jsonl": samples[:-NUM_HELD_OUT_PROMPTS], "held_out.jsonl": samples[-NUM_HELD_OUT_PROMPTS:]}
    data = {}
    for name, part in parts.items():
        synthetic.write_pairs(out / name, synthetic.label_pairs(part, scorer, labels))
        data[name] = read_pairs([out / name])
    num_pairs = len(data["pairs.jsonl"].pairs)
    with Tenths(f"[2/3] training the guide on {num_pairs} pairs") as bar:
        result = train_arm(
            args.model,
            data["pairs.jsonl"],
            eval_pairs=data["held_out.jsonl"],
            out=out / "guide",
            settings=_arm_settings(args.seed, model.max_length or 192),
            resume=args.resume,
            overwrite=args.overwrite,
            progress=lambda progress: bar.move(progress.step, progress.num_steps),
        )
    say(
        f"accuracy on {result.num_eval_pairs} held-out pairs: {result.eval_accuracy:.3f} "
        f"[{result.eval_accuracy_low:.3f}, {result.eval_accuracy_high:.3f}]. {few_prompts(result.metrics)}".rstrip()
    )


def _arm_settings(seed: int, context: int) -> ArmSettings:
    """GenARM's settings, but for smaller batches and a lower rate: there are a few hundred short pairs."""
    from trimtab.training.arm.train import ArmSettings

    length = min(192, context)
    return ArmSettings(
        learning_rate=4e-4,
        batch_size=8,
        gradient_accumulation=1,
        epochs=1,
        max_length=length,
        max_prompt_length=length // 2,
        save_dtype="bfloat16",
        save_steps=20,
        seed=seed,
    )
