"""`train_distill`: a guide that does what sentences do, learnt from their mix without preference pairs.

A guide of sentences (`guides.prompt`) steers by what they change: with two, a token draws from the target
t ∝ π_base · (π_s₊ / π_s₋)^λ, with one from π_base · (π_s / π_base)^λ. That takes a row of the base for each sentence.
Here a student learns t, token by token and over the whole vocabulary, from the prompt alone: KL(t ‖ student), averaged
over the tokens of answers that were drawn from t. The student is an adapter of the base, which steers as a shift, so
that at weight 1 it is t as far as it was learnt; or a low-rank head on the base's final state, π_base · exp(head).

This is context distillation (Askell et al., arXiv 2112.00861; Snell et al., arXiv 2209.15189). Where it differs from
these papers: the target is a mix of distributions at a strength, not a model that reads a prompt; it is learnt over the
whole vocabulary, on answers that were drawn from it; and what is written is a guide for a frozen base, which may be
used at other weights than 1, not a tuned model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.core import Prompt
from trimtab.guides.prompt import PromptGuide
from trimtab.guides.sentences import cut
from trimtab.mixing.forms import SHIFT
from trimtab.statistics import FEW
from trimtab.training.distill.settings import DistillSettings
from trimtab.training.run import run
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About
from trimtab.training.run.identity import Facts
from trimtab.training.run.prompt_data import TrainingPrompts, tokenised
from trimtab.training.run.run import Job, Training
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.distill.trainer import DistillTrainer
    from trimtab.training.run.trainer import TrainerParts

__all__ = ["DistillResult", "DistillSettings", "TrainProgress", "train_distill"]


@dataclass(frozen=True, slots=True)
class DistillResult:
    """A finished run. What is measured on held-out prompts is None where none were held out."""

    out: Path
    num_prompts: int
    """Prompts that were trained on; each has one answer."""
    num_eval_prompts: int
    num_cut: int
    """Answers, held-out ones included, that ran into the length limit."""
    eval_kl: float | None
    """KL(t ‖ student) of held-out answers, in nats of a whole answer, ..."""
    eval_kl_low: float | None
    eval_kl_high: float | None
    """... with its 95 % interval over prompts; None for one prompt."""
    eval_base_kl: float | None
    """KL(t ‖ π_base) of the same answers: what there was to learn."""
    metrics: dict[str, Any]
    """As in `guide.json`: the evaluation, the last line of the curve, counts and seconds."""


def train_distill(
    model: str | Path,
    prompts: Sequence[Prompt],
    towards: str,
    away: str | None = None,
    *,
    out: str | Path,
    settings: DistillSettings | None = None,
    template: str = "raw",
    template_options: Facts | None = None,
    prompt_files: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> DistillResult:
    """Train a guide to do what a sentence does, or two, and write its directory that `load_guide` reads.

    `model` is a name as in `load_model`. The guide learns to steer `towards` one sentence, and `away` from the other if
    there is one, as `PromptGuide` does at `settings.strength`. `template` and `template_options` say what a prompt of
    text is, as in `train_rl`; `prompt_files` are names for the card. `out` must not exist unless `overwrite`, or
    `resume`, which continues an interrupted run exactly where its last whole checkpoint stands, and draws no answer
    again. In a process group (`accelerate launch`) every process calls this; the first one writes.

    Raises OptionError, DataError and PromptError for what the caller gave, OutputExistsError, CheckpointError (also
    where the disk is full: the last checkpoint survives), NotFiniteError where the loss diverges, Interrupted as
    `arm.train_arm`.
    """
    run.require_extra()
    chosen = settings or DistillSettings()
    data = TrainingPrompts(prompts, template, template_options, prompt_files)
    data.check()
    guide = PromptGuide(towards, away=away, weight=chosen.strength, place=chosen.place)
    arguments = RunArguments(
        out=Path(out),
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        revision=revision,
        push_to_hub=push_to_hub,
        progress=progress,
    )
    arguments.check()
    sentences = {"towards": towards} if away is None else {"towards": towards, "away": away}
    training = Training(
        kind=chosen.kind,
        model=model,
        data=data.card,
        settings=chosen,
        arguments=arguments,
        facts={"method": "distill", "sentences": sentences},
    )
    facts = run.train(training, lambda: lambda host, settled: _job(host, data, guide, settled, arguments))
    return _result(arguments.out, facts)


def _job(
    host: HFModel, data: TrainingPrompts, guide: PromptGuide, settings: DistillSettings, arguments: RunArguments
) -> Job:
    from trimtab.training.arm.head import head_job, output_layer
    from trimtab.training.distill.answers import FILE, SentencePrompts, hold_out
    from trimtab.training.distill.trainer import distill_config, distill_parts

    layer = output_layer(host, settings.head_only) if settings.head_only else None
    kept, num_long = tokenised(host, data, settings)
    train, held = hold_out(kept, settings.eval_share, seed=settings.seed)
    read = SentencePrompts.read(host, guide, kept, settings)
    config = distill_config(settings, arguments.workspace)
    counts = {"num_prompts": len(train), "num_long": num_long}

    def parts() -> TrainerParts[DistillTrainer]:
        host.module.to(config.device)
        with config.main_process_first(desc="drawing answers"):  # the others read what the first has written
            drawn = read.draw(host, arguments.workspace / FILE, settings)
        counts["num_cut"] = sum(one.is_cut for one in drawn)
        counts["num_tokens"] = sum(len(one.token_ids) for one in drawn)
        learnt, measured = (read.readings(drawn, numbers) for numbers in (train, held))
        return distill_parts(host, learnt, measured, settings, config.world_size)

    job = Job(
        config=config,
        parts=parts,
        measure=lambda trainer, seconds: {"metrics": _metrics(trainer, counts, seconds)},
        about=_about(guide, settings),
        facts={} if layer is not None else {"guide_form": SHIFT},
    )
    return job if layer is None else head_job(job, layer, settings.head_only, settings.save_dtype)


def _metrics(trainer: DistillTrainer, counts: Facts, seconds: float) -> Facts:
    """`metrics` of `guide.json`: the evaluation of the last step, the last line of the curve, counts and seconds."""
    history = trainer.state.log_history
    line: Facts = next((line for line in reversed(history) if "kl" in line), {})
    found: Facts = {"num_eval_prompts": 0}
    if trainer.eval_dataset is not None:
        if trainer.meter.held is None or not any(
            "eval_kl" in line and line["step"] == trainer.state.global_step for line in history
        ):
            trainer.evaluate()
        found = trainer.meter.facts()
    return {
        **found,
        **{f"train_{key}": line[key] for key in ("loss", "kl", "base_kl") if key in line},
        "num_steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        **counts,
    }


def _result(out: Path, facts: Facts) -> DistillResult:
    metrics = facts["metrics"]
    return DistillResult(
        out=out,
        **{name: metrics[name] for name in ("num_prompts", "num_eval_prompts", "num_cut")},
        **{name: metrics.get(name) for name in ("eval_kl", "eval_kl_low", "eval_kl_high", "eval_base_kl")},
        metrics=dict(metrics),
    )


def _about(guide: PromptGuide, settings: DistillSettings) -> About:
    away = "" if guide.away is None else f" and away from {_quoted(guide.away)}"
    steers = (
        "It steers the model that it was trained on, with no row or cache of its own."
        if settings.head_only
        else "It steers a frozen model with the same vocabulary, token by token."
    )
    beside = ", beside=model" if settings.head_only else ""
    return About(
        f"trained to do what a guide of sentences does at weight {settings.strength:g}, towards "
        f"{_quoted(guide.towards)}{away}, without reading a sentence (context distillation, arXiv 2112.00861 and "
        f"2209.15189): at weight 1 it does what was learnt of that. {steers}",
        (
            "import trimtab",
            "",
            "model = trimtab.load_model({base})",
            f'guide = trimtab.load_guide("path/to/this/directory"{beside})',
            'decoder = trimtab.Decoder(model, guides={{"guide": guide}})',
        ),
        tags=("reward-guided-decoding", "context-distillation"),
        measured=_measured,
    )


def _quoted(sentence: str) -> str:
    return f"`{' '.join(cut(sentence).replace('`', chr(39)).split())}`"


def _measured(metrics: Facts) -> list[str]:
    if not metrics["num_eval_prompts"]:
        return ["No prompts were held out, so nothing was measured."]
    few = "" if metrics["num_eval_prompts"] >= FEW else f" Fewer than {FEW} prompts say little."
    return [
        f"Answers of the sentences themselves to {metrics['num_eval_prompts']} prompts that were not trained on, in "
        f"nats of a whole answer (95 % intervals over prompts): the KL from the sentences' mix to this guide's is "
        f"{_interval(metrics, 'eval_kl')}, to the base without a guide {_interval(metrics, 'eval_base_kl')}. "
        f"{metrics['num_cut']} answers of all were cut at the length limit.{few}"
    ]


def _interval(metrics: Facts, name: str) -> str:
    around = f" ({metrics[f'{name}_low']:.3g} to {metrics[f'{name}_high']:.3g})" if f"{name}_low" in metrics else ""
    return f"{metrics[name]:.3g}{around}"
