"""A head: its formula by a plain loop and in closed form, its laws, drafts, chunks and company, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.tiny_models import FAMILIES, PROMPTS, tiny_model
from tests.tiny import tiny_module, tiny_tokenizer
from trimtab import Decoder, Head, LowRankHead, SamplingParams, TabularModel, load_guide, save_guide
from trimtab.core import LanguageModel, ModelSession
from trimtab.engines.builtin import BuiltinMaker
from trimtab.engines.maker import GuideSource
from trimtab.errors import BaseMismatchError, CheckpointError, OptionError, VocabularyMismatchError
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularSession
from trimtab.models.trained_on import TrainedOn
from trimtab.testing import LawViolation, check_guide, check_model

BASE = TabularModel.random(5, seed=0, scale=1.5)


def random_head(model: LanguageModel, *, seed: int = 0, rank: int = 3, scale: float = 1.0) -> LowRankHead:
    """A head all of whose weights are random."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, model.hidden_size, generator=generator)
    up = scale * torch.randn(model.vocab_size, rank, generator=generator)
    return LowRankHead(down, up)


def tilted(head: LowRankHead, weight: float, prefix: tuple[int, ...]) -> list[float]:
    """ln π after a prefix, by plain loops over numbers: base + w · Σ_i B[y, i] Σ_j A[i, j] h[j], normalised."""
    state = BASE.state(prefix).tolist()
    inner = [sum(a * h for a, h in zip(row, state, strict=True)) for row in head.down.tolist()]
    scores = [sum(b * one for b, one in zip(row, inner, strict=True)) for row in head.up.tolist()]
    sums = [base + weight * score for base, score in zip(BASE.next_logprobs(prefix).tolist(), scores, strict=True)]
    total = math.log(sum(map(math.exp, sums)))
    return [one - total for one in sums]


@pytest.mark.parametrize("weight", [1.0, -0.5, 2.5])
def test_every_answer_has_the_probability_of_the_formula(weight: float) -> None:
    """All answers of three tokens, their traces against the closed form; their probabilities add up to 1."""
    head = random_head(BASE)
    decoder = Decoder(BASE, {"head": Head(head)})
    total = 0.0
    for tokens in itertools.product(range(5), repeat=3):
        how = SamplingParams(weights={"head": weight}, max_new_tokens=3, ignore_eos=True, forced=tokens, trace=True)
        [answer] = decoder.answers([([1, 2], how)])
        expected = [tilted(head, weight, (1, 2, *tokens[:at]))[token] for at, token in enumerate(tokens)]
        assert answer.trace is not None
        assert [one.chosen.mixed_logprob for one in answer.trace] == pytest.approx(expected, abs=1e-5)
        total += math.exp(sum(expected))
    assert total == pytest.approx(1.0)


def test_weight_0_is_the_base_bit_for_bit_and_two_heads_add() -> None:
    one, two = random_head(BASE, seed=1), random_head(BASE, seed=2)
    decoder = Decoder(BASE, {"one": Head(one), "two": Head(two)})
    how: dict[str, Any] = {"max_new_tokens": 20, "seed": 3, "ignore_eos": True, "trace": True}
    [plain] = Decoder(BASE).generate("ab", **how)
    [off] = decoder.generate("ab", weights={"one": 0.0, "two": 0.0}, **how)
    assert [step.chosen.base_logprob for step in off.trace] == [step.chosen.base_logprob for step in plain.trace]
    assert off.token_ids == plain.token_ids
    rank_two = [LowRankHead(head.down[:2], head.up[:, :2]) for head in (one, two)]
    both = LowRankHead(torch.cat([head.down for head in rank_two]), torch.cat([head.up for head in rank_two], dim=1))
    [apart] = Decoder(BASE, {f"{at}": Head(head) for at, head in enumerate(rank_two)}).generate("ab", **how)
    [joined] = Decoder(BASE, {"both": Head(both)}).generate("ab", **how)
    assert [one.chosen.mixed_logprob for one in apart.trace] == pytest.approx(
        [one.chosen.mixed_logprob for one in joined.trace]
    )


