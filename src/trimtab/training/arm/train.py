"""`train_arm`: an autoregressive reward model from preference pairs (GenARM, ICLR 2025, arXiv 2410.08193).

A causal language model π_r is trained so that Σ_t log π_r(y_t | x, y_<t) is higher for preferred responses; its
log-probabilities then steer any frozen model with the same vocabulary (`guides.arm`).

Where it differs from the paper and its released code: no LoRA dropout unless asked for (it costs time on a CPU and
adds noise to sums over hundreds of tokens); a short warm-up; responses end with the token that ends a turn in the
model's own chat template; pairs that share a response share its row of the batch (the loss is the same).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.training.pairs.run import PairResult, Pairs, PairSplit, pair_metrics, result_of, tokens_of
from trimtab.training.run import checkpoints, run
from trimtab.training.run.card import ARM
from trimtab.training.run.settings import ArmSettings, TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel

__all__ = ["ArmResult", "ArmSettings", "TrainProgress", "train_arm"]

ArmResult = PairResult


def train_arm(
    model: str | Path,
    pairs: Pairs,
    *,
    out: str | Path,
    eval_pairs: Pairs | None = None,
    settings: ArmSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> ArmResult:
    """Train on preference pairs and write a guide's directory that `load_guide` reads.

    `model` is a name as in `load_model`. Without `eval_pairs`, `settings.eval_share` of the prompts are held out.
    `out` must not exist unless `overwrite`, or `resume`, which continues an interrupted run exactly where its last
    good checkpoint stands. `push_to_hub` names a repository to upload the directory to. In a process group
    (`accelerate launch`) every process calls this; the first one writes.

    Raises OptionError and DataError for what the caller gave, OutputExistsError, CheckpointError (also where the disk
    is full: the last good checkpoint survives), NotFiniteError where the loss diverges. Interrupted (a
    KeyboardInterrupt) where SIGINT or SIGTERM asked the run to end: its step is finished and saved first, and a second
    signal ends it at once.
    """
    out, settings = Path(out), settings or ArmSettings()
    run.require_extra()
    checkpoints.check_output(out, resume=resume, overwrite=overwrite)
    split = PairSplit(pairs, eval_pairs, settings)
    facts = run.train(
        "arm",
        split.card,
        lambda host: _job(host, split, out, settings, progress),
        model,
        settings,
        out=out,
        resume=resume,
        trust_remote_code=trust_remote_code,
        revision=revision,
        push_to_hub=push_to_hub,
    )
    return result_of(out, facts)


def _job(
    host: HFModel,
    split: PairSplit,
    out: Path,
    settings: ArmSettings,
    progress: Callable[[TrainProgress], None] | None,
) -> run.Job:
    from trimtab.training.arm.trainer import build_trainer, trainer_config

    train, held = (tokens_of(host, pairs, settings) for pairs in (split.train, split.held))
    description = {**run.describe("arm", host, settings, split.card), "guide_form": settings.form}
    config = trainer_config(settings, checkpoints.workspace_of(out))

    return run.Job(
        out=out,
        description=description,
        config=config,
        build=lambda: build_trainer(host, train, held, settings, config, progress),
        measure=lambda trainer, seconds: {"metrics": pair_metrics(trainer, split, train.counts, seconds)},
        write=lambda directory, trainer, weights: run.write_weights(directory, trainer, weights, host, settings),
        about=ARM,
        settings=settings,
        in_shards=True,
    )
