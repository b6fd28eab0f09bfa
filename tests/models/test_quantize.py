"""Weights of fewer bits: what a layer computes, what it refuses, and the laws on models of such layers."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from tests.laws.test_guide_laws import random_lora
from tests.laws.tiny_models import PROMPTS
from tests.tiny import FAMILIES, FLATTENED, peaked_module, tiny_module
from trimtab.decoding.decoder import Decoder
from trimtab.errors import CompatibilityError, OptionError
from trimtab.guides.arm import ARM, AdapterARM
from trimtab.models.hf import HFModel
from trimtab.models.quantize import KINDS
from trimtab.models.quantize.layers import CLASSES, Float16Linear, Int8Linear, QuantizedLinear
from trimtab.models.quantize.network import quantize
from trimtab.testing import check_guide, check_model

WITHIN = 3e-3
"""Nats. A layer's numbers are its row's alone, but an 8-bit model rounds what attention's sums differ by."""
HEIGHTS = (1, 2, 7, 16, 48)


def quantized(family: str, kind: str = "int8") -> HFModel:
    module = tiny_module(family)
    quantize(module, kind)
    return HFModel(module)


def inputs(num_rows: int, width: int) -> torch.Tensor:
    """Rows of very unequal size, with a few numbers far above the rest."""
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, width, generator=generator) * torch.logspace(-3, 3, num_rows)[:, None]
    rows[:, ::17] *= 20
    return rows


