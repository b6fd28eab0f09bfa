"""Answers under two sentences: what the model reads, from which seed, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tiny import BYTE_TEMPLATE, byte_llama, byte_tokenizer
from trimtab.core import Message, Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.errors import DataError, OptionError, PromptError
from trimtab.making.sampling import Ask, Sampler, check_prompts, read_samples, write_samples
from trimtab.making.sentences import takes_system, with_sentence
from trimtab.making.settings import AWAY, BASE, TOWARDS, SampleSettings
from trimtab.models.hf import HFModel
from trimtab.prompts import options_of

ASK: list[Message] = [{"role": "user", "content": "Why?"}]
SENTENCES = {TOWARDS: "Be kind.", AWAY: "Be rude."}
WITHOUT_SYSTEM = BYTE_TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + BYTE_TEMPLATE


@pytest.fixture(scope="module")
def model() -> HFModel:
    tokenizer = byte_tokenizer(model_max_length=96)
    return HFModel(byte_llama(tokenizer, max_length=96), tokenizer)


def sampler(model: HFModel, sentences: dict[str, str], *, skip: bool = False, **settings: object) -> Sampler:
    params = SamplingParams(max_new_tokens=12, seed=100)
    chosen = SampleSettings(**{"num_samples": 4, "whole_sentences": False, **settings})  # type: ignore[arg-type]
    return Sampler(Decoder(model, max_rows=3), params, chosen, sentences, takes_system=True, skip_unreadable=skip)


def answers(model: HFModel, prompts: Sequence[Prompt], seed: int) -> list[str]:
    return [answer.text.strip() for answer in Decoder(model).generate(prompts, max_new_tokens=12, seed=seed)]


def test_answers_are_those_of_generate_at_their_seeds(model: HFModel) -> None:
    prompts: list[Prompt] = [ASK, [{"role": "user", "content": "How?"}]]
    found = list(sampler(model, {}).answer([Ask(prompt) for prompt in prompts]))
    assert [one.answers[BASE] for one in found] == [
        tuple(answers(model, [prompt] * 4, 100 + 4 * index)) for index, prompt in enumerate(prompts)
    ]


def test_half_of_the_answers_are_under_each_sentence(model: HFModel) -> None:
    (found,) = sampler(model, SENTENCES).answer([Ask(ASK)])
    for index, (name, sentence) in enumerate(SENTENCES.items()):
        said = [{"role": "system", "content": sentence}, *ASK]
        assert found.answers[name] == tuple(answers(model, [said] * 2, 100 + 2 * index))
    assert found.prompt == ASK
    assert found.place == "system message"


def test_a_prompt_may_bring_its_own_seed(model: HFModel) -> None:
    (found,) = sampler(model, {}).answer([Ask(ASK, seed=7)])
    assert found.answers[BASE] == tuple(answers(model, [ASK] * 4, 7))


def test_an_odd_number_cannot_be_halved() -> None:
    assert SampleSettings(num_samples=5).num_under(BASE) == 5
    with pytest.raises(OptionError, match=r"num_samples is 5.*even"):
        SampleSettings(num_samples=5).num_under(TOWARDS)


@pytest.mark.parametrize("num_lines", [0, 1, 2])
def test_a_file_that_was_cut_is_continued_to_the_same_bytes(model: HFModel, tmp_path: Path, num_lines: int) -> None:
    path = tmp_path / "s.jsonl"
    asks = [Ask([{"role": "user", "content": text}]) for text in ("a", "b", "c")]
    write_samples(path, sampler(model, SENTENCES).answer(asks))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:num_lines]) + lines[num_lines][:9])
    write_samples(path, sampler(model, SENTENCES).answer(asks, num_lines))
    assert path.read_bytes() == whole
    assert [one.prompt for one in read_samples(path)] == [ask.prompt for ask in asks]


def test_a_sentence_that_leaves_no_room_is_said_to(model: HFModel) -> None:
    long = {TOWARDS: "kind " * 20, AWAY: "rude"}
    with pytest.raises(DataError, match=r"p\.jsonl, line 3: With the sentence of --towards .* shorten the sentence"):
        sampler(model, long).answer([Ask(ASK, path="p.jsonl", line=3)])
    with pytest.raises(PromptError, match=r"^((?!sentence).)*$"):
        sampler(model, SENTENCES).answer([Ask([{"role": "user", "content": "x" * 200}])])


def test_prompts_that_cannot_be_read_may_be_passed_over(model: HFModel, tmp_path: Path) -> None:
    asks = [Ask([{"role": "user", "content": "x" * 200}]), Ask(ASK)]
    write_samples(tmp_path / "s.jsonl", sampler(model, {}, skip=True).answer(asks))
    bad, good = read_samples(tmp_path / "s.jsonl")
    assert "200" in bad.problem or "tokens" in bad.problem
    assert (bad.texts, len(good.texts), good.problem) == ([], 4, "")


def test_an_answer_that_ran_into_the_limit_is_cut_back(model: HFModel) -> None:
    cut = sampler(model, {}, whole_sentences=True)
    (found,) = cut.answer([Ask("abc")])
    (whole,) = sampler(model, {}).answer([Ask("abc")])
    assert all(long.strip().startswith(short.strip()) for short, long in zip(found.texts, whole.texts, strict=True))
    assert all(text == "" or text.rstrip()[-1] in "\"')].!?。！？" for text in found.texts)


def test_the_file_says_which_answers_ran_into_the_limit(model: HFModel, tmp_path: Path) -> None:
    answered = list(sampler(model, SENTENCES).answer([Ask(ASK), Ask([{"role": "user", "content": "How?"}])]))
    for one, prompt in zip(answered, (ASK, [{"role": "user", "content": "How?"}]), strict=True):
        said = [[{"role": "system", "content": sentence}, *prompt] for sentence in SENTENCES.values() for _ in range(2)]
        first = 100 if prompt == ASK else 104
        made = Decoder(model).generate(said, max_new_tokens=12, seed=first)
        assert one.cut == {place for place, answer in enumerate(made) if answer.finish_reason == "length"}
    assert any(one.cut for one in answered)
    write_samples(tmp_path / "s.jsonl", answered)
    assert [one.cut for one in read_samples(tmp_path / "s.jsonl")] == [one.cut for one in answered]


def test_a_file_of_before_does_not_say_which_ran_into_the_limit(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('{"prompt": "p", "answers": ["a", "b"]}\n')
    (found,) = read_samples(tmp_path / "s.jsonl")
    assert found.cut is None


@pytest.mark.parametrize(
    ("template", "has_system"), [(BYTE_TEMPLATE, True), (WITHOUT_SYSTEM, False), (REFUSING, False)]
)
def test_a_template_is_asked_whether_it_has_a_system_message(template: str, has_system: bool) -> None:
    tokenizer = byte_tokenizer(template=template, model_max_length=96)
    model = HFModel(byte_llama(tokenizer, max_length=96), tokenizer)
    assert model.tokenizer is not None
    assert takes_system(model.tokenizer) is has_system


def test_where_a_sentence_stands() -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    assert list(with_sentence(ASK, "S.", system=True)) == [{"role": "system", "content": "S."}, *ASK]
    assert list(with_sentence([system, *ASK], "S.", system=True)) == [
        {"role": "system", "content": "S.\n\nBe brief."},
        *ASK,
    ]
    assert list(with_sentence(ASK, "S.", system=False)) == [{"role": "user", "content": "S.\n\nWhy?"}]
    assert with_sentence("Once", "S.", system=True) == "S.\n\nOnce"
    with pytest.raises(PromptError, match="token ids"):
        with_sentence([1, 2], "S.", system=True)
    with pytest.raises(PromptError, match="no user's message"):
        with_sentence([system], "S.", system=False)


def test_a_sentence_leaves_the_options_of_the_template() -> None:
    from trimtab.core import Chat

    assert options_of(with_sentence(Chat(ASK, {"enable_thinking": False}), "S.", system=True)) == {
        "enable_thinking": False
    }


def test_pairs_are_written_of_text_alone() -> None:
    with pytest.raises(PromptError, match="token ids"):
        check_prompts([Ask([1, 2, 3])])
    with pytest.raises(DataError, match=r"f, line 2: The prompt is chat messages, and those before it are not"):
        check_prompts([Ask("text"), Ask(ASK, path="f", line=2)])
