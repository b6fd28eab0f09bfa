"""The numbers of docs/serving/scaling.md from its formulas: prints every table of that page. A test compares them.

    python recipes/scaling.py

Bytes are decimal (1 GB is 10⁹). Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

GPU_BYTES = 80e9
"""Memory of one GPU."""
GPU_USABLE = 0.9
"""Share of it that weights and caches may take."""
GPU_BANDWIDTH = 3.35e12
"""Bytes a second of an H100 SXM's memory (its data sheet)."""
GPU_FLOPS = 989e12
"""Figures of an H100 SXM in bfloat16, dense (its data sheet)."""
TRAINING_SHARE = 0.4
"""Share of the peak that training is assumed to reach, recomputation counted."""
LORA_RANK = 8
TRAINING_GPUS = 8
ROWS, LENGTH, PROMPT = 4, 1024, 512
"""Rows in one forward pass (2 pairs), their tokens and those of the prompt."""


@dataclass(frozen=True)
class Shape:
    """A Llama: L blocks of width d, query and key-value heads, width of the feed-forward part, V tokens."""

    name: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    inner: int
    vocab_size: int

    @property
    def kv_width(self) -> int:
        return self.width // self.num_heads * self.num_kv_heads

    @property
    def block_params(self) -> int:
        """Attention, feed-forward part, two norms."""
        return 2 * self.width**2 + 2 * self.width * self.kv_width + 3 * self.width * self.inner + 2 * self.width

    @property
    def params(self) -> int:
        """Blocks, embedding, output head, last norm."""
        return self.num_layers * self.block_params + 2 * self.vocab_size * self.width + self.width

    @property
    def weight_bytes(self) -> int:
        """In bfloat16."""
        return 2 * self.params

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values, in bfloat16."""
        return 2 * 2 * self.num_layers * self.kv_width

    def lora_params(self, rank: int) -> int:
        """Weights of an adapter of every linear layer but the output head: rank · (inputs + outputs) of each."""
        attention = 2 * (self.width + self.width) + 2 * (self.width + self.kv_width)
        return self.num_layers * rank * (attention + 3 * (self.width + self.inner))


LLAMA2_7B = Shape("Llama-2 7B", 32, 4096, 32, 32, 11008, 32000)
LLAMA2_70B = Shape("Llama-2 70B", 80, 8192, 64, 8, 28672, 32000)
LLAMA3_8B = Shape("Llama-3 8B", 32, 4096, 32, 8, 14336, 128256)
LLAMA3_70B = Shape("Llama-3 70B", 80, 8192, 64, 8, 28672, 128256)
PAIRS = ((LLAMA2_70B, LLAMA2_7B), (LLAMA3_70B, LLAMA3_8B))


def agent_params(width: int) -> int:
    """LayerNorm(d), Linear(d, 1024), Linear(1024, 256), Linear(256, 2)."""
    return 2 * width + (width + 1) * 1024 + (1024 + 1) * 256 + (256 + 1) * 2


def step_bytes(shape: Shape, rows: int, context: int) -> float:
    """What one decoding step reads: all weights once, every row's cache."""
    return shape.weight_bytes + rows * context * shape.kv_bytes


def cache_tokens(num_gpus: int, base: Shape, guide: Shape | None) -> float:
    """Tokens of all rows together that fit beside the weights."""
    models = [base] if guide is None else [base, guide]
    room = num_gpus * GPU_BYTES * GPU_USABLE - sum(model.weight_bytes for model in models)
    return room / sum(model.kv_bytes for model in models)


def training_bytes(shape: Shape, *, full: bool, num_shards: int) -> float:
    """Weights, gradients and Adam's moments of one GPU: 16 bytes a trained weight, 2 a frozen one, spread evenly."""
    if full:
        return 16 * shape.params / num_shards
    return (2 * shape.params + 16 * shape.lora_params(LORA_RANK)) / num_shards


def gathered_bytes(shape: Shape) -> float:
    """What is whole at one time under FSDP or ZeRO-3: two blocks (one is fetched ahead), embedding, head."""
    return 2 * (2 * shape.block_params + 2 * shape.vocab_size * shape.width)


def activation_bytes(shape: Shape) -> float:
    """With checkpointing: each block's input, 34·d bytes a token of the block at work, the responses' logits."""
    tokens, predicted = ROWS * LENGTH, ROWS * (LENGTH - PROMPT)
    inputs = 2 * shape.width * shape.num_layers * tokens
    return inputs + 34 * shape.width * tokens + 10 * shape.vocab_size * predicted


def training_flops(shape: Shape, *, full: bool) -> float:
    """A token, with checkpointing: 2·P forward, 2·P again, 2·P back to inputs, 2·P to weights that are trained."""
    return (8 if full else 6) * shape.params