@pytest.mark.parametrize(("kind", "error"), [(Int8Linear, 1e-2), (Float16Linear, 1e-3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_near_the_one_it_was_made_of(kind: type[QuantizedLinear], error: float, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 80, bias=bias)
    x = inputs(7, 96)
    found, expected = kind(linear.weight, linear.bias)(x), linear(x)
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < error
    assert not torch.equal(found, expected)


def test_8_bit_activations_alone_would_be_coarser() -> None:
    """The second digit is what keeps a row's numbers within 16 bits: an input on the grid of the weights is exact."""
    weight = torch.randint(-127, 128, (32, 64)).float()
    weight[:, 0] = 127.0
    x = torch.rand(5, 64)
    found, expected = Int8Linear(weight, None)(x), nn.functional.linear(x.double(), weight.double())
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize("kind", [Int8Linear, Float16Linear])
@pytest.mark.parametrize("width", [31, 576])
def test_a_rows_numbers_are_bit_identical_in_any_company(kind: type[QuantizedLinear], width: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(width, 67)
    layer, x = kind(linear.weight, linear.bias), inputs(48, width)
    whole = layer(x)
    for height in HEIGHTS:
        assert torch.equal(layer(x[:height].clone()), whole[:height])
        assert torch.equal(layer(x[-height:].clone()), whole[-height:])


@pytest.mark.parametrize("kind", [Int8Linear, Float16Linear])
def test_shapes_zeros_and_no_rows(kind: type[QuantizedLinear]) -> None:
    linear = nn.Linear(16, 12)
    layer = kind(linear.weight, linear.bias)
    x = torch.randn(2, 3, 16)
    x[0, 1] = 0
    found = layer(x)
    assert found.shape == (2, 3, 12)
    torch.testing.assert_close(found[0, 1], linear.bias.detach())
    assert layer(x[:0]).shape == (0, 3, 12)
    assert layer(x[1, 2]).shape == (12,)
    torch.testing.assert_close(layer(x[1, 2]), found[1, 2])
    x[1, 0, 3] = torch.nan
    broken = layer(x)
    assert broken[1, 0].isnan().all()
    assert torch.equal(broken[0], found[0])


QUICK = ("llama", "gpt2", "mixtral")
REST = [pytest.param(name, marks=pytest.mark.slow) for name in (*FAMILIES, *FLATTENED) if name not in QUICK]


@pytest.mark.parametrize("family", [*QUICK, *REST])
def test_an_int8_model_keeps_every_law(family: str) -> None:
    model = quantized(family)
    layers = [part for part in model.module.modules() if isinstance(part, QuantizedLinear)]
    assert len(layers) > int(model.config.num_hidden_layers)
    check_model(model, PROMPTS, num_candidates=2, num_steps=2, tolerance=WITHIN)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_float16_model_keeps_every_law_as_closely_as_float32(family: str) -> None:
    check_model(quantized(family, "float16"), PROMPTS, num_candidates=2, num_steps=2)


@pytest.mark.parametrize("kind", KINDS)
def test_guides_of_a_quantised_base(kind: str) -> None:
    """A LoRA of it, whose layers stay in float; itself under another prompt; another quantised model."""
    model = quantized("llama", kind)
    tolerance = WITHIN if kind == "int8" else 1e-3
    check_guide(AdapterARM(random_lora(model, seed=5)), model, PROMPTS, num_steps=2, tolerance=tolerance)
    check_guide(ARM(model, prompt=[11, 7, 3]), model, PROMPTS, num_steps=2, tolerance=tolerance)
    if kind == "int8":
        check_guide(ARM(quantized("gpt2")), model, PROMPTS, num_steps=2, tolerance=tolerance)


def test_an_adapter_adds_to_a_quantised_layer_what_it_adds_to_the_plain_one() -> None:
    plain, model = HFModel(tiny_module("llama")), quantized("llama", "float16")
    changes = []
    for one in (plain, model):
        adapter = random_lora(one, seed=5).on(one)
        bare, tuned = one.open(), adapter.open()
        for session in (bare, tuned):
            session.admit(PROMPTS)
        changes.append(tuned.context() - bare.context())
    assert changes[0].abs().max() > 0.1
    torch.testing.assert_close(changes[1], changes[0], atol=2e-2, rtol=2e-2)


def test_rows_of_a_wider_model_depend_on_their_company_far_less_than_by_a_step_of_8_bits() -> None:
    """With one digit an input this is 0.03 nats, though each layer gives a row the same bits in any company."""
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        initializer_range=0.08,
    )
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    quantize(module, "int8")
    model = HFModel(module)
    rows = [[(7 * place * place + 11 * row * place + 3 * row) % 61 for place in range(5 + 9 * row)] for row in range(6)]
    together = grown(model, rows, list(range(6)))
    alone = torch.cat([grown(model, [row], [token]) for token, row in enumerate(rows)])
    assert (together - alone).abs().max() < WITHIN


def grown(model: HFModel, rows: list[list[int]], tokens: list[int]) -> torch.Tensor:
    """[B, V] of rows after one token more of each."""
    session = model.open()
    session.admit(rows)
    session.logprobs()
    session.advance(torch.arange(len(rows)), torch.tensor(tokens))
    return session.logprobs()


def test_the_tokens_of_a_seed_are_the_same_alone_and_in_company() -> None:
    decoder = Decoder(quantized("llama"))
    prompts = [[3 + row, 5, 7][: 1 + row % 3] for row in range(8)]
    options = {"max_new_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    together = list(decoder.generate(prompts, seed=0, **options))
    for row, prompt in enumerate(prompts):
        assert next(iter(decoder.generate([prompt], seed=row, **options))).token_ids == together[row].token_ids


def test_tied_embeddings_stay_in_float() -> None:
    module = tiny_module("llama", tie_word_embeddings=True)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    before = module.model.embed_tokens.weight.clone()
    quantize(module, "int8")
    assert isinstance(module.lm_head, Int8Linear)
    assert torch.equal(module.model.embed_tokens.weight, before)
    check_model(HFModel(module), PROMPTS, num_candidates=2, num_steps=2, tolerance=WITHIN)


def test_one_layer_under_two_names_stays_one() -> None:
    module = tiny_module("llama")
    module.model.layers[1].self_attn.k_proj = module.model.layers[0].self_attn.k_proj
    quantize(module, "int8")
    assert module.model.layers[1].self_attn.k_proj is module.model.layers[0].self_attn.k_proj


def test_narrow_layers_and_layers_of_other_classes_stay_in_float() -> None:
    class Own(nn.Linear):
        pass

    module = tiny_module("llama")
    module.router, module.other = nn.Linear(32, 4), Own(32, 32)
    quantize(module, "int8")
    assert type(module.router) is nn.Linear
    assert type(module.other) is Own


def test_twice_is_refused() -> None:
    module = tiny_module("llama")
    quantize(module, "int8")
    with pytest.raises(OptionError, match="int8 already"):
        quantize(module, "float16")


def test_a_model_of_transformers_quantisers_is_refused() -> None:
    module = tiny_module("llama")
    module.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(OptionError, match="quantised already, by its own config"):
        quantize(module, "int8")


def test_half_precision_and_other_devices_are_refused() -> None:
    with pytest.raises(OptionError, match=r"torch.bfloat16.*float32"):
        quantize(tiny_module("llama").bfloat16(), "int8")
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(tiny_module("llama").config)
    with pytest.raises(OptionError, match="meta"):
        quantize(module, "int8")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(OptionError, match=r"int7.*int8"):
        quantize(tiny_module("llama"), "int7")


def test_a_quantised_model_is_neither_trained_nor_moved_nor_cast() -> None:
    module = tiny_module("llama")
    quantize(module, "int8")
    with pytest.raises(OptionError, match="cannot be trained"):
        module(inputs_embeds=torch.randn(1, 3, 32, requires_grad=True))
    with pytest.raises(OptionError, match="cannot be trained"):
        module(input_ids=torch.tensor([[3, 4]]))  # the embedding asks for a gradient
    for move in (lambda: copy.deepcopy(module).to("meta"), lambda: copy.deepcopy(module).bfloat16()):
        with pytest.raises(OptionError, match="stays"):
            move()


def test_without_the_kernels_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.models.quantize.network.supported_engines", lambda: ["qnnpack"])
    with pytest.raises(CompatibilityError, match="fbgemm"):
        quantize(tiny_module("llama"), "int8")


@pytest.mark.parametrize("vnni", [True, False])
def test_without_vnni_fewer_bits_are_used_since_its_sums_would_saturate(
    monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr("trimtab.models.quantize.layers.has_vnni", lambda: vnni)
    weight, x = torch.full((16, 64), 0.5), torch.ones(3, 64)
    layer = Int8Linear(weight, None)
    assert layer.levels == (127 if vnni else 63)
    torch.testing.assert_close(layer(x), torch.full((3, 16), 32.0))


def test_a_wide_model_reads_fewer_bytes() -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    plain = HFModel(peaked_module(config)).weight_bytes
    module = peaked_module(config)
    quantize(module, "int8")
    assert HFModel(module).weight_bytes < 0.3 * plain


def test_every_kind_has_its_layer() -> None:
    assert tuple(CLASSES) == KINDS
