"""How `builtin:sentiment` was made, kept so that anybody can make it again: `python -m trimtab.cli.demo.sentiment`.

Six answers of the demo model to each of the 400 training prompts, pairs of them that VADER tells apart, and a LoRA
trained on the pairs of 340 prompts; those of the other 60 measure its accuracy. A guide of your own: `trimtab make`.
"""

from __future__ import annotations

import argparse
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.cli.exits import Exit
from trimtab.cli.options import say, seed_number, whole
from trimtab.cli.tenths import Tenths
from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.storage.scorers import Scorer
    from trimtab.training.arm.train import ArmSettings

NUM_HELD_OUT_PROMPTS = 60


def main(argv: list[str] | None = None) -> Exit:
    """Make the guide, in `guide` below --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--scorer", default="sentiment")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--batch-size", type=whole(1), default=64)
    parser.add_argument("--out", required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    from trimtab.storage.loading import load_model
    from trimtab.storage.scorers import load_scorer
    from trimtab.training.run.interruption import Interrupted

    try:
        _train(args, load_model(args.model), load_scorer(args.scorer), Path(args.out))
    except Interrupted as stop:
        say(f"{stop}. Go on with --resume.")
        return Exit.INTERRUPTED
    except TrimtabError as error:
        say(f"error: {error}")
        return Exit.REFUSED
    return Exit.DONE


def _train(args: argparse.Namespace, model: HFModel, scorer: Scorer, out: Path) -> None:
    """The whole road to a guide, which is written into `guide` below `out`."""
    from trimtab.decoding.decoder import Decoder
    from trimtab.evaluation.prompt_sets import training_prompts
    from trimtab.training.arm.train import train_arm
    from trimtab.training.pairs import synthetic
    from trimtab.training.pairs.data import read_pairs
    from trimtab.training.run.card import few_prompts

    prompts = training_prompts()
    out.mkdir(parents=True, exist_ok=True)
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


if __name__ == "__main__":
    sys.exit(main())