def training_speed(shape: Shape, *, full: bool) -> float:
    """Tokens a second of all GPUs."""
    return TRAINING_GPUS * TRAINING_SHARE * GPU_FLOPS / training_flops(shape, full=full)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def shapes() -> str:
    head = ("model", "parameters", "weights, bfloat16", "cache, a token", "LoRA of rank 8")
    rows = [
        (
            shape.name,
            f"{shape.params / 1e9:.2f} · 10⁹",
            f"{shape.weight_bytes / 1e9:.1f} GB",
            f"{shape.kv_bytes / 1e6:.3f} MB",
            f"{shape.lora_params(LORA_RANK) / 1e6:.1f} M, {2 * shape.lora_params(LORA_RANK) / 1e9:.3f} GB",
        )
        for shape in (LLAMA2_7B, LLAMA2_70B, LLAMA3_8B, LLAMA3_70B)
    ]
    return table(head, rows)


def memory() -> str:
    head = ("base and guide", "GPUs", "weights a GPU", "cache of base alone", "with the guide", "with a LoRA guide")
    rows = []
    for base, guide in PAIRS:
        for num_gpus in (4, 8):
            weights = (base.weight_bytes + guide.weight_bytes) / num_gpus
            alone, both = cache_tokens(num_gpus, base, None), cache_tokens(num_gpus, base, guide)
            kept = (num_gpus * GPU_BYTES * GPU_USABLE - base.weight_bytes - 2 * base.lora_params(LORA_RANK)) / (
                2 * base.kv_bytes
            )
            cells = [f"{round(count, -3):,.0f} tokens" for count in (alone, both, kept)]
            rows.append((f"{base.name}, {guide.name}", str(num_gpus), f"{weights / 1e9:.1f} GB", *cells))
    return table(head, rows)


def steps() -> str:
    head = ("rows × context", *(f"{guide.name} at {base.name}" for base, guide in PAIRS), "LoRA of Llama-3 70B")
    rows = []
    for num_rows, context in ((1, 1024), (16, 1024), (16, 4096), (64, 4096)):
        cells = [step_bytes(guide, num_rows, context) / step_bytes(base, num_rows, context) for base, guide in PAIRS]
        lora = 2 * LLAMA3_70B.lora_params(LORA_RANK) + num_rows * context * LLAMA3_70B.kv_bytes
        cells.append(lora / step_bytes(LLAMA3_70B, num_rows, context))
        rows.append((f"{num_rows} × {context}", *(f"+{100 * cell:.1f} %" for cell in cells)))
    return table(head, rows)


def speeds() -> str:
    head = ("base and guide", "GPUs", "base alone", "with the guide")
    rows = []
    for base, guide in PAIRS:
        for num_gpus in (4, 8):
            alone = step_bytes(base, 1, 1024) / (num_gpus * GPU_BANDWIDTH)
            both = alone + step_bytes(guide, 1, 1024) / (num_gpus * GPU_BANDWIDTH)
            cells = [f"{1e3 * seconds:.1f} ms" for seconds in (alone, both)]
            rows.append((f"{base.name}, {guide.name}", str(num_gpus), *cells))
    return table(head, rows)


def training() -> str:
    head = ("7B guide (Llama-2)", "state a GPU", "gathered", "activations", "sum", "tokens/s of 8 GPUs")
    rows = []
    for name, full, num_shards in (
        ("LoRA, every GPU holds the base (DDP)", False, 1),
        ("LoRA, FSDP2 or ZeRO-3", False, TRAINING_GPUS),
        ("full, FSDP2 or ZeRO-3", True, TRAINING_GPUS),
        ("full, every GPU holds all (DDP)", True, 1),
    ):
        state = training_bytes(LLAMA2_7B, full=full, num_shards=num_shards)
        gathered = gathered_bytes(LLAMA2_7B) if num_shards > 1 else 0.0
        parts = (state, gathered, activation_bytes(LLAMA2_7B))
        sizes = [f"{size / 1e9:.1f} GB" for size in (*parts, sum(parts))]
        fits = sum(parts) < GPU_BYTES * GPU_USABLE
        speed = f"{round(training_speed(LLAMA2_7B, full=full), -3):,.0f}" if fits else "does not fit"
        rows.append((name, *sizes, speed))
    return table(head, rows)


def agents() -> str:
    head = ("agent of a base of width", "parameters", "bytes in float32", "share of the base's weights")
    rows = [
        (
            str(base.width),
            f"{agent_params(base.width) / 1e6:.2f} M",
            f"{4 * agent_params(base.width) / 1e6:.1f} MB",
            f"{100 * 4 * agent_params(base.width) / base.weight_bytes:.2f} %",
        )
        for base in (LLAMA2_7B, LLAMA2_70B)
    ]
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "shapes": shapes,
    "memory": memory,
    "steps": steps,
    "speeds": speeds,
    "agents": agents,
    "training": training,
}

if __name__ == "__main__":
    print("\n\n".join(make() for make in TABLES.values()))
