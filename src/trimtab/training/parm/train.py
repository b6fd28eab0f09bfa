"""`train_parm`: one autoregressive reward model for several objectives (PARM, ICML 2025, arXiv 2505.06274).

A causal language model π_p, conditioned on the preference vector p through a bilinear adapter, is trained so that at
every p the objectives' preferences are met in proportion to p; `guides.parm` steers with it at any vector.

Where it differs from the paper's released code: each objective has preference pairs of its own (there every pair of
responses carries a label for each), so a step runs as many pairs of each; one vector is drawn a step, not one a
forward pass; no dropout unless asked for; all linear layers are adapted unless told otherwise (there q, k and v alone);
responses end with the token that ends a turn in the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import OptionError
from trimtab.storage.files import text_digest
from trimtab.training.pairs.run import (
    PairMethod,
    PairResult,
    Pairs,
    PairSplit,
    evaluation,
    pair_metrics,
    tokens_of,
    train_on_pairs,
)
from trimtab.training.parm.settings import MIDDLE, ParmSettings, check_objectives
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About, few_prompts
from trimtab.training.run.identity import Facts
from trimtab.training.run.run import Job
from trimtab.training.run.settings import TrainProgress

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.parm.trainer import ParmTrainer

__all__ = ["ParmResult", "ParmSettings", "train_parm"]

ParmResult = PairResult


def train_parm(
    model: str | Path,
    pairs: Mapping[str, Pairs],
    *,
    out: str | Path,
    eval_pairs: Mapping[str, Pairs] | None = None,
    settings: ParmSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    push_to_hub: str | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> ParmResult:
    """Train on each objective's preference pairs and write a guide's directory that `load_guide` reads.

    `pairs` maps the objectives' names, in the order of the vector's numbers, to their pairs; `eval_pairs` names the
    same ones. All else is as in `train_arm`. The result's accuracy counts each held-out pair at its own objective's
    corner; `metrics` has the accuracies at all corners and in the middle.

    Raises what `train_arm` raises, and OptionError for fewer than two objectives.
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
    return train_on_pairs(_METHOD, model, pairs, eval_pairs, settings or ParmSettings(), arguments)


class ObjectiveSplits:
    """Training and held-out pairs of each objective (`by_name`), with their account (`card`)."""

    def __init__(
        self, pairs: Mapping[str, Pairs], eval_pairs: Mapping[str, Pairs] | None, settings: ParmSettings
    ) -> None:
        names = tuple(pairs)
        check_objectives(names)
        settings.betas_of(names)
        if eval_pairs is not None and set(eval_pairs) != set(names):
            raise OptionError(
                f"There are pairs to train on for {', '.join(names)}, and to measure on for "
                f"{', '.join(eval_pairs) or 'nothing'}. Give both for the same objectives."
            )
        self.by_name = {
            name: PairSplit(given, None if eval_pairs is None else eval_pairs[name], settings)
            for name, given in pairs.items()
        }
        self.num_skipped = sum(split.num_skipped for split in self.by_name.values())
        self.num_stock = sum(split.num_stock for split in self.by_name.values())
        self.card = _data_card({name: split.card for name, split in self.by_name.items()})


def _data_card(cards: Mapping[str, Facts]) -> Facts:
    """One account of the pairs of all objectives."""
    return {
        **{
            key: text_digest("".join(f"{name}\t{card[key]}\n" for name, card in cards.items()))
            for key in ("fingerprint", "eval_fingerprint")
        },
        **{key: [file for card in cards.values() for file in card[key]] for key in ("files", "eval_files")},
        "num_pairs": sum(card["num_pairs"] for card in cards.values()),
        "objectives": cards,
    }


def _job(host: HFModel, splits: ObjectiveSplits, settings: ParmSettings, arguments: RunArguments) -> Job:
    from trimtab.training.parm.trainer import parm_config, parm_parts

    by_name = splits.by_name
    train = {name: tokens_of(host, split.train, settings) for name, split in by_name.items()}
    held = {name: tokens_of(host, split.held, settings) for name, split in by_name.items()}
    counts = {key: sum(data.counts[key] for data in train.values()) for key in next(iter(train.values())).counts}
    config = parm_config(settings, len(by_name), arguments.workspace)
    scale = settings.lora_alpha / settings.lora_rank
    return Job(
        config=config,
        parts=lambda: parm_parts(host, train, held, settings, config.world_size),
        measure=lambda trainer, seconds: {"metrics": pair_metrics(trainer, splits, counts, seconds, _evaluated)},
        write=lambda directory, trainer, _: _write(directory, trainer, settings),
        about=_about(tuple(by_name)),
        facts={"form": "bilinear", "parm": {"objectives": list(by_name), "scale": scale}},
    )


_METHOD: PairMethod[Mapping[str, Pairs], ParmSettings, ObjectiveSplits] = PairMethod("parm", ObjectiveSplits, _job)


def _write(directory: Path, trainer: ParmTrainer, settings: ParmSettings) -> None:
    import torch

    from trimtab.models.adapters.bilinear import write

    write(directory, trainer.cores.tensors(), dtype=getattr(torch, settings.save_dtype))


def _evaluated(trainer: ParmTrainer) -> Facts:
    facts = evaluation(trainer)
    return {**facts, "objectives": {name: _at_vectors(trainer, name) for name in trainer.eval_dataset}}


def _at_vectors(trainer: ParmTrainer, name: str) -> Facts:
    """The accuracy of one objective's held-out pairs at each corner and in the middle, with its interval."""
    accuracies = {probe: trainer.accuracies[name, probe] for probe in (*trainer.names, MIDDLE)}
    return {
        "num_eval_pairs": len(trainer.held_prompts[name]),
        "accuracy_at": {probe: [one.value, one.low, one.high] for probe, one in accuracies.items()},
    }


def _about(names: tuple[str, ...]) -> About:
    vector = ", ".join([f"1/{len(names)}"] * len(names))
    return About(
        f"trained as a preference-aware autoregressive reward model (PARM, arXiv 2505.06274) of {', '.join(names)}: at "
        "a preference vector, one number of at least 0 for each of these that add up to 1, it is an autoregressive "
        "reward model that weighs them so. It steers a frozen model with the same vocabulary, token by token.",
        (
            "model = trimtab.load_model({base})",
            f'guide = trimtab.load_guide("path/to/this/directory", preference=({vector}))',
            'decoder = trimtab.Decoder(model, guides={{"guide": guide}})',
        ),
        measured=_measured_lines,
    )


def _measured_lines(metrics: Facts) -> list[str]:
    if "eval_accuracy" not in metrics:
        return ["No pairs were held out, so nothing was measured."]
    names = list(metrics["objectives"])
    head = ["pairs of", "number", *(f"at {name} alone" for name in names), "in the middle"]
    rows = [
        [
            name,
            str(objective["num_eval_pairs"]),
            *("{:.3f} [{:.3f}, {:.3f}]".format(*objective["accuracy_at"][probe]) for probe in (*names, MIDDLE)),
        ]
        for name, objective in metrics["objectives"].items()
    ]
    few = few_prompts(metrics)
    return [
        "Accuracy on pairs that were not trained on (share whose preferred response has the higher reward, with its "
        f"95 % interval, Wilson, over prompts; a coin gets 0.5), by the preference vector:{few and f' {few}'}",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
    ]
