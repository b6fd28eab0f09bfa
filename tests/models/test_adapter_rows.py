"""An adapter acts on its own rows, wherever a layer holds them; against peft, and against models made up to mislead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import FLATTENED, tiny_module
from trimtab.errors import BaseMismatchError, CheckpointError, CompatibilityError
from trimtab.models.adapters.lora import LoRA
from trimtab.models.adapters.row_layers import Placement, row_layers
from trimtab.models.adapters.row_lora import routed
from trimtab.models.hf import HFModel
from trimtab.models.networks.backbone import Backbone
from trimtab.testing import check_guide, check_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [12, 13], [14, 15, 16, 17, 18]]
TARGETS = {
    "jetmoe": ["kv_proj", "layer"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def tuned(directory: Path, module: Any, *, seed: int = 1, **options: Any) -> Any:
    """A random adapter of a model, written by peft into a directory: peft's own model with it."""
    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    model = peft.get_peft_model(module, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.save_pretrained(directory, save_embedding_layers=False)
    return model.eval()


def alone(module: Any, ids: Sequence[int]) -> Tensor:
    """[V] a transformers model's own log-probabilities after some ids: one row, no cache."""
    with torch.no_grad():
        return torch.log_softmax(module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1], -1)


def check_against_peft(base: Any, adapted: Any, directory: Path) -> None:
    """Guided and unguided rows of one batch are peft's and the base's own, step by step, peeks included."""
    model = HFModel(base)
    plain = model.open()
    guided = LoRA.load(directory).on(model).open(plain)
    rows = [list(prompt) for prompt in PROMPTS]
    for session in (plain, guided):
        session.admit(rows)
    for step in range(3):
        for session, module in ((plain, base), (guided, adapted)):
            expected = torch.stack([alone(module, ids) for ids in rows])
            torch.testing.assert_close(session.logprobs(), expected, rtol=1e-4, atol=1e-4)
        tokens = torch.tensor([20 + step, 30 + step, 40 + step])
        guided.peek(tokens[:, None] + torch.arange(3))
        for session in (plain, guided):
            session.advance(torch.arange(3), tokens)
        rows = [[*ids, token] for ids, token in zip(rows, tokens.tolist(), strict=True)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", *FLATTENED])
def test_each_row_is_pefts_or_the_bases(family: str, tmp_path: Path) -> None:
    adapted = tuned(tmp_path, tiny_module(family), target_modules=TARGETS.get(family, "all-linear"))
    check_against_peft(tiny_module(family), adapted, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_of_the_output_head_is_applied(family: str, tied: bool, tmp_path: Path) -> None:
    shape = {"tie_word_embeddings": tied}
    targets = ["lm_head", "c_fc" if family == "gpt2" else "up_proj"]
    adapted = tuned(tmp_path, tiny_module(family, **shape), target_modules=targets)
    assert any("lm_head" in name for name in LoRA.load(tmp_path).pairs)
    check_against_peft(tiny_module(family, **shape), adapted, tmp_path)


OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 3}, "alpha_pattern": {"q_proj": 9}},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "all but some": {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "a pattern": {"target_modules": r".*layers\.[02]\..*_proj", "exclude_modules": r".*\.0\..*"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "not initialised": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "EVA": {"init_lora_weights": "eva"},
    "MiCA": {"init_lora_weights": "mica"},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_counts_as_neutral_gives_pefts_numbers(name: str, tmp_path: Path) -> None:
    adapted = tuned(tmp_path, tiny_module(), **OPTIONS[name])
    check_against_peft(tiny_module(), adapted, tmp_path)


@pytest.mark.parametrize("family", ["qwen2_moe", "opt"])
def test_the_laws_hold_where_layers_see_flattened_tokens(family: str, tmp_path: Path) -> None:
    from trimtab.guides.arm import AdapterARM

    tuned(tmp_path, tiny_module(family))
    model = HFModel(tiny_module(family))
    check_guide(AdapterARM(LoRA.load(tmp_path)), model, PROMPTS, num_steps=3)
    check_model(LoRA.load(tmp_path).on(model), PROMPTS, num_steps=3)


class Regrouped(nn.Module):
    """Linear experts, each on the tokens that are sent to it."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        flat, out = x.reshape(-1, x.shape[-1]), torch.zeros_like(x).reshape(-1, x.shape[-1])
        choice = (flat[:, 0] * 1e3).long().abs() % len(self.experts)
        for number, expert in enumerate(self.experts):
            if (choice == number).any():
                out[choice == number] = expert(flat[choice == number])
        return out.view_as(x)


class ByPlace(nn.Module):
    """Linear experts, each on one token of every row: as many as there are rows, and in their order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.experts[place % 8](x[:, place]) for place in range(x.shape[1])], dim=1)


class Chunked(nn.Module):
    """A linear layer on some tokens of every row at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(part) for part in x.split(2, dim=1)], dim=1)


class Sorted(nn.Module):
    """A linear layer on all tokens, in an order that depends on what they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        order = flat[:, 0].argsort()
        return self.inner(flat[order])[order.argsort()].view_as(x)


