"""What runs on preference pairs share: the account of the pairs, and what is said about the trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from trimtab.errors import DataError, OptionError, naming
from trimtab.prompts import check_ids
from trimtab.storage.card_values import sign_accuracy
from trimtab.training.pairs.data import PairData, PreferencePair, fingerprint, hold_out, sample, without_stock
from trimtab.training.pairs.tokens import TokenData, tokenise
from trimtab.training.run import run
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.card import About
from trimtab.training.run.identity import Facts
from trimtab.training.run.run import Job, Training, check_length
from trimtab.training.run.settings import PairSettings

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from trimtab.models.hf import HFModel
    from trimtab.training.pairs.trainer import PairTrainer
    from trimtab.training.run.trainer import TrainerParts

log = logging.getLogger(__name__)

Pairs = Sequence[PreferencePair] | PairData
GivenT = TypeVar("GivenT")
SettingsT = TypeVar("SettingsT", bound=PairSettings)


class HasCard(Protocol):
    """Pairs with their account."""

    @property
    def card(self) -> Facts:
        """`data` of a `guide.json`."""


class HasCounts(Protocol):
    """Pairs with the number of those that were left out."""

    @property
    def num_skipped(self) -> int:
        """Lines that could not be used."""

    @property
    def num_stock(self) -> int:
        """Pairs with a response that answers many different prompts."""


SplitT = TypeVar("SplitT", bound=HasCard)


class PairSplit:
    """Training and held-out pairs (`train`, `held`), with their account (`card`)."""

    def __init__(self, pairs: Pairs, eval_pairs: Pairs | None, settings: PairSettings) -> None:
        for given in (pairs, eval_pairs):
            if given is not None and not _plain(given):
                raise DataError("There is no preference pair. Give at least one.")
        limit = settings.max_prompts_per_response
        train = without_stock(_plain(pairs), limit)
        self.num_stock = len(_plain(pairs)) - len(train)
        held: list[PreferencePair] = []
        if eval_pairs is not None:
            held = without_stock(_plain(eval_pairs), limit)
            self.num_stock += len(_plain(eval_pairs)) - len(held)
        elif settings.eval_share > 0:
            train, held = hold_out(train, settings.eval_share, seed=settings.seed)
        self.train = sample(train, settings.max_pairs or len(train), seed=settings.seed)
        self.held = held
        if settings.eval_steps and not held:
            raise naming(
                OptionError,
                "{eval_steps} is {0}, and no pairs are held out to evaluate. Give {eval_pairs}, an {eval_share} above "
                "0, or no {eval_steps}.",
                settings.eval_steps,
            )
        self.num_skipped = pairs.num_skipped if isinstance(pairs, PairData) else 0
        self.card = {
            "fingerprint": fingerprint(self.train),
            "eval_fingerprint": fingerprint(self.held),
            "files": list(pairs.names) if isinstance(pairs, PairData) else [],
            "eval_files": list(eval_pairs.names) if isinstance(eval_pairs, PairData) else [],
            "num_pairs": len(self.train),
        }


def _plain(pairs: Pairs) -> Sequence[PreferencePair]:
    return pairs.pairs if isinstance(pairs, PairData) else pairs


class Lengths(Protocol):
    """The settings that say how much of a pair is kept."""

    @property
    def max_length(self) -> int: ...
    @property
    def max_prompt_length(self) -> int: ...


TokenSettingsT = TypeVar("TokenSettingsT", bound=Lengths)


def tokens_of(host: HFModel, pairs: Sequence[PreferencePair], settings: Lengths) -> TokenData:
    """Pairs as the ids that decoding will see.

    Raises OptionError for more tokens than the model can hold, PromptError for a token that it has no row for.
    """
    if not pairs:
        return TokenData((), 0, 0, 0)
    assert host.tokenizer is not None
    check_length(host, settings.max_length)
    log.info("reading %s pairs into tokens", f"{len(pairs):,}")
    lengths = {"max_length": settings.max_length, "max_prompt_length": settings.max_prompt_length}
    data = tokenise(pairs, host.tokenizer, eos_ids=host.eos_ids, **lengths)
    check_ids(host, [max(map(max, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))) for pair in data.pairs])
    return data


def token_job(
    host: HFModel,
    split: PairSplit,
    settings: TokenSettingsT,
    arguments: RunArguments,
    *,
    config: Callable[[TokenSettingsT, Path], TrainingArguments],
    parts: Callable[[HFModel, TokenData, TokenData, TokenSettingsT, int], TrainerParts[Trainer]],
    about: About,
    facts: Mapping[str, str],
    in_shards: bool = False,
    evaluated: Callable[[Any], Facts] | None = None,
) -> Job:
    """The job of a method that reads pairs as the ids that decoding will see.

    `config` makes TRL's configuration of the settings and the workspace; `parts` makes what the trainer is built of
    from the model, the pairs to train on, those held out, the settings and the number of processes; `evaluated` is as
    in `pair_metrics`.
    """
    train, held = (tokens_of(host, pairs, settings) for pairs in (split.train, split.held))
    made = config(settings, arguments.workspace)
    return Job(
        config=made,
        parts=lambda: parts(host, train, held, settings, made.world_size),
        measure=lambda trainer, seconds: {"metrics": pair_metrics(trainer, split, train.counts, seconds, evaluated)},
        about=about,
        facts=facts,
        in_shards=in_shards,
    )


@dataclass(frozen=True, slots=True)
class PairMethod(Generic[GivenT, SettingsT, SplitT]):
    """What one training on preference pairs does in its own way; the rest is `train_on_pairs`."""

    kind: str
    """As in `guide.json`."""
    split: Callable[[GivenT, GivenT | None, SettingsT], SplitT]
    """Makes what is trained on and what is held out of pairs, evaluation pairs and settings."""
    job: Callable[[HFModel, SplitT, SettingsT, RunArguments], Job]
    """What is made of the loaded model; called after the road's own checks, so it may import TRL."""