def test_the_laws_on_the_tabular_model() -> None:
    check_guide(Head(random_head(BASE)), BASE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_laws_on_tiny_models(family: str) -> None:
    model = tiny_model(family)
    check_guide(Head(random_head(model, scale=0.3)), model, PROMPTS, num_steps=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_is_what_the_models_output_head_reads(family: str) -> None:
    """A head whose product is the model's own output matrix gives the model's logits again, before its soft caps."""
    model = tiny_model(family)
    output = model.module.get_output_embeddings()
    width = output.weight.shape[1]
    head = LowRankHead(torch.eye(width), output.weight)
    session = model.open()
    session.admit(PROMPTS)
    found = head.scores(session.context())
    seen: list[Tensor] = []
    handle = output.register_forward_hook(lambda layer, args, logits: seen.append(logits))
    try:
        with torch.no_grad():
            for prompt in PROMPTS:
                model.module(input_ids=torch.tensor([prompt]))
    finally:
        handle.remove()
    for row, logits in enumerate(seen):
        assert torch.allclose(found[row], logits[0, -1], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("how", [{}, {"temperature": 0}, {"top_k": 7, "repetition_penalty": 1.2}])
def test_drafts_chunks_and_company_change_no_token(family: str, how: dict[str, Any]) -> None:
    """Each request alone, undrafted, its prompt at once; then together, drafted, in pieces of three tokens."""
    model = tiny_model(family)
    guides = {"head": Head(random_head(model, scale=0.3)), "other": Head(random_head(model, seed=4, scale=0.3))}
    weights: list[dict[str, float]] = [
        {"head": 1.0, "other": 0.0},
        {"head": 0.0, "other": 0.0},
        {"head": -2.0, "other": 1.0},
        {"head": 0.5, "other": -0.5},
    ]
    prompts = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], *PROMPTS[1:]]
    options = {"max_new_tokens": 24, "ignore_eos": True, **how}
    asked = [
        (prompt, SamplingParams(weights=weight, seed=seed, forced=(5, 6, 7, 8, 5, 6), **options))
        for seed, (prompt, weight) in enumerate(zip(prompts, weights, strict=True))
    ]
    alone = [next(iter(Decoder(model, guides).answers([one]))).token_ids for one in asked]
    decoder = Decoder(model, guides, prefill_chunk=3, max_rows=3)
    drafted = [(prompt, replace(params, draft="lookup", draft_tokens=4)) for prompt, params in asked]
    together = [answer.token_ids for answer in decoder.answers(drafted)]
    assert together == alone


def test_a_head_drafts_whatever_drafts_beside_it() -> None:
    """A guide that is a model drafts for a request in which a head runs too."""
    guides = {"head": Head(random_head(BASE)), "small": ARM(TabularModel.random(5, seed=4, order=1))}
    how: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True, "seed": 1, "trace": True}
    [plain] = Decoder(BASE, guides).generate("ab", **how)
    [drafted] = Decoder(BASE, guides).generate("ab", draft="small", draft_tokens=3, **how)
    assert (drafted.token_ids, drafted.trace) == (plain.token_ids, plain.trace)


def test_a_copy_of_a_head_is_refused_as_a_drafter_and_none_is_made(tmp_path: Path) -> None:
    head = Head(random_head(BASE))
    with pytest.raises(OptionError, match="The copy of guide head cannot draft: it says nothing without the model"):
        Decoder(BASE, {"head": head}, drafters={"head": head})
    maker = BuiltinMaker(BASE)
    engine = maker.make({"head": GuideSource(str(save_guide(head, tmp_path / "head")))}, copies="int8")
    assert engine.drafters == {}


class NoStatesBetween(TabularModel):
    """A model whose sessions draft, and have states at the ends of rows alone."""

    def open(self, beside: ModelSession | None = None) -> Any:
        session = TabularSession(self)
        return _Without(session)


class _Without:
    """A session without `context_after`."""

    can_draft = True

    def __init__(self, session: TabularSession) -> None:
        for verb in ("admit", "advance", "keep", "draft", "settle", "logprobs", "logprobs_after", "peek", "context"):
            setattr(self, verb, getattr(session, verb))
        self._session = session

    @property
    def num_rows(self) -> int:
        return self._session.num_rows


def test_a_model_without_states_after_drafts_is_refused_drafts_by_name() -> None:
    base = NoStatesBetween(lambda prefix: torch.arange(5.0), 5)
    check_model(base)
    decoder = Decoder(base, {"head": Head(random_head(base))})
    with pytest.raises(OptionError, match=r"Guide head reads the model's states, .* draft none"):
        decoder.add("abab", SamplingParams(draft="lookup"))
    assert len(next(iter(decoder.generate("abab", max_new_tokens=3, seed=1, ignore_eos=True))).token_ids) == 3


