"""The toy model: enumerable, the same for the same seed, and a language model like any other."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.core import LanguageModel, Tokenizer
from trimtab.errors import OptionError, PromptError
from trimtab.models.tabular import LetterTokenizer, TabularModel


def test_it_is_a_language_model_with_a_tokenizer() -> None:
    model = TabularModel.random(5, seed=0)
    assert isinstance(model, LanguageModel)
    assert isinstance(model.tokenizer, Tokenizer)


def test_every_answer_is_listed_once_with_its_probability() -> None:
    model = TabularModel.random(4, seed=3, eos_ids={0, 2})
    answers = model.answers([1], 3)
    assert len(answers) == 2 + 2 * 2 + 2 * 2 * 4  # ended at once; after one more; cut at three, whatever the last is
    assert math.fsum(map(math.exp, answers.values())) == pytest.approx(1, abs=1e-6)
    for answer, logprob in answers.items():
        assert len(answer) == 3 or answer[-1] in {0, 2}
        assert not {0, 2} & set(answer[:-1])
        steps = [model.next_logprobs((1, *answer[:i]))[token] for i, token in enumerate(answer)]
        assert logprob == pytest.approx(float(sum(steps)), abs=1e-5)


def test_impossible_answers_are_not_listed() -> None:
    model = TabularModel.of_table(torch.tensor([[0.0, 0.0, 0.0], [-math.inf, 0.0, 0.0], [0.0, -math.inf, 0.0]]))
    assert set(model.answers([1], 2)) == {(1, 1), (1, 2), (2, 0), (2, 2)}
    assert model.next_logprobs([1]).exp().tolist() == pytest.approx([0, 0.5, 0.5])


def test_random_numbers_are_a_function_of_the_seed_and_what_is_seen() -> None:
    numbers = TabularModel.random(5, seed=1).next_logprobs([1, 2, 3])
    assert torch.equal(numbers, TabularModel.random(5, seed=1).next_logprobs((1, 2, 3)))
    assert not torch.allclose(numbers, TabularModel.random(5, seed=2).next_logprobs([1, 2, 3]))
    assert not torch.allclose(numbers, TabularModel.random(5, seed=1).next_logprobs([2, 2, 3]))
    assert numbers.dtype == torch.float32
    assert float(numbers.logsumexp(0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_order_is_how_many_tokens_are_seen(order: int) -> None:
    model = TabularModel.random(5, seed=1, order=order)
    numbers = model.next_logprobs([4, 3, 2, 1])
    for changed in range(4):
        prefix = [4, 3, 2, 1]
        prefix[changed] = 0
        assert torch.equal(numbers, model.next_logprobs(prefix)) == (changed < 4 - order)
    assert torch.isfinite(model.next_logprobs([1])).all()


def test_the_scale_is_the_spread_of_the_logits() -> None:
    logits = [TabularModel.random(50, seed=1, scale=scale).next_logprobs([7]) for scale in (1.0, 3.0)]
    assert torch.allclose(logits[1] - logits[1].mean(), 3 * (logits[0] - logits[0].mean()), atol=1e-5)


def test_a_table_is_indexed_by_the_last_tokens() -> None:
    table = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    model = TabularModel.of_table(table)
    torch.testing.assert_close(model.next_logprobs([0, 2, 1]), table[2, 1].log_softmax(0))
    torch.testing.assert_close(model.next_logprobs([2]), table[0, 2].log_softmax(0))
    constant = TabularModel.of_table(table[0, 0])
    torch.testing.assert_close(constant.next_logprobs([2, 1]), table[0, 0].log_softmax(0))


def test_sessions_refuse_what_is_empty_or_too_long() -> None:
    session = TabularModel.random(5, seed=0, max_length=3).open()
    with pytest.raises(PromptError, match="empty"):
        session.admit([[1], []])
    with pytest.raises(PromptError, match="4 tokens; the model holds 3"):
        session.admit([[1, 2, 3, 4]])
    assert session.num_rows == 0
    session.admit([[1, 2, 3], [1]])
    with pytest.raises(PromptError, match="holds 3"):
        session.advance(torch.tensor([1, 0]), torch.tensor([2, 2]))
    torch.testing.assert_close(session.logprobs()[1], TabularModel.random(5, seed=0).next_logprobs([1]))


def test_an_empty_session_reads_empty_tables() -> None:
    session = TabularModel.random(5, seed=0).open()
    assert session.logprobs().shape == (0, 5)
    assert session.context().shape == (0, 4)
    assert session.peek(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3, 4)


def test_letters() -> None:
    tokenizer = LetterTokenizer(4)
    assert tokenizer.encode("abca") == [1, 2, 3, 1]
    assert tokenizer.decode([1, 2, 0, 3, 0]) == "abc"
    assert [tokenizer.token_text(token) for token in range(4)] == ["<0>", "a", "b", "c"]
    assert tokenizer.tokens == {"<0>": 0, "a": 1, "b": 2, "c": 3}
    with pytest.raises(PromptError, match="'x' is not a token of this vocabulary"):
        tokenizer.encode("ax")


def test_chat_ends_each_turn_and_continues_an_unfinished_one() -> None:
    tokenizer = LetterTokenizer(4)
    question, start = {"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}
    assert tokenizer.encode_chat([question]) == [1, 2, 0]
    assert tokenizer.encode_chat([question, start]) == [1, 2, 0, 3]
    assert tokenizer.encode_chat([question, start, question]) == [1, 2, 0, 3, 0, 1, 2, 0]


def test_fingerprints_tell_contents_apart() -> None:
    assert LetterTokenizer(5).fingerprint == LetterTokenizer(5).fingerprint
    assert LetterTokenizer(5).fingerprint != LetterTokenizer(6).fingerprint
    assert LetterTokenizer(5, {0}).fingerprint != LetterTokenizer(5, {1}).fingerprint


def test_more_tokens_than_letters() -> None:
    with pytest.raises(OptionError, match="has_tokenizer=False"):
        TabularModel.random(100, seed=0)
    bare = TabularModel(lambda prefix: torch.zeros(100), 100, has_tokenizer=False)
    assert bare.tokenizer is None
