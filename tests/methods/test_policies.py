"""Every method answers prompts at a strength: equal to what it is said to be, the same in any company."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_loading import write_card, write_model
from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from tests.tiny_rewards import write_reward_model
from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError
from trimtab.guides.arm import ARM
from trimtab.guides.prompt import PromptGuide
from trimtab.methods.best_of_n import BestOfN
from trimtab.methods.catalogue import build_policy, check_method
from trimtab.methods.checking import check_weights, source_problem
from trimtab.methods.method import Guided, Policy, Strength, derived_seed, number, numbers
from trimtab.methods.options import REQUIRED
from trimtab.methods.rewriting import Rewriting
from trimtab.methods.segments import SegmentRejection
from trimtab.methods.table import METHODS
from trimtab.models.hf import HFModel
from trimtab.storage.cards import read_card
from trimtab.storage.loading import load_guide, load_model
from trimtab.storage.scorers import Scorer

MODEL = HFModel(tiny_module("llama"), tiny_tokenizer())
PROMPTS: list[Prompt] = ["w3 w4 w5", "w7", [{"role": "user", "content": "w8 w9"}]]
PARAMS = SamplingParams(max_new_tokens=6, trace=True)
SEEDS = [5, 6, 7]


def count_of(word: str) -> Callable[[Sequence[Prompt], Sequence[str]], list[float]]:
    return lambda prompts, texts: [float(text.split().count(word)) for text in texts]


LENGTH = Scorer("words", "number of different words", lambda prompts, texts: [len(set(text.split())) for text in texts])


def texts_of(policy: Policy, strength: Strength, prompts: Sequence[Prompt] = PROMPTS) -> list[str]:
    return [answer.text for answer in policy.answer(prompts, strength, PARAMS, SEEDS[: len(prompts)])]


def base_texts(seeds: Sequence[int] = SEEDS) -> list[str]:
    return [
        next(Decoder(MODEL).answers([(prompt, replace(PARAMS, seed=seed))])).text
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]


def test_base_is_the_decoder_without_guides() -> None:
    policy = build_policy(MODEL, "base", {})
    assert texts_of(policy, 0.0) == base_texts()
    answer = next(policy.answer(PROMPTS[:1], 0.0, PARAMS, SEEDS[:1]))
    assert policy.kl(answer, 0.0) == pytest.approx(0.0, abs=1e-5)


def test_sharpened_is_the_base_to_a_power_with_its_kl_to_the_base_at_one() -> None:
    policy = build_policy(MODEL, "sharpened", {})
    answer = next(policy.answer(["w3 w4"], 1.0, PARAMS, [1]))
    assert answer.trace is not None
    for step in answer.trace:
        assert step.kl > 0
        assert step.chosen.guide_scores["guide"] == pytest.approx(step.chosen.base_logprob, abs=1e-5)


def test_greedy_answers_are_certain_so_their_kl_is_what_the_base_says_of_them() -> None:
    policy = build_policy(MODEL, "base", {})
    answer = next(policy.answer(["w3"], 0.0, replace(PARAMS, temperature=0.0), [1]))
    assert answer.base_logprob is not None
    assert policy.kl(answer, 0.0) == pytest.approx(-answer.base_logprob)
    assert policy.kl(answer, 0.0) != pytest.approx(0.0, abs=1e-2)


def test_a_sentence_is_weighed_or_read_as_a_system_prompt() -> None:
    """At weight 1 one sentence is the system prompt itself, with its exact KL to the base that does not read it."""
    prompt: Prompt = [{"role": "user", "content": "w8 w9"}]
    weighed = build_policy(MODEL, "prompt", {"guide": "prompt:w3 w4"})
    system = build_policy(MODEL, "system", {"guide": "prompt:w3 w4"})
    read: Prompt = [{"role": "system", "content": "w3 w4"}, {"role": "user", "content": "w8 w9"}]
    expected = next(Decoder(MODEL).answers([(read, replace(PARAMS, seed=5))]))
    for policy in (weighed, system):
        answer = next(policy.answer([prompt], 1.0, PARAMS, [5]))
        assert answer.token_ids == expected.token_ids
        assert policy.kl_kind == "exact"
        assert policy.kl(answer, 1.0) == answer.kl
        assert answer.kl is not None
        assert answer.kl > 0.01
    assert texts_of(system, 0.0, [prompt]) == texts_of(build_policy(MODEL, "base", {}), 0.0, [prompt])
    two = build_policy(MODEL, "prompt", {"guide": 'prompt:"w3 w4"/"w5"'})
    guided = Decoder(MODEL, {"g": PromptGuide("w3 w4", "w5")})
    answer = next(guided.answers([(prompt, replace(PARAMS, seed=5, weights={"g": 2.0}))]))
    assert texts_of(two, 2.0, [prompt]) == [answer.text]


def test_guides_are_weighed_together_as_they_are_served(tmp_path: Path) -> None:
    """A sentence beside an adapter in the form of its card, each with a weight of its own."""
    base = load_model(write_model(tmp_path / "base"), device="cpu")
    tuned = write_card(write_lora(tmp_path / "tuned", base.module), base)
    named = {"tuned": str(tuned), "said": 'prompt:"w3"/"w5"'}
    policy = build_policy(base, "guides", {"guides": named})
    loaded = {name: load_guide(path, beside=base) for name, path in named.items()}
    wanted = replace(PARAMS, seed=5, weights={"tuned": 0.5, "said": 2.0})
    expected = next(Decoder(base, loaded).answers([(PROMPTS[2], wanted)]))
    [answer] = policy.answer([PROMPTS[2]], (0.5, 2.0), PARAMS, [5])
    assert answer.token_ids == expected.token_ids
    assert answer.kl == expected.kl
    assert answer.kl is not None
    assert answer.kl > 0.01
    (tuned / "guide.json").write_text(json.dumps(read_card(tuned).with_form("shift").written))
    assert check_weights("guides", {"guides": named}, [(-1.0, 1.0)], temperature=1.0, plausibility=0.0) == []
    [problem] = check_weights("genarm", {"guides": {"tuned": str(tuned)}}, [-1.0], temperature=1.0, plausibility=0.0)
    assert "the paper's products" in problem
    (tuned / "guide.json").write_text(json.dumps(read_card(tuned).with_form("product").written))
    [problem] = check_weights("guides", {"guides": named}, [(-1.0, 1.0)], temperature=1.0, plausibility=0.0)
    assert "products by their cards" in problem


@pytest.mark.parametrize(
    ("name", "guide", "strength", "message"),
    [
        ("system", 'prompt:"w3"/"w4"', 1.0, "takes one sentence"),
        ("system", "prompt:w3", 0.5, "is there \\(1\\) or not \\(0\\)"),
        ("prompt", "builtin:sentiment", 1.0, "is no guide made of a sentence"),
        ("prompt", "prompt:@none.txt", 1.0, "no file none.txt"),
    ],
)
def test_sentences_that_a_method_cannot_take_are_refused(name: str, guide: str, strength: float, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        texts_of(build_policy(MODEL, name, {"guide": guide}), strength)


def test_the_best_of_n_has_the_highest_reward_among_drafts_that_start_with_the_bases_own() -> None:
    policy = BestOfN(Decoder(MODEL), LENGTH)
    drafts = [base_texts([seed if i == 0 else derived_seed(seed, i) for seed in SEEDS]) for i in range(5)]
    for row, text in enumerate(texts_of(policy, 5.0)):
        best = max(len(set(draft[row].split())) for draft in drafts)
        assert len(set(text.split())) == best
        assert text in [draft[row] for draft in drafts]
    assert texts_of(policy, 1.0) == base_texts()
    answer = next(policy.answer(PROMPTS[:1], 4.0, PARAMS, [1]))
    assert policy.kl(answer, 4.0) == pytest.approx(math.log(4) - 3 / 4)
    worst = BestOfN(Decoder(MODEL), LENGTH, sign=-1)
    assert [len(set(text.split())) for text in texts_of(worst, 5.0)] == [
        min(len(set(draft[row].split())) for draft in drafts) for row in range(3)
    ]


def test_drafts_are_counted_as_cost() -> None:
    policy = BestOfN(Decoder(MODEL), LENGTH)
    list(policy.answer(["w3"], 4.0, replace(PARAMS, ignore_eos=True), [1]))
    assert policy.num_tokens_read == 24


def test_segments_that_are_never_rejected_are_the_bases_and_a_target_out_of_reach_takes_the_best() -> None:
    free = SegmentRejection(Decoder(MODEL), LENGTH, target=-1.0, segment_tokens=2)
    answers = list(free.answer(PROMPTS, 4.0, replace(PARAMS, ignore_eos=True), SEEDS))
    assert [len(answer.token_ids) for answer in answers] == [6, 6, 6]
    assert free.num_tokens_read == 18  # one proposal a segment
    strict = SegmentRejection(Decoder(MODEL), LENGTH, target=99.0, segment_tokens=3, max_tries=4)
    found = list(strict.answer(["w3"], 50.0, replace(PARAMS, ignore_eos=True), [1]))
    assert strict.num_tokens_read == 2 * 4 * 3  # two segments of four proposals of three tokens
    assert len(found[0].token_ids) == 6
    assert found[0].prompt == "w3"
    assert found[0].trace is not None
    assert len(found[0].trace) == 6


def test_a_stop_string_over_two_segments_ends_the_answer() -> None:
    free = SegmentRejection(Decoder(MODEL), LENGTH, target=-1.0, segment_tokens=2)
    [whole] = free.answer(["w3"], 4.0, replace(PARAMS, ignore_eos=True), [1])
    second, third = whole.text.split(" ")[2:4]
    stop = f"{second[-1:]} {third}"
    [cut] = free.answer(["w3"], 4.0, replace(PARAMS, ignore_eos=True, stop=(stop,)), [1])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text.partition(stop)[0]
    assert cut.token_ids == whole.token_ids[:3]
    assert cut.trace is not None
    assert len(cut.trace) == 3


def test_a_segment_is_the_best_of_its_tries_where_none_is_accepted() -> None:
    wanted = Scorer("w5", "how often w5", count_of("w5"))
    guided = SegmentRejection(Decoder(MODEL), wanted, target=99.0, segment_tokens=2, max_tries=12)
    free = SegmentRejection(Decoder(MODEL), wanted, target=-1.0, segment_tokens=2)
    params = replace(PARAMS, max_new_tokens=12, ignore_eos=True)
    prompts, seeds = ["w3"] * 6, list(range(6))
    rewards = {
        name: sum(count_of("w5")(prompts, [a.text for a in policy.answer(prompts, 50.0, params, seeds)]))
        for name, policy in (("guided", guided), ("free", free))
    }
    assert rewards["guided"] > rewards["free"]


def test_a_rewriting_reads_question_and_answer_and_zero_leaves_the_answer() -> None:
    policy = Rewriting(Decoder(MODEL), Decoder(MODEL), template="{question} w1 {answer} w2")
    assert texts_of(policy, 0.0) == base_texts()
    first = next(Decoder(MODEL).answers([("w3 w4 w5", replace(PARAMS, seed=5))]))
    asked = [{"role": "user", "content": f"w3 w4 w5 w1 {first.text} w2"}]
    params = replace(PARAMS, trace=False, seed=derived_seed(5, 1))
    assert texts_of(policy, 1.0)[0] == next(Decoder(MODEL).answers([(asked, params)])).text
    with pytest.raises(OptionError, match="question"):
        Rewriting(Decoder(MODEL), Decoder(MODEL), template="{answer}")


@pytest.mark.parametrize("name", ["base", "sharpened", "best-of-n", "segments", "aligner", "args", "transfer-q"])
def test_an_answer_does_not_depend_on_its_company(name: str, tmp_path: Path) -> None:
    rewards = str(write_reward_model(tmp_path / "rewards"))
    reads = {"best-of-n": {"scorer": rewards}, "segments": {"scorer": rewards, "target": 0.5, "max_tries": 3}}
    options = reads.get(name, {"reward": rewards} if name in ("args", "transfer-q") else {})
    if name == "transfer-q":
        options = {**options, "rollout_tokens": 2, "top_k": 3}
    assert check_method(name, options, [2.0]) == []
    policy = build_policy(MODEL, name, options)
    prompts = [PROMPTS[2]] * 2  # a reward model wants text
    together = [answer.text for answer in policy.answer(prompts, 2.0, PARAMS, [5, 6])]
    alone = [next(policy.answer([PROMPTS[2]], 2.0, PARAMS, [seed])).text for seed in (5, 6)]
    assert together == alone
    assert policy.num_tokens_read > 0


def test_several_guides_take_one_number_each() -> None:
    policy = Guided(Decoder(MODEL, {"a": ARM(MODEL), "b": ARM(MODEL)}), lambda s: numbers(s, ["a", "b"]))
    answer = next(policy.answer(["w3"], (0.5, 0.0), PARAMS, [1]))
    assert dict(answer.weights) == {"a": 0.5, "b": 0.0}
    with pytest.raises(OptionError, match="one each for a, b"):
        next(policy.answer(["w3"], 0.5, PARAMS, [1]))


def test_strengths_in_one_batch_give_what_each_gives_alone() -> None:
    policy = Guided(Decoder(MODEL, {"a": ARM(MODEL)}), lambda s: numbers(s, ["a"]))
    prompts, strengths, seeds = ["w3", "w3", "w3 w4", "w3"], [0.0, 2.0, 0.5, 2.0], [1, 1, 2, 7]
    together = [(answer.text, answer.weights) for answer in policy.answer_each(prompts, strengths, PARAMS, seeds)]
    alone = [
        next(policy.answer([prompt], strength, PARAMS, [seed]))
        for prompt, strength, seed in zip(prompts, strengths, seeds, strict=True)
    ]
    assert together == [(answer.text, answer.weights) for answer in alone]
    assert together[0][0] != together[1][0], "strengths are told apart"
    with pytest.raises(OptionError, match="one each for a"):
        next(policy.answer_each(["w3", "w3"], [0.0, (1.0, 2.0)], PARAMS, [1, 1]))


PROBLEMS: Mapping[str, tuple[str, Mapping[str, object], Sequence[Strength], str]] = {
    "an unknown method": ("argz", {}, [1.0], "did you mean 'args'"),
    "an unknown option": ("args", {"reward": "x", "topk": 3}, [1.0], "did you mean 'top_k'"),
    "an option left out": ("args", {}, [1.0], "needs reward"),
    "an option of another kind": ("args", {"reward": 3}, [1.0], "give a path"),
    "two numbers for one dial": ("args", {"reward": "x"}, [(1.0, 2.0)], "one dial"),
    "a strength that is none": ("args", {"reward": "x"}, [math.nan], "strength"),
    "too low a strength": ("best-of-n", {"scorer": "x"}, [0.0], "at least 1"),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_problems_are_named_before_anything_is_loaded(what: str) -> None:
    name, options, strengths, words = PROBLEMS[what]
    problems = check_method(name, options, strengths)
    assert len(problems) == 1
    assert words in problems[0]


def test_every_problem_is_named_at_once() -> None:
    assert len(check_method("segments", {"scorer": 1, "nonsense": 2}, [-1.0])) == 4


def test_a_number_of_drafts_is_whole() -> None:
    assert number(4.0, what="N", low=1, whole=True) == 4
    for bad in (2.5, 0.0, (1.0, 2.0)):
        with pytest.raises(OptionError, match="whole number of at least 1"):
            number(bad, what="N", low=1, whole=True)


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_of_a_method_are_accepted_by_it(name: str) -> None:
    given = {"guides": {"g": "x"}, "paths": ["a", "b"], "target": 1.0, "gate": "entropy:2"}
    given |= dict.fromkeys(("reward", "scorer", "guide", "path", "examples"), "x")
    options = {key: given[key] for key in METHODS[name].options if key in given}
    assert check_method(name, options, METHODS[name].default_strengths) == []


def test_every_method_that_names_files_opens_them_before_a_model_is_loaded() -> None:
    """What `checks` names is there, and takes complete options and strengths."""
    plain = {"path": "nowhere/at/all", "guides": {"g": "nowhere/at/all"}, "paths": ["nowhere/at/all"]}
    for method in METHODS.values():
        named = [name for name, option in method.options.items() if option.default is REQUIRED and name != "target"]
        assert bool(named or method.reads) == bool(method.checks), method.name
        if named:
            options = {**{name: plain.get(name, "nowhere/at/all") for name in named}, "target": 1.0}
            assert source_problem(method.name, options, method.default_strengths), method.name
