"""The life of every run: from what is asked for to a directory that appears whole.

`once` and `publish` are the same for all trainings: a run that is finished is not trained again, and what is trained
appears in one rename. Those that train a language model with TRL go one road further: what is asked for is a
`Training`, what a method makes of the loaded model is a `Job`, and `train` does the rest: the workspace, resuming after
the worst, the curve, the process group (`checkpoints`, `curve`, `saving`).
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import safetensors

from trimtab.errors import CheckpointError, OptionError, naming, require
from trimtab.storage.directories import DEMO_HUB_ID
from trimtab.storage.files import new_directory
from trimtab.storage.loading import load_model
from trimtab.training.run import card, checkpoints
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.identity import Facts
from trimtab.training.run.interruption import Interrupted, interruptible
from trimtab.training.run.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor
    from transformers import Trainer, TrainingArguments

    from trimtab.models.hf import HFModel
    from trimtab.training.run.saving import Saving
    from trimtab.training.run.trainer import TrainerParts

log = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT", bound=RunSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(Generic[SettingsT]):
    """A training that is asked for, before its model is loaded."""

    kind: str
    """As in `guide.json`."""
    model: str | Path
    """A name as in `load_model`."""
    data: Facts
    """The account of the data, which a finished run must share, and so it must the settings."""
    settings: SettingsT
    arguments: RunArguments
    facts: Facts = field(default_factory=dict)
    """Further parts of `guide.json` that are known before the model is loaded."""

    @property
    def known(self) -> Facts:
        """The parts of `guide.json` that are known before the model is loaded."""
        return {"kind": self.kind, "data": self.data, **self.facts, "hyperparameters": hyperparameters(self.settings)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a method makes of a loaded model and its data."""

    config: TrainingArguments
    """Its `output_dir` is the workspace (`configs.run_options`)."""
    parts: Callable[[], TrainerParts[Trainer]]
    """What the trainer is built of, a `saving.Windowed`; called once the workspace is ready."""
    measure: Callable[[Trainer, float], Facts]
    """(trainer, seconds of training) to further sections of `guide.json`, `metrics` among them; every process calls
    it."""
    about: card.About
    """For the model card."""
    facts: Facts = field(default_factory=dict)
    """What `guide.json` says of this method beside what it says of any; a resumed run must share it."""
    write: Callable[[Path, Trainer, Mapping[str, Tensor]], None] | None = None
    """(directory, trainer, `sharding.whole_weights`): the weights into an empty directory; None: `write_weights`."""
    in_shards: bool = False
    """Whether the method can train weights that are spread over the processes (`sharding`)."""


def once(arguments: RunArguments, known: Facts, work: Callable[[], Facts]) -> Facts:
    """`guide.json` of what `work` trains now, or of a run that had come to its end before.

    `known` is what a finished run must share: the parts of `guide.json` that are known before the model is loaded.
    """
    if arguments.is_finished:
        return checkpoints.finished(arguments.out, known)
    facts = work()
    if arguments.push_to_hub is not None:
        push(arguments.out, arguments.push_to_hub)
    return facts


def publish(arguments: RunArguments, write: Callable[[Path], None]) -> None:
    """Let the output appear whole: what `write` puts into an empty directory, and the curve. The workspace goes."""
    line_file = arguments.workspace / checkpoints.CURVE
    with new_directory(arguments.out, overwrite=True) as temporary:
        write(temporary)
        if line_file.exists():
            shutil.copy2(line_file, temporary / checkpoints.CURVE)
    shutil.rmtree(arguments.workspace)


def train(training: Training[SettingsT], prepare: Callable[[], Callable[[HFModel, SettingsT], Job]]) -> Facts:
    """The whole road from a name: `guide.json` of what is trained now, or of a run that had come to its end before.

    `prepare` is called where there is something to train: it makes what has to be there before the model is loaded,
    and gives what makes a job of the model and of the settings, in which a dtype that was left open may be settled.
    """

    def work() -> Facts:
        from trimtab.training.run import precision

        arguments, make_job = training.arguments, prepare()
        begun = precision.as_begun(training.settings, arguments)
        host = load_host(
            training.model,
            begun,
            trust_remote_code=arguments.trust_remote_code,
            revision=arguments.revision,
        )
        settings = precision.measured(begun, host.module, arguments)
        if settings is not begun and not settings.full:
            precision.compact(host.module)
        return carry_out(dataclasses.replace(training, settings=settings), host, make_job(host, settings))

    return once(training.arguments, training.known, work)


