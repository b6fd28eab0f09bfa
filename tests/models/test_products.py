"""Products of few rows by oneDNN: the same numbers, an ordinary layer to everybody else, and a choice that stays."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import tiny_module
from trimtab.models import processor
from trimtab.models.hf import HFModel
from trimtab.models.networks import products
from trimtab.models.networks.products import FewRowsLinear, hasten
from trimtab.testing import check_model

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def slow_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "is_slow_here", lambda: True)


def layers(*, bias: bool, num_in: int = 24, num_out: int = 40) -> tuple[nn.Linear, nn.Linear]:
    """A layer as torch makes it, and the same one hastened."""
    torch.manual_seed(0)
    plain = nn.Linear(num_in, num_out, bias=bias)
    quick = copy.deepcopy(plain)
    quick.__class__ = FewRowsLinear
    return plain, quick


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (1, 2, 24), (2, 1, 24), (3, 24), (2, 3, 24), (48, 24), (0, 24)])
def test_the_product_is_the_same(shape: tuple[int, ...], bias: bool) -> None:
    plain, quick = layers(bias=bias)
    states = torch.randn(*shape)
    with torch.inference_mode():
        assert torch.allclose(quick(states), plain(states), atol=1e-6)
        strided = torch.randn(*shape[:-1], 48)[..., ::2]
        assert torch.allclose(quick(strided), plain(strided), atol=1e-6)
        assert quick(states).is_contiguous()  # some models look at the last dimension in pairs


def test_other_types_and_gradients_take_the_usual_road() -> None:
    plain, quick = layers(bias=True)
    states = torch.randn(3, 24)
    quick(states).sum().backward()
    assert quick.weight.grad is not None
    half_plain, half_quick = plain.bfloat16(), quick.bfloat16()
    with torch.inference_mode():
        assert torch.equal(half_quick(states.bfloat16()), half_plain(states.bfloat16()))
    plain, quick = layers(bias=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(states), plain(states))


@needs_onednn
@pytest.mark.usefixtures("slow_here")
def test_a_hastened_model_keeps_the_laws_and_is_an_ordinary_module(tmp_path: Path) -> None:
    module = tiny_module("llama")
    model = HFModel(module)
    hastened = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert hastened
    assert all(type(layer) is FewRowsLinear for layer in hastened)
    check_model(model)
    assert set(pickle.loads(pickle.dumps(module)).state_dict()) == set(module.state_dict())
    module.save_pretrained(tmp_path)
    assert type(module).from_pretrained(tmp_path).state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    ("maker", "is_slow"), [("AuthenticAMD", True), ("GenuineIntel", False), ("HygonGenuine", True), (None, False)]
)
def test_the_choice_is_by_the_processors_maker(
    maker: str | None, is_slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    if maker is not None:
        info.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(processor, "CPU_INFO", info)
    has_both = torch._C.has_mkl and torch.backends.mkldnn.is_available()
    assert products.is_slow_here.__wrapped__() is (is_slow and has_both)
    monkeypatch.setattr(products, "is_slow_here", lambda: False)
    plain, _ = layers(bias=False)
    hasten(plain)
    assert type(plain) is nn.Linear
