"""Families that run and families that are refused: each mechanism by which a model may read the batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from tests import families
from tests.tiny import VOCAB, tiny_module
from trimtab.errors import CompatibilityError
from trimtab.models.forward.row_cache import Layout, Reach
from trimtab.models.hf import HFModel
from trimtab.models.networks import probing
from trimtab.models.networks.kinds import refusing

RUN = {
    "opt": "positions from a table that begins at an offset",
    "phi3, longrope": "positions scaled by the longest row",
    "llama, dynamic NTK": "positions scaled past the context",
    "gemma3": "a language model in a wrapper for pictures, masks by kind of layer",
    "llama4_text": "chunked attention",
    "mistral with a window longer than the probe": "one sliding window",
    "hyperclovax": "a head that multiplies",
    "modernbert-decoder": "a head of several layers, under the name `decoder`",
    "bert as a decoder": "an encoder's code that decodes",
    "doge past its kept keys": "a mask of the keys that score best",
}
REFUSED = {
    "bert": "bidirectional",
    "bart": "counts positions itself",
    "bloom": "counts positions itself",
    "falcon with ALiBi": "ends in ValueError",
    "gpt_neo": "cuts its masks and windows out of a table",
    "camembert as a decoder": "skips the padding's id",
    "mamba": "layers of kind linear_attention",
    "rwkv": "a recurrent state",
    "xlnet": "memories of whole segments",
    "jamba": "layers of kind linear_attention",
    "deepseek_v32": "layers of kind indexed_attention",
    "openai-gpt": "keeps nothing",
    "gpt_neox_japanese": "ends in RuntimeError",
    "llama4_text, hotter with length": "scales by the longest row",
    "xlm": "ends in AssertionError",
}


@pytest.mark.parametrize("name", RUN)
def test_a_family_runs_row_by_row(name: str) -> None:
    module = families.build(name)
    assert families.walk(HFModel(module), module) < 1e-4, RUN[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused_by_name(name: str) -> None:
    module = families.build(name)
    with pytest.raises(CompatibilityError, match=REFUSED[name]) as caught:
        HFModel(module)
    assert type(module).__name__ in str(caught.value)
    assert "Accepted: decoder-only models" in str(caught.value)


def test_rows_are_held_to_the_length_where_positions_do_not_depend_on_company() -> None:
    assert HFModel(families.build("phi3, longrope")).max_length == 32
    assert HFModel(families.build("llama, yarn")).max_length == families.LENGTH


def test_attention_that_is_scaled_by_the_cache_holds_rows_to_a_length_where_it_is_not() -> None:
    """Llama 4 counts positions by the cache's longest row where it tunes its temperature, from `floor_scale` on."""
    changes = {"floor_scale": 3000, "max_position_embeddings": 10000, "no_rope_layers": [1, 0, 0]}
    config = families.tiny_config(transformers.Llama4TextConfig, changes)
    assert HFModel(transformers.AutoModelForCausalLM.from_config(config)).max_length == 2500


def test_positions_that_are_scaled_at_every_length_are_refused() -> None:
    module = tiny_module()
    rotary = module.model.rotary_emb
    plain = rotary.forward

    def scaled(states: torch.Tensor, positions: torch.Tensor) -> object:
        return plain(states, positions * (1 + positions.max() / 1000))

    rotary.forward = scaled
    with pytest.raises(CompatibilityError, match=r"unequal rows|longest row"):
        HFModel(module)


@pytest.mark.parametrize("window", [5, 20])
def test_a_window_that_is_read_otherwise_is_refused(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token more than the model sees, whether the window is shorter or longer than the rows of the probe."""
    covers = Reach.covers
    monkeypatch.setattr(Reach, "covers", lambda reach, queries, keys: covers(reach, queries, keys + 1))
    with pytest.raises(CompatibilityError, match="MistralForCausalLM"):
        HFModel(tiny_module("mistral", sliding_window=window))


def test_the_probe_leaves_the_windows_as_they_were() -> None:
    module = tiny_module("mistral", sliding_window=20)
    model = HFModel(module)
    assert module.config.sliding_window == 20
    assert model.reaches == {"": Reach(window=20)}


def test_a_window_that_no_config_can_shorten_is_probed_at_its_length() -> None:
    """A model that keeps the window it was built with is compared with rows as long as that window."""
    module = tiny_module("mistral", sliding_window=20)
    forward = module.model.forward

    def built_in(*args: object, **options: object) -> object:
        before, module.config.sliding_window = module.config.sliding_window, 20
        try:
            return forward(*args, **options)
        finally:
            module.config.sliding_window = before

    module.model.forward = built_in
    lengths: list[int] = []
    steps = probing._steps

    def watched(backbone: object, rows: list[list[int]], starts: list[int]) -> object:
        lengths.append(starts[0])
        return steps(backbone, rows, starts)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "_steps", watched)
        HFModel(module)
    assert lengths == [6, 22]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_half_precision_is_told_from_a_mask_that_hides_one_token(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tiny_module(family).to(dtype)
    HFModel(module)
    visible = Layout.visible

    def blind(layout: Layout, reach: Reach | None = None) -> torch.Tensor:
        seen = visible(layout, reach)
        return seen & ((torch.arange(seen.shape[-1]) != 2) | (layout.columns[..., None] == 2)[:, None])

    monkeypatch.setattr(Layout, "visible", blind)
    with pytest.raises(CompatibilityError, match="unequal rows"):
        HFModel(module)


def test_whatever_a_models_code_raises_names_the_model() -> None:
    module = tiny_module()
    with pytest.raises(CompatibilityError, match=r"LlamaForCausalLM .* ends in KeyError \('x'\)"), refusing(module):
        raise KeyError("x")


def test_rows_end_where_learned_positions_do() -> None:
    assert HFModel(families.build("opt")).max_length == families.LENGTH
    module = families.build("whisper")
    assert HFModel(module).max_length == families.LENGTH


def test_a_candidate_that_is_peeked_at_stands_at_the_end_of_the_context() -> None:
    module = tiny_module("gpt2")
    session = HFModel(module).open()
    session.admit([[token % VOCAB for token in range(63)], [5, 6]])
    session.peek(torch.tensor([[1, 2, 3, 4]] * 2))
    session.advance(torch.tensor([0, 1]), torch.tensor([9, 4]))
    expected = families.own_logprobs(module, [*(token % VOCAB for token in range(63)), 9])
    torch.testing.assert_close(session.logprobs()[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_page_of_models_is_what_the_sweep_finds(repository: Path) -> None:
    """Where the page was written with this transformers; what is not built depends on other packages too."""
    transformers.logging.set_verbosity_error()
    verdicts = {name: families.verdict_on(name) for name in families.names()}
    assert {name: verdict.said for name, verdict in verdicts.items() if verdict.kind == "wrong"} == {}
    page = (repository / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}." in page:
        unbuilt = _names(page, "Not built") | {name for name, one in verdicts.items() if one.kind == "not built"}
        for title, kind in (("Families that run", "runs"), ("Families that are refused", "refused")):
            found = {name for name, one in verdicts.items() if one.kind == kind and name not in families.VARIANTS}
            assert found - unbuilt == _names(page, title) - unbuilt


def _names(page: str, title: str) -> set[str]:
    """The families that a section of the page lists."""
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {name for name in families.names() if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", section)}


def test_a_forward_that_hides_what_it_takes_is_run_and_judged_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module("llama")
    plain = type(module.model).forward
    monkeypatch.setattr(type(module.model), "forward", lambda self, *args, **how: plain(self, *args, **how))
    assert HFModel(module).vocab_size == module.config.vocab_size
