"""`train_arm`: an autoregressive reward model from preference pairs (GenARM, ICLR 2025, arXiv 2410.08193).

A causal language model π_r is trained so that Σ_t log π_r(y_t | x, y_<t) is higher for preferred responses; its
log-probabilities then steer any frozen model with the same vocabulary (`guides.arm`).

Where it differs from the paper and its released code: no LoRA dropout unless asked for (it costs time on a CPU and
adds noise to sums over hundreds of tokens); a short warm-up; responses end with the token that ends a turn in the
model's own chat template; pairs that share a response share its row of the batch (the loss is the same). The paper
trains π_r alone; `ArmSettings.reference` and `through_mix` train it beside its base, for what decoding does with it.

With `ArmSettings.head_only` no model is trained but a low-rank head on the base's final state (`guides.head`), as
PALC's released code trains one (ICLR 2026): −log σ(β·(mean log m(y_w) − mean log m(y_l))), m the mix of base and head.
Theirs has β 1, rank 256, dropout 0.1 before the head (here `lora_dropout`, 0) and a fixed factor of 5 after it (here
the weight: `through_mix`, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.training.pairs.run import PairMethod, PairResult, Pairs, PairSplit, evaluation, token_job, train_on_pairs
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About
from trimtab.training.run.run import Job
from trimtab.training.run.settings import ArmSettings, TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.arm.trainer import ArmTrainer
    from trimtab.training.run.identity import Facts

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
    arguments = RunArguments(
        out=Path(out),
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        revision=revision,
        push_to_hub=push_to_hub,
        progress=progress,
    )
    asked = settings or ArmSettings()
    return train_on_pairs(_HEAD if asked.head_only else _METHOD, model, pairs, eval_pairs, asked, arguments)


def _job(host: HFModel, split: PairSplit, settings: ArmSettings, arguments: RunArguments) -> Job:
    from trimtab.training.arm.trainer import arm_config, arm_parts

    return token_job(
        *(host, split, settings, arguments),
        config=arm_config,
        parts=arm_parts,
        about=_about(settings),
        facts={"guide_form": settings.form},
        in_shards=not settings.is_beside_base,
        evaluated=_evaluated,
    )


def _evaluated(trainer: ArmTrainer) -> Facts:
    """The evaluation, and beside it the accuracy of what training added to the base, where the base is at hand."""
    facts = evaluation(trainer)
    shift = trainer.shift_accuracy()
    if shift is None:
        return facts
    return {
        **facts,
        "eval_shift_accuracy": shift.value,
        "eval_shift_accuracy_low": shift.low,
        "eval_shift_accuracy_high": shift.high,
    }


def _head_job(host: HFModel, split: PairSplit, settings: ArmSettings, arguments: RunArguments) -> Job:
    from trimtab.training.arm.head import head_config, head_job, head_parts, output_layer

    layer = output_layer(host, settings.head_only)
    job = token_job(
        *(host, split, settings, arguments),
        config=head_config,
        parts=head_parts,
        about=_HEAD_ABOUT,
        facts={},
        evaluated=_evaluated,
    )
    return head_job(job, layer, settings.head_only, settings.save_dtype)


def _about(settings: ArmSettings) -> About:
    """What the card says, by what the loss was of."""
    if settings.through_mix:
        return replace(
            _ABOUT,
            text="trained as an autoregressive reward model (GenARM, arXiv 2410.08193) through the mix that decoding "
            f"draws from, at weight {settings.through_mix:g}: the reward of a response is the log-probability that "
            f"base and guide give it together. {_STEERS}",
        )
    if settings.is_beside_base:
        return replace(
            _ABOUT,
            text="trained as an autoregressive reward model (GenARM, arXiv 2410.08193) of what it adds to its base: "
            "the reward of a response is log π_r − log π_base, summed over its tokens, so that the loss is that of DPO "
            f"(arXiv 2305.18290). {_STEERS}",
        )
    return _ABOUT


_METHOD: PairMethod[Pairs, ArmSettings, PairSplit] = PairMethod("arm", PairSplit, _job)

_HEAD: PairMethod[Pairs, ArmSettings, PairSplit] = PairMethod("head", PairSplit, _head_job)

_STEERS = "It steers a frozen model with the same vocabulary, token by token."

_ABOUT = About(
    "trained as an autoregressive reward model (GenARM, arXiv 2410.08193): the log-probability it gives to a response "
    f"is that response's reward. {_STEERS}",
    (
        "import trimtab",
        "",
        "model = trimtab.load_model({base})",
        'guide = trimtab.load_guide("path/to/this/directory")',
        'decoder = trimtab.Decoder(model, guides={{"guide": guide}})',
    ),
)

_HEAD_ABOUT = About(
    "trained as PALC's released code trains it (ICLR 2026): a map B A h, with no bias, is added to the frozen model's "
    "logits, and the reward of a response is the mean log-probability that model and head together give its tokens. It "
    "steers the model that it was trained on, with no row or cache of its own.",
    (
        "import trimtab",
        "",
        "model = trimtab.load_model({base})",
        'head = trimtab.load_guide("path/to/this/directory", beside=model)',
        'decoder = trimtab.Decoder(model, guides={{"head": head}})',
    ),
)
