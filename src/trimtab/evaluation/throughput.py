"""How fast guided decoding is, as a ratio to transformers' own `generate` of the unguided base in the same process.

What is compared: the same prompts (token ids, all of one length, so that neither side pads), the same number of new
tokens, end-of-sequence ids ignored, both greedy or both sampling. The arms take turns, repetition by repetition, so
that a machine that slows down slows them all; the figures are medians. A short turn of each comes first and does not
count.

Peak memory is the high-water mark of what the process holds while an arm runs: on a GPU that of the allocator, else the
resident set as Linux keeps it (`VmHWM`, set back before each turn), elsewhere the highest since the process began. The
process holds every loaded model all the time, so the difference between arms is their working memory; to compare the
base alone with the base and its guides, measure each in a process of its own (`benchmarks/decode.py` does).
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch

from trimtab.core import SamplingParams, TokenIds
from trimtab.decoding.engine import GenerationEngine
from trimtab.engines.builtin import BuiltinMaker
from trimtab.engines.maker import EngineMaker, Guides
from trimtab.errors import OptionError
from trimtab.models.hf import HFModel
from trimtab.models.processor import cpu_info, num_cores
from trimtab.models.quantize.layers import kind_of
from trimtab.params import GUIDE_DRAFT, NO_DRAFT

Arm: TypeAlias = Callable[[int], int]
"""One side of a measurement: number of new tokens -> tokens made."""

WARM_UP_TOKENS = 4
_MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Workload:
    """What one measurement decodes."""

    num_new_tokens: int = 128
    num_prompt_tokens: int = 32
    temperature: float = 0.0
    num_repeats: int = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    batch: int
    weight: float | None
    """That of every guide; None: the decoder without guides."""
    draft: str
    """What guessed next tokens (`SamplingParams.draft`)."""
    dtype: str
    quantize: str | None
    """What weights of fewer bits the base has."""
    tokens_per_s: float
    base_tokens_per_s: float
    ratio_to_base: float
    peak_memory_mb: float
    base_peak_memory_mb: float
    tokens_per_s_low: float
    """The slowest repetition."""
    tokens_per_s_high: float


How: TypeAlias = tuple[float | None, str]
"""The weight of every guide (None: none runs), and what drafts."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """What makes drafts in a measurement beside those without."""

    kind: str = NO_DRAFT
    """As in `SamplingParams.draft`."""
    model: str | None = None
    """The model that drafts, where `kind` is its name."""
    copies: str | None = None
    """What weights copies of the guides are held in, which draft in their stead."""

    def kinds(self, weight: float | None, guides: Collection[str]) -> list[str]:
        """What drafts are tried at a weight: none, and those asked for; a guide's only where it runs."""
        is_guide = self.kind == GUIDE_DRAFT or self.kind in guides
        return list(dict.fromkeys([NO_DRAFT, *([self.kind] if weight or not is_guide else [])]))


NO_DRAFTS = Drafts()


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one arm."""

    seconds: float
    peak_memory_mb: float


def measure(
    model: HFModel,
    guides: Guides,
    *,
    batches: Sequence[int],
    weights: Sequence[float],
    workload: Workload,
    drafts: Drafts = NO_DRAFTS,
    engines: EngineMaker | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """The table: for each batch size, the engine without guides and with all guides at each of the weights.

    Where `drafts` are made, each of them without and with drafts; a guide's drafts only where it runs. `model` is the
    base that transformers runs; `engines` makes the engines of the same base (left out: the built-in one on `model`).
    Where an engine has to be started anew for other guides, it takes turns with the base without guides first, and
    then with them. Raises OptionError where prompt and new tokens do not fit into the model.
    """
    length = workload.num_prompt_tokens + workload.num_new_tokens
    if model.max_length is not None and length > model.max_length:
        raise OptionError(f"Prompt and new tokens make {length}; {model.name} holds {model.max_length}. Ask for fewer.")
    engines = engines or BuiltinMaker(model)
    rows: list[Row] = []
    for batch in batches:
        prompts = benchmark_prompts(model, batch, workload.num_prompt_tokens)
        base = base_arm(model, prompts, workload.temperature)
        for arms in _arms(engines, guides, weights, drafts, prompts, workload.temperature):
            base_turns, turns = _take_turns(base, arms, workload, batch, engines.device, progress)
            rows += [_row(model, batch, how, turns[how], base_turns, workload.num_new_tokens) for how in arms]
    return rows


def _arms(
    engines: EngineMaker,
    guides: Guides,
    weights: Sequence[float],
    drafts: Drafts,
    prompts: Sequence[TokenIds],
    temperature: float,
) -> Iterator[dict[How, Arm]]:
    """The arms that can take turns with each other: all of them, or one lot for each engine that has to be started."""

    def arms_of(engine: GenerationEngine, strengths: Sequence[float | None]) -> dict[How, Arm]:
        drafted = {weight: drafts.kinds(weight, guides) for weight in strengths}
        return {
            (weight, draft): engine_arm(engine, weight, prompts, temperature, draft=draft)
            for weight in strengths
            for draft in drafted[weight]
        }

    drafters = [] if drafts.model is None else [drafts.model]
    alone = arms_of(engines.make(max_rows=len(prompts), drafters=drafters), [None])
    if engines.holds_one or not guides:
        yield alone
        alone = {}
    if guides:
        engine = engines.make(guides, max_rows=len(prompts), drafters=drafters, copies=drafts.copies)
        yield {**alone, **arms_of(engine, weights)}


def benchmark_prompts(model: HFModel, batch: int, num_tokens: int) -> list[list[int]]:
    """`batch` different prompts of exactly `num_tokens` ids. Which ids they are changes no speed."""
    width = min(model.vocab_size, 1000)
    return [[(7 * position + row) % width for position in range(num_tokens)] for row in range(batch)]


def base_arm(model: HFModel, prompts: Sequence[TokenIds], temperature: float) -> Arm:
    """A run of transformers' own `generate`: number of new tokens -> tokens made."""
    input_ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}

    def run(num_new_tokens: int) -> int:
        output = model.module.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=num_new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **sampling,
        )
        return int(output.shape[0] * (output.shape[1] - input_ids.shape[1]))

    return run


