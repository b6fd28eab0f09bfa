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
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from trimtab.core import Guide, SamplingParams, TokenIds
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.models.hf import HFModel

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
    tokens_per_s: float
    base_tokens_per_s: float
    ratio_to_base: float
    peak_memory_mb: float
    base_peak_memory_mb: float
    tokens_per_s_low: float
    """The slowest repetition."""
    tokens_per_s_high: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one arm."""

    seconds: float
    peak_memory_mb: float


def measure(
    model: HFModel,
    guides: Mapping[str, Guide],
    *,
    batches: Sequence[int],
    weights: Sequence[float],
    workload: Workload,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """The table: for each batch size, the decoder without guides and with all guides at each of the weights.

    Raises OptionError where prompt and new tokens do not fit into the model.
    """
    length = workload.num_prompt_tokens + workload.num_new_tokens
    if model.max_length is not None and length > model.max_length:
        raise OptionError(f"Prompt and new tokens make {length}; {model.name} holds {model.max_length}. Ask for fewer.")
    rows: list[Row] = []
    for batch in batches:
        prompts = benchmark_prompts(model, batch, workload.num_prompt_tokens)
        arms: dict[float | None, Callable[[int], int]] = {
            weight: decoder_arm(model, guides, weight, prompts, workload.temperature)
            for weight in (None, *(weights if guides else ()))
        }
        base, turns = _take_turns(
            base_arm(model, prompts, workload.temperature), arms, workload, batch, model.device, progress
        )
        rows += [_row(batch, weight, turns[weight], base, workload.num_new_tokens) for weight in arms]
    return rows


def benchmark_prompts(model: HFModel, batch: int, num_tokens: int) -> list[list[int]]:
    """`batch` different prompts of exactly `num_tokens` ids. Which ids they are changes no speed."""
    width = min(model.vocab_size, 1000)
    return [[(7 * position + row) % width for position in range(num_tokens)] for row in range(batch)]


def base_arm(model: HFModel, prompts: Sequence[TokenIds], temperature: float) -> Callable[[int], int]:
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


def decoder_arm(
    model: HFModel, guides: Mapping[str, Guide], weight: float | None, prompts: Sequence[TokenIds], temperature: float
) -> Callable[[int], int]:
    """A run of our decoder: number of new tokens -> tokens made. Without a weight, it is given no guides."""
    given = {} if weight is None else guides
    decoder = Decoder(model, given, max_rows=len(prompts))

    def run(num_new_tokens: int) -> int:
        params = SamplingParams(
            weights={} if weight is None else dict.fromkeys(given, weight),
            max_new_tokens=num_new_tokens,
            temperature=temperature,
            ignore_eos=True,
            seed=0,
        )
        for prompt in prompts:
            decoder.add(prompt, params)
        num_made = 0
        while decoder.num_running or decoder.num_waiting:
            for step in decoder.step():
                if step.error is not None:
                    raise step.error
                num_made += step.token_id is not None
        return num_made

    return run


def _take_turns(
    base: Callable[[int], int],
    arms: Mapping[float | None, Callable[[int], int]],
    workload: Workload,
    batch: int,
    device: torch.device,
    progress: Callable[[str], None] | None,
) -> tuple[list[Turn], dict[float | None, list[Turn]]]:
    for arm in (base, *arms.values()):
        arm(WARM_UP_TOKENS)
    base_turns: list[Turn] = []
    turns: dict[float | None, list[Turn]] = {weight: [] for weight in arms}
    for repeat in range(workload.num_repeats):
        if progress is not None:
            progress(f"batch {batch}: repetition {repeat + 1} of {workload.num_repeats}")
        base_turns.append(_turn(base, batch, workload.num_new_tokens, device))
        for weight, arm in arms.items():
            turns[weight].append(_turn(arm, batch, workload.num_new_tokens, device))
    return base_turns, turns


def _turn(arm: Callable[[int], int], batch: int, num_new_tokens: int, device: torch.device) -> Turn:
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


def _row(batch: int, weight: float | None, turns: Sequence[Turn], base: Sequence[Turn], num_new_tokens: int) -> Row:
    speeds = [batch * num_new_tokens / turn.seconds for turn in turns]
    base_speed = statistics.median(batch * num_new_tokens / turn.seconds for turn in base)
    speed = statistics.median(speeds)
    return Row(
        batch,
        weight,
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


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "num_cores": _num_cores(),
        "num_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
    }


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, as far as installed."""
    found = {"python": platform.python_version()}
    for name in ("trimtab", "torch", "transformers", "peft"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def write_report(report: Mapping[str, Any], path: Path | None) -> str:
    """A benchmark's report with what it ran on, as JSON; written to a file too where one is named."""
    told = {**report, "machine": machine(torch.device("cpu")), "versions": versions()}
    text = json.dumps(told, indent=1)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
    return text
