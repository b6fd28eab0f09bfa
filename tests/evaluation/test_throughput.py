from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.evaluation import throughput
from trimtab.evaluation.throughput import Workload
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> HFModel:
    """A tiny model that ends an answer whenever it may."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=list(range(40)),
    )
    return HFModel(LlamaForCausalLM(config))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_both_sides_make_every_token_asked_for(model: HFModel, temperature: float) -> None:
    prompts = throughput.benchmark_prompts(model, 3, 5)
    assert [len(prompt) for prompt in prompts] == [5, 5, 5]
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert throughput.base_arm(model, prompts, temperature)(7) == 21
    assert throughput.engine_arm(Decoder(model, {"g": ARM(model)}), 1.0, prompts, temperature)(7) == 21


def test_greedy_sides_make_the_same_tokens(model: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the ratio compares two different things."""
    prompts = throughput.benchmark_prompts(model, 2, 5)
    made: dict[str, Any] = {}
    generate = model.module.generate

    def spy(*args: Any, **options: Any) -> Any:
        made["base"] = generate(*args, **options)
        return made["base"]

    monkeypatch.setattr(model.module, "generate", spy)
    throughput.base_arm(model, prompts, 0.0)(6)
    answers = Decoder(model).generate(prompts, temperature=0.0, max_new_tokens=6, ignore_eos=True)
    assert made["base"][:, 5:].tolist() == [list(answer.token_ids) for answer in answers]


def test_rows_are_medians_of_turns_taken_in_turn(model: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([4.0, 2.0, 1.0, 8.0, 2.0, 1.0, 2.0, 20.0, 1.0])
    order: list[str] = []

    def arm(name: str) -> Any:
        def run(num_new_tokens: int) -> int:
            order.append(name)
            return 2 * num_new_tokens

        return run

    monkeypatch.setattr(throughput, "base_arm", lambda *_: arm("base"))
    monkeypatch.setattr(throughput, "engine_arm", lambda engine, weight, *_, draft: arm(str(weight)))
    clock = iter(time for start in (0.0,) * 9 for time in (start, next(seconds)))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    rows = throughput.measure(
        model, {"g": ARM(model)}, batches=[2], weights=[1.0], workload=Workload(num_new_tokens=10, num_repeats=3)
    )
    assert order == ["base", "None", "1.0"] * 4, "a short turn of each, then three in turn"
    # Base took 4, 8 and 2 s for 20 tokens; the decoder alone 2, 2 and 20; guided 1, 1 and 1.
    assert [row.base_tokens_per_s for row in rows] == [5.0, 5.0]
    assert [(row.weight, row.tokens_per_s, row.ratio_to_base) for row in rows] == [(None, 10.0, 2.0), (1.0, 20.0, 4.0)]
    assert (rows[0].tokens_per_s_low, rows[0].tokens_per_s_high) == (1.0, 10.0)


def test_drafts_are_measured_beside_none_and_a_guides_where_it_runs(model: HFModel) -> None:
    small = HFModel(LlamaForCausalLM(model.module.config))

    def measured(kind: str) -> list[tuple[float | None, str]]:
        rows = throughput.measure(
            model,
            {"g": ARM(small)},
            batches=[1],
            weights=[0.0, 1.0],
            workload=Workload(4, 5, num_repeats=1),
            drafts=throughput.Drafts(kind),
        )
        assert {(row.dtype, row.quantize) for row in rows} == {("float32", None)}
        return [(row.weight, row.draft) for row in rows]

    none = [(None, "none"), (0.0, "none"), (1.0, "none")]
    assert measured("none") == none
    assert sorted(measured("guide"), key=str) == sorted([*none, (1.0, "guide")], key=str)
    assert len(measured("lookup")) == 6


def test_a_run_that_stopped_early_is_no_measurement(model: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "base_arm", lambda *_: lambda num_new_tokens: num_new_tokens - 1)
    with pytest.raises(RuntimeError, match="means nothing"):
        throughput.measure(model, {}, batches=[1], weights=[], workload=Workload(num_new_tokens=5))


def test_a_workload_beyond_the_context_is_refused(model: HFModel) -> None:
    with pytest.raises(OptionError, match=r"make 65; .* holds 64"):
        throughput.measure(model, {}, batches=[1], weights=[], workload=Workload(60, 5))


def test_the_memory_mark_sees_what_was_held_and_let_go() -> None:
    throughput.reset_peak_memory(CPU)
    before = throughput.peak_memory_mb(CPU)
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    del held
    during = throughput.peak_memory_mb(CPU)
    assert during - before > 50
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not set the high-water mark back")
    throughput.reset_peak_memory(CPU)
    assert throughput.peak_memory_mb(CPU) < during - 30


def test_the_commit_is_that_of_the_checkout(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    if not Path(throughput.__file__).is_relative_to(repository / "src"):
        pytest.skip("trimtab is installed from a wheel, which has no commit")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    commit = throughput.commit()
    assert commit is not None
    assert head.stdout.startswith(commit.removesuffix("-dirty"))