def engine_arm(
    engine: GenerationEngine,
    weight: float | None,
    prompts: Sequence[TokenIds],
    temperature: float,
    *,
    draft: str = NO_DRAFT,
) -> Arm:
    """A run of an engine of ours with every guide at `weight` (None: it has no guides)."""

    def run(num_new_tokens: int) -> int:
        params = SamplingParams(
            weights={} if weight is None else dict.fromkeys(engine.guides, weight),
            max_new_tokens=num_new_tokens,
            temperature=temperature,
            ignore_eos=True,
            seed=0,
            draft=draft,
        )
        for prompt in prompts:
            engine.add(prompt, params)
        num_made = 0
        while engine.num_running or engine.num_waiting:
            for step in engine.step():
                if step.error is not None:
                    raise step.error
                num_made += step.token_id is not None
        return num_made

    return run


def _take_turns(
    base: Arm,
    arms: Mapping[How, Arm],
    workload: Workload,
    batch: int,
    device: torch.device,
    progress: Callable[[str], None] | None,
) -> tuple[list[Turn], dict[How, list[Turn]]]:
    for arm in (base, *arms.values()):
        arm(WARM_UP_TOKENS)
    base_turns: list[Turn] = []
    turns: dict[How, list[Turn]] = {how: [] for how in arms}
    for repeat in range(workload.num_repeats):
        if progress is not None:
            progress(f"batch {batch}: repetition {repeat + 1} of {workload.num_repeats}")
        base_turns.append(_turn(base, batch, workload.num_new_tokens, device))
        for how, arm in arms.items():
            turns[how].append(_turn(arm, batch, workload.num_new_tokens, device))
    return base_turns, turns


def _turn(arm: Arm, batch: int, num_new_tokens: int, device: torch.device) -> Turn:
    reset_peak_memory(device)
    _wait(device)
    started = time.perf_counter()
    num_made = arm(num_new_tokens)
    _wait(device)
    seconds = time.perf_counter() - started
    if num_made != batch * num_new_tokens:
        raise RuntimeError(f"{num_made} tokens were made, {batch * num_new_tokens} asked for: the run means nothing.")
    return Turn(seconds, peak_memory_mb(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(model: HFModel, batch: int, how: How, turns: Sequence[Turn], base: Sequence[Turn], num_new_tokens: int) -> Row:
    speeds = [batch * num_new_tokens / turn.seconds for turn in turns]
    base_speed = statistics.median(batch * num_new_tokens / turn.seconds for turn in base)
    speed = statistics.median(speeds)
    return Row(
        batch,
        *how,
        dtype=str(model.module.dtype).removeprefix("torch."),
        quantize=kind_of(model.module),
        tokens_per_s=speed,
        base_tokens_per_s=base_speed,
        ratio_to_base=speed / base_speed,
        peak_memory_mb=max(turn.peak_memory_mb for turn in turns),
        base_peak_memory_mb=max(turn.peak_memory_mb for turn in base),
        tokens_per_s_low=min(speeds),
        tokens_per_s_high=max(speeds),
    )


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new high-water mark, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)
    except OSError:
        return


def peak_memory_mb(device: torch.device) -> float:
    """The high-water mark in MiB: the allocator's on a GPU, else the resident set's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEBIBYTE
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MEBIBYTE
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def machine(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "processor": cpu_info("model name") or platform.processor() or platform.machine(),
        "num_cores": num_cores(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, as far as installed."""
    numbers = {"python": platform.python_version()}
    for name in ("trimtab", "torch", "transformers", "peft"):
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return numbers


def commit() -> str | None:
    """The commit of the checkout that trimtab runs from, `-dirty` where it was changed; None outside of one."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_report(report: Mapping[str, object], path: Path | None) -> str:
    """A benchmark's report with what it ran on, as JSON; written to a file too where one is named."""
    record = {**report, "machine": machine(torch.device("cpu")), "versions": versions()}
    text = json.dumps(record, indent=1)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    return text
