"""Environment variables: each with its sentence, and the only place here where the environment is read or written.

docs/reference/environment.md is made from this table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import OptionError


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    meaning: str
    """What it does: a sentence, in Markdown."""
    whose: str = "trimtab"
    """Whose name it is, and who reads it beside trimtab."""

    def read(self) -> str | None:
        """Its value; None where it is not set."""
        return os.environ.get(self.name)

    def is_true(self) -> bool:
        """Whether it is set to 1, true, yes or on, as accelerate reads such variables."""
        return (self.read() or "false").lower() in ("1", "true", "yes", "on")

    def whole(self, default: int) -> int:
        """Its value as a whole number, or `default` where it is not set. Raises OptionError for any other text."""
        text = self.read()
        if text is None:
            return default
        try:
            return int(text)
        except ValueError:
            raise OptionError(
                f"${self.name} is {text!r}, which is no whole number. {self.whose} sets it; unset it, or launch anew."
            ) from None

    def path(self) -> Path | None:
        """Its value as a path; None where it is not set or empty."""
        text = self.read()
        return Path(text) if text else None


@dataclass(frozen=True, slots=True)
class Given(Variable):
    """A variable of a library's that trimtab gives a value, unless somebody has."""

    value: str = ""

    def give(self, value: str | None = None) -> None:
        """Set it for this process and its children to `value` (None: the one in the table), unless it is set."""
        os.environ.setdefault(self.name, self.value if value is None else value)


CACHE = Variable(
    "TRIMTAB_CACHE",
    "The directory where models that were converted, and what was tried on this machine, are kept. Where it is not "
    "set or empty: `trimtab` in `XDG_CACHE_HOME`, else `~/.cache/trimtab`.",
)
API_KEY = Variable(
    "TRIMTAB_API_KEY",
    "A key that `trimtab serve` accepts, beside those of its flags. Empty, or not visible ASCII, it is refused. "
    "Inspect's `openai-api/trimtab` provider sends it.",
    "trimtab, Inspect",
)
XDG_CACHE = Variable("XDG_CACHE_HOME", "The user's cache directory, where `TRIMTAB_CACHE` is not set.")
JUDGE_KEY = Variable(
    "OPENAI_API_KEY",
    "The key of the endpoint of a judge (`--judge openai:MODEL`). It is never printed and never written.",
    "trimtab, openai",
)
RANK = Variable("RANK", "Which process of a launch this is; the one with 0 talks.", "accelerate's launcher")
WORLD_SIZE = Variable(
    "WORLD_SIZE", "How many processes a launch has; of several, none measures a dtype.", "accelerate's launcher"
)
MIXED_PRECISION = Variable(
    "ACCELERATE_MIXED_PRECISION",
    "The precision that a launch asks for: `no` or `bf16`; what contradicts a run's `--dtype` is refused.",
    "accelerate's launcher",
)
USE_FSDP = Variable(
    "ACCELERATE_USE_FSDP",
    "Whether a launch spreads weights by FSDP; refused but for `train arm`.",
    "accelerate's launcher",
)
FSDP_VERSION = Variable("FSDP_VERSION", "Which FSDP a launch asks for: 2; 1 is refused.", "accelerate's launcher")
USE_DEEPSPEED = Variable(
    "ACCELERATE_USE_DEEPSPEED",
    "Whether a launch spreads weights by DeepSpeed; refused but for `train arm`.",
    "accelerate's launcher",
)
READ = (
    *(CACHE, API_KEY, XDG_CACHE, JUDGE_KEY),
    *(RANK, WORLD_SIZE, MIXED_PRECISION, USE_FSDP, FSDP_VERSION, USE_DEEPSPEED),
)
"""What trimtab reads."""

NO_TELEMETRY = Given(
    "HF_HUB_DISABLE_TELEMETRY", "`trimtab train` keeps TRL from reporting each run.", "huggingface_hub", "1"
)
NO_RAY_REPORTS = Given("RAY_USAGE_STATS_ENABLED", "Trainings with workers keep Ray from reporting its use.", "ray", "0")
VLLM_STREAM = Given(
    "VLLM_LOGGING_STREAM",
    "vLLM logs to standard error, in its workers too: standard output is for results.",
    "vLLM",
    "ext://sys.stderr",
)
VLLM_LEVEL = Given("VLLM_LOGGING_LEVEL", "vLLM says what goes wrong; with `-v`, `INFO`.", "vLLM", "WARNING")
GIVEN = (NO_TELEMETRY, NO_RAY_REPORTS, VLLM_STREAM, VLLM_LEVEL)
"""What trimtab sets for libraries."""

DECIDING = (
    Variable("OMP_NUM_THREADS", "Threads of a processor's products; `--threads` goes before it.", "torch"),
    Variable("MKL_NUM_THREADS", "The same for MKL alone.", "torch"),
    Variable("OPENBLAS_NUM_THREADS", "The same for OpenBLAS, which numpy and scipy use.", "numpy"),
    Variable("ATEN_CPU_CAPABILITY", "Which instructions of the processor torch uses at most.", "torch"),
    Variable("CUDA_VISIBLE_DEVICES", "Which GPUs there are.", "torch, vLLM"),
    Variable("PYTORCH_CUDA_ALLOC_CONF", "How memory of a GPU is set aside.", "torch"),
    Variable(
        "HF_HUB_OFFLINE",
        "With `1` nothing is fetched: the hub's names are looked for on this disk.",
        "huggingface_hub",
    ),
    Variable("TRANSFORMERS_OFFLINE", "The same, of earlier versions.", "transformers"),
    Variable("TOKENIZERS_PARALLELISM", "Whether texts are cut into tokens by several threads.", "tokenizers"),
)
"""What others read and what decides how things run; no secrets, so `trimtab doctor` shows those that are set."""
OTHERS = (
    *DECIDING,
    Variable("HF_HOME", "Where the hub's models are kept, and the token of `hf auth login`.", "huggingface_hub"),
    Variable("HF_TOKEN", "The token for models that ask for one; never printed and never written.", "huggingface_hub"),
    Variable("NO_COLOR", "With `1` nothing is coloured, whatever the terminal can do.", "rich"),
    Variable("OPENAI_BASE_URL", "The address of a judge's endpoint, where `--base-url` does not say.", "openai"),
    Variable("TRIMTAB_BASE_URL", "The address of a server, for Inspect's `openai-api/trimtab` provider.", "Inspect"),
)
"""What others read, and users of trimtab meet."""


def deciding() -> Mapping[str, str]:
    """The values of those of `DECIDING` that are set."""
    return {one.name: value for one in DECIDING if (value := one.read()) is not None}