def test_the_law_of_drafts_reads_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that gives the state at the row's end for every drafted place breaks it."""
    monkeypatch.setattr(TabularSession, "context_after", lambda session, rows, drafted: session.context(rows))
    with pytest.raises(LawViolation, match="the state after drafts"):
        check_model(BASE)
    with pytest.raises(LawViolation, match="drafted token reads as an advanced one"):
        check_guide(Head(random_head(BASE)), BASE)


def test_another_width_or_vocabulary_is_refused_with_both_numbers() -> None:
    head = Head(random_head(BASE))
    with pytest.raises(BaseMismatchError, match=r"reads states of width 4; the model's have 7\. A head runs on"):
        head.bind(TabularModel(lambda prefix: torch.zeros(5), 5, hidden_size=7))
    with pytest.raises(VocabularyMismatchError, match=r"adds to 5 logits; the model has 6\."):
        Decoder(TabularModel.random(6, seed=0), {"head": head})


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_no_head_has_is_refused(rank: int) -> None:
    with pytest.raises(OptionError, match=rf"rank of the head is {rank}, and .* width 4\. .* at least 1 and at most 4"):
        LowRankHead(torch.zeros(rank, 4), torch.zeros(5, rank))


def test_matrices_of_two_ranks_are_refused() -> None:
    with pytest.raises(OptionError, match=r"shapes \(2, 4\) and \(5, 3\)"):
        LowRankHead(torch.zeros(2, 4), torch.zeros(5, 3))


def known(model: HFModel) -> TrainedOn:
    """What a card says of a model."""
    assert model.tokenizer is not None
    return TrainedOn(model.describe(), {"fingerprint": model.tokenizer.fingerprint, "size": 61})


def test_a_head_runs_on_the_model_that_it_was_trained_on_and_on_no_other() -> None:
    model, twin = (HFModel(tiny_module("llama", seed=seed), tiny_tokenizer(), name=f"m{seed}") for seed in (0, 1))
    with torch.no_grad():
        twin.module.model.norm.weight.mul_(2.0)
    plain = random_head(model)
    head = Head(LowRankHead(plain.down, plain.up, known(model)))
    assert head.bind(model) is head
    with pytest.raises(BaseMismatchError, match=r"trained on m0; the model here, m1, has the same shape but other wei"):
        head.bind(twin)
    words = tiny_tokenizer([f"v{index}" for index in range(59)])
    with pytest.raises(VocabularyMismatchError, match=r"another vocabulary \(61 tokens\) than the model's \(61 tokens"):
        head.bind(HFModel(tiny_module("llama"), words, name="m0"))


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    model = HFModel(tiny_module("llama"), tiny_tokenizer(), name="m0")
    plain = random_head(model)
    head = Head(LowRankHead(plain.down, plain.up, known(model)), weight=2.0)
    loaded = load_guide(save_guide(head, tmp_path / "head"), beside=model)
    assert isinstance(loaded, Head)
    assert isinstance(loaded.map, LowRankHead)
    assert torch.equal(loaded.map.down, plain.down)
    assert torch.equal(loaded.map.up, plain.up)
    assert loaded.map.trained_on == known(model)
    assert loaded.weight == 1.0
    again = load_guide(save_guide(loaded, tmp_path / "again"), model=model, weight=-0.5)
    assert again.weight == -0.5
    assert (tmp_path / "again" / "guide.json").read_text() == (tmp_path / "head" / "guide.json").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "shift"}, "has no form"),
        ({"rule": "first"}, "takes no rule"),
        ({"preference": (0.5, 0.5)}, "takes no preference"),
        ({"prompt": "w1"}, "reads the model's states, so it has no prompt of its own"),
        ({"guide_base": "another"}, "runs on no base of its own"),
    ],
)
def test_what_means_nothing_to_a_head_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    directory = save_guide(Head(random_head(BASE)), tmp_path / "head")
    with pytest.raises(OptionError, match=said):
        load_guide(directory, beside=BASE, **options)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    directory = save_guide(Head(random_head(BASE)), tmp_path / "head")
    card, path = directory / "guide.json", directory / "model.safetensors"
    facts = json.loads(card.read_text())
    del facts["files"]  # else the digest is what is told
    card.write_text(json.dumps(facts))
    for tensors, said in (
        ({"down.weight": torch.zeros(2, 4)}, "holds down.weight; a head is"),
        ({"down.weight": torch.zeros(2, 4), "up.weight": torch.zeros(5, 3)}, "two matrices of one rank"),
        ({"down.weight": torch.full((2, 4), torch.nan), "up.weight": torch.zeros(5, 2)}, "NaN"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=said):
            load_guide(directory, beside=BASE)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_guide(directory, beside=BASE)