def train_on_pairs(
    method: PairMethod[GivenT, SettingsT, SplitT],
    model: str | Path,
    pairs: GivenT,
    eval_pairs: GivenT | None,
    settings: SettingsT,
    arguments: RunArguments,
) -> PairResult:
    """The whole road of a training on preference pairs: what every `train_...` function on pairs does."""
    run.require_extra()
    arguments.check()
    split = method.split(pairs, eval_pairs, settings)
    training = Training(kind=method.kind, model=model, data=split.card, settings=settings, arguments=arguments)
    facts = run.train(training, lambda: lambda host, settled: method.job(host, split, settled, arguments))
    return result_of(arguments.out, facts)


@dataclass(frozen=True, slots=True)
class PairResult:
    """A finished run. The evaluation is None where no pairs were held out."""

    out: Path
    num_pairs: int
    """Distinct training pairs."""
    num_eval_pairs: int
    eval_accuracy: float | None
    """Share of the held-out pairs whose preferred response has the higher reward."""
    eval_accuracy_low: float | None
    eval_accuracy_high: float | None
    """The 95 % interval (Wilson), over prompts where several pairs share one."""
    metrics: Mapping[str, Any]
    """As in `guide.json`: the evaluation, the last line of the curve, steps and seconds, what was cut or left out."""


def result_of(out: Path, facts: Facts) -> PairResult:
    """The result that a finished run's `guide.json` tells."""
    metrics = facts["metrics"]
    return PairResult(
        out=out,
        num_pairs=facts["data"]["num_pairs"],
        num_eval_pairs=metrics["num_eval_pairs"],
        eval_accuracy=metrics.get("eval_accuracy"),
        eval_accuracy_low=metrics.get("eval_accuracy_low"),
        eval_accuracy_high=metrics.get("eval_accuracy_high"),
        metrics=dict(metrics),
    )


def pair_metrics(
    trainer: PairTrainer,
    split: HasCounts,
    counts: Mapping[str, int],
    seconds: float,
    evaluated: Callable[[Any], Facts] | None = None,
) -> Facts:
    """`metrics` of `guide.json`: the evaluation, the last line of the curve, steps and seconds, what was left out.

    `counts` is what the method's tokenisation cut or dropped; `evaluated` is called where pairs are held out (None:
    `evaluation`). A sign that seems to be turned is warned about.
    """
    line: Facts = next((line for line in reversed(trainer.state.log_history) if "accuracy" in line), {})
    has_pairs = trainer.eval_dataset is not None
    found = (evaluated or evaluation)(trainer) if has_pairs else {"num_eval_pairs": 0}
    _warn_of_a_turned_sign(found)
    return {
        **found,
        **{f"train_{key}": line[key] for key in ("loss", "accuracy", "margin") if key in line},
        "num_steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        **counts,
        "num_skipped": split.num_skipped,
        "num_stock": split.num_stock,
    }


def evaluation(trainer: PairTrainer) -> Facts:
    """What the evaluation of the last step says, which is made now where it has not been made yet."""
    lines = reversed(trainer.state.log_history)
    line = next((line for line in lines if "eval_num_correct" in line), None)
    if line is None or line["step"] != trainer.state.global_step or not trainer.is_evaluated:
        line = trainer.evaluate()
    accuracy = trainer.accuracy()
    return {
        "eval_accuracy": accuracy.value,
        "eval_accuracy_low": accuracy.low,
        "eval_accuracy_high": accuracy.high,
        "num_eval_pairs": int(line["eval_num_pairs"]),
        "num_eval_prompts": trainer.num_held_prompts,
        "eval_loss": line["eval_loss"],
        "eval_margin": line["eval_margin"],
    }


def _warn_of_a_turned_sign(facts: Facts) -> None:
    accuracy = sign_accuracy(facts)
    if accuracy is not None and accuracy.high < 0.5:
        log.warning(
            "%.3f of %d held-out pairs are ranked as they were labelled (95 %% interval %.3f to %.3f), fewer than a "
            "coin would: the sign may be turned. Check that `chosen` is the better answer in the data",
            *(accuracy.value, facts["num_eval_pairs"], accuracy.low, accuracy.high),
        )