class Columnwise(nn.Module):
    """A linear layer on the first token of every row, then on the second of every row, and so on."""

    def __init__(self, width: int, *, flat: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(0, 1)
        given = turned.reshape(-1, x.shape[-1]) if self.flat else turned
        return self.inner(given).reshape(turned.shape).transpose(0, 1)


class Twice(nn.Module):
    """One layer on [B, Q, width] and on [B · Q, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner(x.reshape(-1, x.shape[-1])).view_as(x)


class Unreached(nn.Module):
    """A layer that no text reaches, beside one that all does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.picture = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def with_feed_forward(make: Any) -> Any:
    """A tiny Llama whose feed-forward layers are others."""
    torch.manual_seed(3)
    module = tiny_module()
    for layer in module.model.layers:
        layer.mlp = make()
    return module.eval()


MISLEADING = {
    "experts": (lambda: Regrouped(32, 3), "mlp.experts.1"),
    "one expert of many": (lambda: Regrouped(32, 40), "mlp.experts.1"),
    "sorted": (lambda: Sorted(32), "mlp.inner"),
    "columns": (lambda: Columnwise(32, flat=False), "mlp.inner"),
    "flat columns": (lambda: Columnwise(32, flat=True), "mlp.inner"),
    "two shapes": (lambda: Twice(32), "mlp.inner"),
}


@pytest.mark.parametrize("name", MISLEADING)
def test_a_layer_in_which_rows_cannot_be_told_apart_is_refused_by_name(name: str, tmp_path: Path) -> None:
    make, layer = MISLEADING[name]
    tuned(tmp_path, with_feed_forward(make), target_modules=["q_proj", f"layers.1.{layer}"])
    with pytest.raises(CompatibilityError, match=rf"model\.layers\.1\.{layer} of LlamaForCausalLM is called on"):
        LoRA.load(tmp_path).on(HFModel(with_feed_forward(make)))


def test_as_many_tokens_as_rows_are_not_the_rows() -> None:
    expert = "model.layers.1.mlp.experts.1"
    found = row_layers(Backbone(with_feed_forward(lambda: ByPlace(32))), [expert])
    assert isinstance(found[expert], str)


def test_rows_in_pieces_are_rows(tmp_path: Path) -> None:
    adapted = tuned(tmp_path, with_feed_forward(lambda: Chunked(32)))
    check_against_peft(with_feed_forward(lambda: Chunked(32)), adapted, tmp_path)


def test_an_expert_that_happens_to_get_every_token_is_no_exception() -> None:
    """What is not so for one expert of a block is so for none."""

    base = HFModel(with_feed_forward(lambda: Regrouped(32, 3)))
    lopsided = base.module.model.layers[1].mlp
    lopsided.forward = lopsided.experts[0].__call__
    expert, query = "model.layers.1.mlp.experts.0", "model.layers.1.self_attn.q_proj"
    found = row_layers(base, [expert, query])
    assert isinstance(found[expert], str)
    assert found[query] is Placement.ROWS


def test_a_layer_that_text_never_reaches_changes_nothing_as_in_peft(tmp_path: Path) -> None:
    adapted = tuned(tmp_path, with_feed_forward(lambda: Unreached(32)))
    base = with_feed_forward(lambda: Unreached(32))
    assert any("picture" in name for name in LoRA.load(tmp_path).pairs)
    found = row_layers(HFModel(base), ["model.layers.0.mlp.inner", "model.layers.0.mlp.picture"])
    assert list(found.values()) == [Placement.ROWS, Placement.NOWHERE]
    check_against_peft(base, adapted, tmp_path)


def test_a_pass_of_another_shape_than_was_measured_is_no_guess(tmp_path: Path) -> None:
    tuned(tmp_path, tiny_module("qwen2_moe"))
    model = HFModel(tiny_module("qwen2_moe"))
    rows = LoRA.load(tmp_path).on(model)._rows
    gate = model.module.model.layers[0].mlp.shared_expert_gate
    with routed([(rows, [0])], (2, 4)), pytest.raises(CompatibilityError, match=r"_gate was given \[7, 32"):
        gate(torch.zeros(7, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "opt"])
def test_half_precision_is_placed_as_well(family: str, dtype: torch.dtype) -> None:
    base = HFModel(tiny_module(family).to(dtype))
    names = [name for name, part in base.module.model.named_modules() if isinstance(part, nn.Linear)]
    found = row_layers(base, [f"model.{name}" for name in names])
    flat = {name for name, placement in found.items() if placement is Placement.TOKENS}
    assert set(found.values()) <= {Placement.ROWS, Placement.TOKENS}
    assert bool(flat) == (family != "llama")


def test_what_is_no_linear_layer_of_the_base_is_refused(tmp_path: Path) -> None:
    """Its name is a layer's of an older transformers; here it is a router whose weight is a bare parameter."""
    tuned(tmp_path, tiny_module("qwen2_moe"), target_modules=["q_proj"])
    adapter = LoRA.load(tmp_path)
    adapter.pairs["model.layers.0.mlp.gate"] = (torch.ones(2, 32), torch.ones(4, 2))
    with pytest.raises(BaseMismatchError, match=r"mlp\.gate, which is a Qwen2MoeTopKRouter here and no linear layer"):
        adapter.on(HFModel(tiny_module("qwen2_moe")))


def test_an_adapter_of_fused_experts_is_refused(tmp_path: Path) -> None:
    tuned(tmp_path, tiny_module("qwen3_moe"))
    with pytest.raises(CheckpointError, match="target_parameters"):
        LoRA.load(tmp_path)


def test_layers_without_weights_are_refused(tmp_path: Path) -> None:
    tuned(tmp_path, tiny_module(), target_modules=["q_proj", "v_proj"])
    adapter = LoRA.load(tmp_path)
    del adapter.pairs["model.layers.2.self_attn.v_proj"]
    with pytest.raises(BaseMismatchError, match=r"1 layers .*layers\.2\.self_attn\.v_proj"):
        adapter.on(HFModel(tiny_module()))


def test_a_deeper_model_is_not_the_base(tmp_path: Path) -> None:
    """Every layer of the adapter is there, with the right shape; those that it says nothing of tell."""
    tuned(tmp_path, tiny_module())
    with pytest.raises(BaseMismatchError, match="7 layers"):
        LoRA.load(tmp_path).on(HFModel(tiny_module(num_hidden_layers=4)))
