"""The road of every run that trains a language model with TRL, from a name to a directory that appears whole.

A method brings a `Job`: what the run is, TRL's configuration, how its trainer is built, what is measured at the end and
how the weights are written. Checking the output, the workspace, resuming after the worst, the curve, the process group
and the directory's place are the same for all (`checkpoints`, `curve`).
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from trimtab.errors import CheckpointError, MissingExtraError, OptionError, naming
from trimtab.storage.directories import DEMO_HUB_ID
from trimtab.storage.files import new_directory
from trimtab.storage.loading import load_model
from trimtab.training.run import card, checkpoints
from trimtab.training.run.interruption import Interrupted, interruptible
from trimtab.training.run.settings import RunSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainingArguments

    from trimtab.models.hf import HFModel
    from trimtab.training.run.saving import Saving

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What a method brings to the road."""

    out: Path
    description: Mapping[str, Any]
    """The part of `guide.json` that is known before training; a resumed run must share it (`describe`)."""
    config: TrainingArguments
    """Its `output_dir` is `checkpoints.workspace_of(out)` (`configs.run_options`)."""
    build: Callable[[], Any]
    """The trainer, a `saving.Windowed` with the callback of `curve.curve`; called once the workspace is ready."""
    measure: Callable[[Any, float], Mapping[str, Any]]
    """(trainer, seconds of training) to further sections of `guide.json`, `metrics` among them; every process calls
    it."""
    write: Callable[[Path, Any, Mapping[str, Tensor]], None]
    """(directory, trainer, `sharding.whole_weights`): the weights into an empty directory (`write_weights`)."""
    about: card.About
    """For the model card."""
    settings: RunSettings
    """When it is saved."""
    in_shards: bool = False
    """Whether the method can train weights that are spread over the processes (`sharding`)."""


def train(
    kind: str,
    data: Mapping[str, Any],
    make_job: Callable[[HFModel], Job],
    model: str | Path,
    settings: RunSettings,
    *,
    out: Path,
    resume: bool,
    trust_remote_code: bool,
    revision: str | None,
    push_to_hub: str | None,
) -> dict[str, Any]:
    """The whole road from a name: `guide.json` of what is trained now, or of a run that had come to its end before.

    `data` is the account of the data, which a finished run must share, and so it must the settings.
    """
    if is_finished(out, resume=resume):
        return checkpoints.finished(out, {"kind": kind, "data": data, "hyperparameters": hyperparameters(settings)})
    host = load_host(model, settings, trust_remote_code=trust_remote_code, revision=revision)
    facts = carry_out(make_job(host), resume=resume)
    if push_to_hub is not None:
        push(out, push_to_hub)
    return facts


def carry_out(job: Job, *, resume: bool) -> dict[str, Any]:
    """Train, measure and write; the content of `guide.json`.

    Raises CheckpointError where the disk is full, Interrupted where a signal ended it (`interruption`).
    """
    from trimtab.training.run import sharding
    from trimtab.training.run.configs import processes
    from trimtab.training.run.saving import Saving

    workspace = checkpoints.workspace_of(job.out)
    sharding.check_launch(job.config, in_shards=job.in_shards)
    group = processes(job.config)
    group.wait_for_everyone()  # every process has looked at the output before one of them writes
    if group.is_main_process:
        checkpoints.open_workspace(job.out, {**job.description, "num_processes": group.num_processes}, resume=resume)
    group.wait_for_everyone()
    start = checkpoints.last_good(workspace)
    if group.is_main_process:
        checkpoints.cut_curve(workspace / "metrics.jsonl", checkpoints.step_of(start))
    trainer = _built(job, workspace, start, group.is_main_process)
    with interruptible("step") as interruption:
        saving = Saving(trainer, job.settings, interruption, start)
        started = time.monotonic()
        _train(trainer, workspace, start)
        measured = None if saving.stopped else _measured(job, trainer, saving, time.monotonic() - started)
    if measured is None:
        raise Interrupted(trainer.state.global_step, trainer.state.max_steps, workspace)
    facts = {**job.description, **measured, "versions": card.versions()}
    weights = sharding.whole_weights(trainer)
    if group.is_main_process:
        with new_directory(job.out, overwrite=True) as temporary:
            job.write(temporary, trainer, weights)
            card.write_cards(temporary, facts, job.about)
            if (workspace / "metrics.jsonl").exists():
                shutil.copy2(workspace / "metrics.jsonl", temporary / "metrics.jsonl")
        shutil.rmtree(workspace)
    group.wait_for_everyone()
    return facts


