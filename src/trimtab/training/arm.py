"""`train_arm`: an autoregressive reward model from preference pairs (GenARM, ICLR 2025, arXiv 2410.08193).

A causal language model π_r is trained so that Σ_t log π_r(y_t | x, y_<t) is higher for preferred responses; its
log-probabilities then steer any frozen model with the same vocabulary (`guides.arm`).

Where it differs from the paper and its released code: no LoRA dropout unless asked for (it costs time on a CPU and
adds noise to sums over hundreds of tokens); a short warm-up; responses end with the token that ends a turn in the
model's own chat template; pairs that share a response share its row of the batch (the loss is the same).
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from trimtab.errors import CheckpointError, DataError, MissingExtraError, OptionError
from trimtab.loading import DEMO_HUB_ID, load_model, new_directory, read_guide_card
from trimtab.training import card, checkpoints
from trimtab.training.data import PairData, PreferencePair, fingerprint, hold_out, sample, without_stock
from trimtab.training.settings import ArmSettings, TrainProgress
from trimtab.training.tokens import TokenData, tokenise

if TYPE_CHECKING:
    from trimtab.models.hf import HFModel
    from trimtab.training.trainer import ArmTrainer

__all__ = ["ArmResult", "ArmSettings", "TrainProgress", "train_arm"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """A finished run. The evaluation is None where no pairs were held out."""

    out: Path
    num_pairs: int
    """Distinct training pairs."""
    num_eval_pairs: int
    eval_accuracy: float | None
    """Share of the held-out pairs whose preferred response has the higher reward."""
    eval_accuracy_low: float | None
    eval_accuracy_high: float | None
    """The 95 % interval (Wilson)."""
    metrics: Mapping[str, float]
    """As in `guide.json`: the evaluation, the last line of the curve, steps and seconds, what was cut or left out."""


def train_arm(
    model: str | Path,
    pairs: Sequence[PreferencePair] | PairData,
    *,
    out: str | Path,
    eval_pairs: Sequence[PreferencePair] | PairData | None = None,
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
    is full: the last good checkpoint survives), NotFiniteError where the loss diverges.
    """
    out, settings = Path(out), settings or ArmSettings()
    _require_extra()
    checkpoints.check_output(out, resume=resume, overwrite=overwrite)
    data = _Data(pairs, eval_pairs, settings)
    if resume and not checkpoints.workspace_of(out).exists() and out.exists():
        return _finished(out, data)
    host = load_model(
        model,
        dtype=_load_dtype(settings),
        device="cpu",  # the trainer moves it to its process's device
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    if host.tokenizer is None:
        raise CheckpointError(f"{model} has no tokenizer, so pairs of text cannot be read. Put its files there.")
    result = _run(host, data, out, settings, resume=resume, progress=progress)
    if push_to_hub is not None:
        _push(out, push_to_hub)
    return result


class _Data:
    """Training and held-out pairs, with their account."""

    def __init__(
        self,
        pairs: Sequence[PreferencePair] | PairData,
        eval_pairs: Sequence[PreferencePair] | PairData | None,
        settings: ArmSettings,
    ) -> None:
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
        self.num_skipped = pairs.num_skipped if isinstance(pairs, PairData) else 0
        self.card = {
            "fingerprint": fingerprint(self.train),
            "eval_fingerprint": fingerprint(self.held),
            "files": list(pairs.names) if isinstance(pairs, PairData) else [],
            "eval_files": list(eval_pairs.names) if isinstance(eval_pairs, PairData) else [],
            "num_pairs": len(self.train),
        }


def _plain(pairs: Sequence[PreferencePair] | PairData) -> Sequence[PreferencePair]:
    return pairs.pairs if isinstance(pairs, PairData) else pairs


def _run(
    host: HFModel,
    data: _Data,
    out: Path,
    settings: ArmSettings,
    *,
    resume: bool,
    progress: Callable[[TrainProgress], None] | None,
) -> ArmResult:
    from trimtab.training.trainer import build_trainer, processes, trainer_config

    train, held = (_tokens(host, pairs, settings) for pairs in (data.train, data.held))
    description = _description(host, data, settings)
    workspace = checkpoints.workspace_of(out)
    config = trainer_config(settings, workspace)
    group = processes(config)
    group.wait_for_everyone()  # every process has looked at the output before one of them writes
    if group.is_main_process:
        checkpoints.open_workspace(out, {**description, "num_processes": group.num_processes}, resume=resume)
        checkpoints.last_good(workspace, clean=True)
    group.wait_for_everyone()
    start = checkpoints.last_good(workspace)
    if group.is_main_process:
        checkpoints.cut_curve(workspace / "metrics.jsonl", checkpoints.step_of(start))
    trainer = build_trainer(host, train, held, settings, config, progress)
    started = time.monotonic()
    _train(trainer, workspace, start)
    metrics = {**_evaluated(trainer, held), **_account(trainer, train, data, time.monotonic() - started)}
    if group.is_main_process:
        with new_directory(out, overwrite=True) as temporary:
            _write(temporary, trainer, host, settings, {**description, "metrics": metrics})
            shutil.copy2(workspace / "metrics.jsonl", temporary / "metrics.jsonl")
        shutil.rmtree(workspace)
    group.wait_for_everyone()
    return _result(out, metrics, data.card)


def _tokens(host: HFModel, pairs: Sequence[PreferencePair], settings: ArmSettings) -> TokenData:
    if not pairs:
        return TokenData((), 0, 0, 0)
    assert host.tokenizer is not None
    lengths = {"max_length": settings.max_length, "max_prompt_length": settings.max_prompt_length}
    if host.max_length is not None and settings.max_length > host.max_length:
        raise OptionError(
            f"max_length {settings.max_length} is more than the {host.max_length} tokens that {host.name} can hold. "
            "Give a smaller one."
        )
    return tokenise(pairs, host.tokenizer, eos_ids=host.eos_ids, **lengths)


def _description(host: HFModel, data: _Data, settings: ArmSettings) -> dict[str, Any]:
    """What a guide is, but for what training it gives: the part of `guide.json` that a resumed run must share."""
    assert host.tokenizer is not None
    return {
        "format": 1,
        "kind": "arm",
        "form": "full" if settings.full else "lora",
        "base": host.describe(),
        "vocabulary": {"fingerprint": host.tokenizer.fingerprint, "size": len(host.tokenizer.tokens)},
        "hyperparameters": _plain_types(dataclasses.asdict(settings)),
        "data": data.card,
    }


def _plain_types(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _train(trainer: ArmTrainer, workspace: Path, start: Path | None) -> None:
    """Train to the end. Raises CheckpointError where a checkpoint could not be written."""
    if start is not None:
        log.info("continuing from %s", start.name)
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        unfinished = [path for path in workspace.glob("checkpoint-*") if not checkpoints.is_whole(path)]
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not unfinished and not full:
            raise
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        good = checkpoints.last_good(workspace)
        raise CheckpointError(
            f"A checkpoint could not be written to {workspace} ({error}). "
            f"{f'{good.name} is whole' if good else 'There is none before it'}: make room, then continue with --resume."
        ) from error


def _evaluated(trainer: ArmTrainer, held: TokenData) -> dict[str, Any]:
    if not held.pairs:
        return {"num_eval_pairs": 0}
    found = next((line for line in reversed(trainer.state.log_history) if "eval_num_correct" in line), None)
    if found is None or found["step"] != trainer.state.global_step:
        found = trainer.evaluate()
    num_correct, num_pairs = int(found["eval_num_correct"]), int(found["eval_num_pairs"])
    low, high = card.proportion_interval(num_correct, num_pairs)
    return {
        "eval_accuracy": num_correct / num_pairs,
        "eval_accuracy_low": low,
        "eval_accuracy_high": high,
        "num_eval_pairs": num_pairs,
        "eval_loss": found["eval_loss"],
        "eval_margin": found["eval_margin"],
    }


def _account(trainer: ArmTrainer, train: TokenData, data: _Data, seconds: float) -> dict[str, Any]:
    line: dict[str, Any] = next((line for line in reversed(trainer.state.log_history) if "accuracy" in line), {})
    return {
        **{f"train_{key}": line[key] for key in ("loss", "accuracy", "margin") if key in line},
        "num_steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "num_tokens": train.num_tokens,
        "num_prompts_cut": train.num_prompts_cut,
        "num_responses_cut": train.num_responses_cut,
        "num_dropped": train.num_dropped,
        "num_skipped": data.num_skipped,
        "num_stock": data.num_stock,
    }


def _write(
    directory: Path, trainer: ArmTrainer, host: HFModel, settings: ArmSettings, facts: Mapping[str, Any]
) -> None:
    """The guide's files into an empty directory."""
    import torch

    assert host.tokenizer is not None
    trained, dtype = trainer.accelerator.unwrap_model(trainer.model), getattr(torch, settings.save_dtype)
    if settings.full:
        trained.to(dtype).save_pretrained(directory)
        host.tokenizer.hf.save_pretrained(directory)
    else:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = get_peft_model_state_dict(trained, save_embedding_layers=False)
        tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        adapter = trained.peft_config["default"]
        adapter.base_model_name_or_path = DEMO_HUB_ID if host.name == "demo" else host.name
        adapter.inference_mode = True
        adapter.save_pretrained(str(directory))
    card.write_cards(directory, {**facts, "versions": card.versions()})


def _finished(out: Path, data: _Data) -> ArmResult:
    """The result of a run that came to its end before."""
    facts = read_guide_card(out)
    if facts.get("data") != data.card:
        raise OptionError(
            f"{out} is a finished guide trained on other data, so there is nothing to continue. "
            "Give --overwrite to replace it, or another path."
        )
    log.info("%s is finished; nothing is left to do", out)
    return _result(out, facts["metrics"], facts["data"])


def _result(out: Path, metrics: Mapping[str, Any], data: Mapping[str, Any]) -> ArmResult:
    return ArmResult(
        out=out,
        num_pairs=data["num_pairs"],
        num_eval_pairs=metrics["num_eval_pairs"],
        eval_accuracy=metrics.get("eval_accuracy"),
        eval_accuracy_low=metrics.get("eval_accuracy_low"),
        eval_accuracy_high=metrics.get("eval_accuracy_high"),
        metrics=dict(metrics),
    )


def _load_dtype(settings: ArmSettings) -> str:
    """A frozen base may be kept in bfloat16; weights that are trained are kept in float32."""
    from trimtab.training.trainer import uses_bfloat16

    return "bfloat16" if uses_bfloat16(settings) and not settings.full else "float32"


def _require_extra() -> None:
    for package in ("trl", "peft", "datasets", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "train", "Training")


def _push(out: Path, repository: str) -> None:
    from accelerate import PartialState
    from huggingface_hub import HfApi

    if PartialState().is_main_process:
        api = HfApi()
        name = api.create_repo(repository, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=out, commit_message="A guide trained with trimtab")