def carry_out(training: Training[SettingsT], host: HFModel, job: Job) -> Facts:
    """Train, measure and write; the content of `guide.json`.

    Raises CheckpointError where the disk is full, Interrupted where a signal ended it (`interruption`).
    """
    from trimtab.training.run import sharding
    from trimtab.training.run.configs import processes
    from trimtab.training.run.saving import Saving

    arguments, settings = training.arguments, training.settings
    description = {**describe(training, host), **job.facts, **training.facts}
    sharding.check_launch(job.config, in_shards=job.in_shards)
    group = processes(job.config)
    start = _opened(arguments, {**description, "num_processes": group.num_processes}, group)
    trainer = _built(training, job, start, group.is_main_process)
    with interruptible("step") as interruption:
        saving = Saving(trainer, settings, interruption, start)
        started = time.monotonic()
        _train(trainer, arguments.workspace, start)
        measured = None if saving.stopped else _measured(job, trainer, saving, time.monotonic() - started)
    if measured is None:
        raise Interrupted(trainer.state.global_step, trainer.state.max_steps, arguments.workspace)
    facts = {**description, **measured, "versions": card.versions()}
    weights = sharding.whole_weights(trainer)

    def write(directory: Path) -> None:
        if job.write is None:
            write_weights(directory, trainer, weights, host, settings)
        else:
            job.write(directory, trainer, weights)
        card.write_cards(directory, facts, job.about)

    if group.is_main_process:
        publish(arguments, write)
    group.wait_for_everyone()
    return facts


def _opened(arguments: RunArguments, description: Facts, group: PartialState) -> Path | None:
    """Open the workspace in the first process; the checkpoint to go on from, None at the beginning of a run."""
    workspace = arguments.workspace
    group.wait_for_everyone()  # every process has looked at the output before one of them writes
    if group.is_main_process:
        checkpoints.open_workspace(arguments.out, description, resume=arguments.resume)
    group.wait_for_everyone()
    start = checkpoints.last_good(workspace)
    if group.is_main_process:
        checkpoints.cut_curve(workspace / checkpoints.CURVE, checkpoints.step_of(start))
    return start


def _built(training: Training[SettingsT], job: Job, start: Path | None, is_main: bool) -> Trainer:
    """The trainer. Where the settings are refused, a workspace that holds no checkpoint is not left in the way."""
    from trimtab.training.run.trainer import build_trainer

    try:
        return build_trainer(job.parts(), training.settings, job.config, training.arguments)
    except OptionError:
        if is_main and start is None:
            shutil.rmtree(training.arguments.workspace, ignore_errors=True)
        raise


def _measured(job: Job, trainer: Trainer, saving: Saving, seconds: float) -> Facts | None:
    """What `job.measure` says; None where it was interrupted, once the last step's checkpoint is there."""
    from trimtab.training.run.saving import StopMeasuring

    try:
        return job.measure(trainer, seconds)
    except StopMeasuring:
        saving.ensure_saved()
        return None


def _train(trainer: Trainer, workspace: Path, start: Path | None) -> None:
    """Train to the end. Raises CheckpointError where a checkpoint could not be written."""
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        unfinished = [path for path in workspace.glob("checkpoint-*") if not checkpoints.is_whole(path)]
        if not unfinished and not checkpoints.is_full_disk(error):
            raise
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        raise checkpoints.not_written(workspace, error) from error


def require_extra() -> None:
    """Raise MissingExtraError where a package that every run needs is not installed."""
    require("trl", "peft", "datasets", "accelerate", extra="train", purpose="Training")


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


def describe(training: Training[SettingsT], host: HFModel) -> Facts:
    """What a guide is, but for what training it gives: the part of `guide.json` that a resumed run must share."""
    assert host.tokenizer is not None
    return {
        "format": 1,
        "kind": training.kind,
        "form": "full" if training.settings.full else "lora",
        "base": host.describe(),
        "vocabulary": {"fingerprint": host.tokenizer.fingerprint, "size": len(host.tokenizer.tokens)},
        "hyperparameters": hyperparameters(training.settings),
        "data": dict(training.data),
    }


def hyperparameters(settings: RunSettings) -> Facts:
    """The settings as in `guide.json`."""
    values = dataclasses.asdict(settings)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def write_weights(
    directory: Path, trainer: Trainer, weights: Mapping[str, Tensor], host: HFModel, settings: RunSettings
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
        names = {name.rsplit(".", 1)[-1] for name, _ in trained.get_base_model().named_modules()}
        adapter.modules_to_save = sorted(set(adapter.modules_to_save) & names)
    adapter.save_pretrained(str(directory))


def push(out: Path, repository: str) -> None:
    """Upload a finished directory to the hub; the first process does."""
    from accelerate import PartialState
    from huggingface_hub import HfApi

    if PartialState().is_main_process:
        api = HfApi()
        name = api.create_repo(repository, exist_ok=True).repo_id
        api.upload_folder(repo_id=name, folder_path=out, commit_message="Trained with trimtab")