def _built(job: Job, workspace: Path, start: Path | None, is_main: bool) -> Any:
    """The trainer. Where the settings are refused, a workspace that holds no checkpoint is not left in the way."""
    try:
        return job.build()
    except OptionError:
        if is_main and start is None:
            shutil.rmtree(workspace, ignore_errors=True)
        raise


def _measured(job: Job, trainer: Any, saving: Saving, seconds: float) -> Mapping[str, Any] | None:
    """What `job.measure` says; None where it was interrupted, once the last step's checkpoint is there."""
    from trimtab.training.run.saving import StopMeasuring

    try:
        return job.measure(trainer, seconds)
    except StopMeasuring:
        saving.ensure_saved()
        return None


def _train(trainer: Any, workspace: Path, start: Path | None) -> None:
    """Train to the end. Raises CheckpointError where a checkpoint could not be written."""
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


def require_extra() -> None:
    """Raise MissingExtraError where a package that every run needs is not installed."""
    for package in ("trl", "peft", "datasets", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "train", "Training")


def load_host(
    model: str | Path, settings: RunSettings, *, trust_remote_code: bool = False, revision: str | None = None
) -> HFModel:
    """The model to be trained, with its tokenizer, on the CPU: the trainer moves it to its process's device.

    A frozen base may be kept in bfloat16; weights that are trained are kept in float32. Raises CheckpointError for a
    model without a tokenizer.
    """
    from trimtab.training.run.configs import uses_bfloat16

    log.info("loading %s", model)
    host = load_model(
        model,
        dtype="bfloat16" if uses_bfloat16(settings) and not settings.full else "float32",
        device="cpu",
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    if host.tokenizer is None:
        raise CheckpointError(f"{model} has no tokenizer, so pairs of text cannot be read. Put its files there.")
    return host


def check_length(host: HFModel, max_length: int) -> None:
    """Raise OptionError for more tokens than the model can hold."""
    if host.max_length is not None and max_length > host.max_length:
        raise naming(
            OptionError,
            "{max_length} {0} is more than the {1} tokens that {2} can hold. Give a smaller one.",
            *(max_length, host.max_length, host.name),
        )


def describe(kind: str, host: HFModel, settings: RunSettings, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a guide is, but for what training it gives: the part of `guide.json` that a resumed run must share."""
    assert host.tokenizer is not None
    return {
        "format": 1,
        "kind": kind,
        "form": "full" if settings.full else "lora",
        "base": host.describe(),
        "vocabulary": {"fingerprint": host.tokenizer.fingerprint, "size": len(host.tokenizer.tokens)},
        "hyperparameters": hyperparameters(settings),
        "data": dict(data),
    }


def hyperparameters(settings: RunSettings) -> dict[str, Any]:
    """The settings as in `guide.json`."""
    values = dataclasses.asdict(settings)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def write_weights(
    directory: Path, trainer: Any, weights: Mapping[str, Tensor], host: HFModel, settings: RunSettings
) -> None:
    """What a trainer has trained, into an empty directory: peft's format, or transformers' with the tokenizer.

    `weights` are `sharding.whole_weights`.
    """
    import torch

    assert host.tokenizer is not None
    trained, dtype = trainer.accelerator.unwrap_model(trainer.model), getattr(torch, settings.save_dtype)
    if settings.full:
        cast = {id(weight): weight.to(dtype) for weight in weights.values()}  # those that are tied stay one tensor
        trained.save_pretrained(directory, state_dict={name: cast[id(weight)] for name, weight in weights.items()})
        trained.config.dtype = dtype  # `save_pretrained` writes that of the model in memory
        trained.config.save_pretrained(directory)
        host.tokenizer.hf.save_pretrained(directory)
        return
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    adapted = get_peft_model_state_dict(trained, dict(weights), save_embedding_layers=False)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in adapted.items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = trained.peft_config["default"]
    adapter.base_model_name_or_path = DEMO_HUB_ID if host.name == "demo" else host.name
    adapter.inference_mode = True
    if adapter.modules_to_save:  # peft adds the names of heads that this model does not have
        own = {name.rsplit(".", 1)[-1] for name, _ in trained.get_base_model().named_modules()}
        adapter.modules_to_save = sorted(set(adapter.modules_to_save) & own)
    adapter.save_pretrained(str(directory))


def is_finished(out: Path, *, resume: bool) -> bool:
    """Whether a run to be resumed came to its end before."""
    return resume and out.exists() and not checkpoints.workspace_of(out).exists()


def push(out: Path, repository: str) -> None:
    """Upload a finished directory to the hub; the first process does."""
    from accelerate import PartialState
    from huggingface_hub import HfApi

    if PartialState().is_main_process:
        api = HfApi()
        name = api.create_repo(repository, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=out, commit_message="Trained with trimtab")
