"""What is wrong here and what would be faster, read off facts alone. Figures are those of docs/evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.cli.doctor.machine import Processor
from trimtab.cli.doctor.packages import Package, is_within

LITTLE_DISK = 1 << 30
"""Bytes below which the demo's model, converted, would hardly fit."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What advice is read off."""

    processor: Processor
    torch: Mapping[str, Any] | None
    """`probe.torch_facts`; None where torch could not be asked."""
    has_nvidia: bool
    environment: Mapping[str, str]
    packages: Mapping[str, Package]
    missing: Mapping[str, tuple[str, ...]]
    """Extra -> its packages that are not installed."""
    disk_free: int
    available: int | None
    """Bytes of memory that a new process may take."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that would be faster."""

    what: str
    """How it is now."""
    how: str
    """What to do."""
    known_from: str
    """Where that is measured or explained."""


def problems(facts: Facts) -> list[str]:
    """What will not work, one sentence each."""
    return list(_problems(facts))


def _problems(facts: Facts) -> Iterator[str]:
    for package in facts.packages.values():
        if package.version is None:
            yield f"{package.name} is not installed, which trimtab always needs (pip install trimtab)."
        elif package.problem:
            yield f"{package.name} {package.version} cannot be imported: {package.problem}"
        elif not is_within(package.version, package.wanted):
            yield f"{package.name} {package.version} is installed; trimtab was tested with {package.wanted}."
    if facts.disk_free < LITTLE_DISK:
        yield f"{facts.disk_free / 1e9:.1f} GB are free where converted models go; the demo's takes 0.5 GB."


def faster(facts: Facts) -> list[Advice]:
    """What would be faster on this machine; nothing where torch could not be asked."""
    if facts.torch is None:
        return []
    if facts.torch["gpus"]:
        return list(_extras(facts))
    return [*_gpu(facts), *_threads(facts, facts.torch), *_weights(facts, facts.torch), *_extras(facts)]


def _gpu(facts: Facts) -> Iterator[Advice]:
    if facts.has_nvidia:
        yield Advice(
            "the system has a GPU that torch does not use",
            "install a build of torch for its CUDA version (PyTorch's installation page has the command), and see that "
            "CUDA_VISIBLE_DEVICES does not hide it",
            "docs/start/troubleshooting.md",
        )


def _threads(facts: Facts, torch: Mapping[str, Any]) -> Iterator[Advice]:
    """Threads that wait for each other, or cores that have none."""
    now, quickest = torch["threads"], torch["auto"]
    quota, cores = facts.processor.quota, facts.processor.cores
    page = "docs/serving/faster.md, Threads"
    if quota is not None and now > max(1.0, quota):
        num = max(1, int(quota))
        yield Advice(
            f"torch computes with {now} threads, and control groups leave this process {quota:g} cores",
            f"--threads {num}, or OMP_NUM_THREADS={num}",
            page,
        )
    elif now > quickest:
        yield Advice(
            f"torch computes with {now} threads, and products were faster with {quickest} just now",
            f"--threads {quickest} (or --threads auto), or OMP_NUM_THREADS={quickest}, while others use this machine",
            page,
        )
    elif now < quickest:
        name = next((one for one in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if one in facts.environment), "")
        how = f"unset {name} (it is {facts.environment[name]})" if name else "--threads auto"
        yield Advice(f"torch computes with {now} of {cores} cores, and more were faster just now", how, page)


def _weights(facts: Facts, torch: Mapping[str, Any]) -> Iterator[Advice]:
    """Weights of fewer bits, on processors whose kernels were measured."""
    page = "docs/evaluation/performance.md, Weights of fewer bits"
    if "fbgemm" in torch["quantized"] and "avx2" in facts.processor.flags:
        yield Advice(
            "models run in float32 on this processor unless something else is asked for",
            "--quantize float16: 1.77 times as many tokens a second unguided and 2.09 times with a LoRA guide, one "
            "request; int8 takes half of that memory again and costs a small model some of its reward",
            f"{page} (SmolLM2-135M, one thread of an AMD EPYC without AMX)",
        )
    if "amx_bf16" in facts.processor.flags:
        yield Advice(
            "this processor multiplies matrices of bfloat16 by itself (AMX)",
            "try --dtype bfloat16, for prompts and trainings above all; loading says where it is slower than float32",
            "not measured by us on such a processor",
        )


def _extras(facts: Facts) -> Iterator[Advice]:
    if "llama" in facts.missing:
        yield Advice(
            ".gguf files are unpacked to float32 here",
            'pip install "trimtab[llama]" runs them as they are, in their 4 to 8 bits',
            "docs/serving/llama.md",
        )
