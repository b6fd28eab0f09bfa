"""Guides made of a sentence: the base itself, reading one, less the base without it or reading another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tests.laws.tiny_models import PROMPTS, tiny_model
from tests.tiny import BYTE_TEMPLATE, byte_llama, byte_tokenizer, tiny_tokenizer
from trimtab.caches import num_known
from trimtab.core import Candidates, Chat, Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.errors import BaseMismatchError, OptionError, PromptError
from trimtab.guides.prompt import PromptGuide
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel
from trimtab.testing import check_guide

BASE = TabularModel.random(9, seed=0)
"""Tokens <0>, a, b, ..., h."""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + BYTE_TEMPLATE


@pytest.mark.parametrize("weight", [-1.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("away", [None, "gg"])
def test_the_mix_is_the_closed_form(weight: float, away: str | None) -> None:
    """π(x) · (π(s, x) / π(x or s', x))^w, at every step of an answer."""
    guide = PromptGuide("fab", away, separator="")
    answer = next(
        Decoder(BASE, {"g": guide}, prefill_chunk=2).generate(
            [[{"role": "user", "content": "cd"}]],
            weights={"g": weight},
            seed=1,
            max_new_tokens=6,
            ignore_eos=True,
            trace=True,
        )
    )
    assert answer.trace is not None
    said, bare, other = ids("fab<cd<"), ids("cd<"), ids("gg<cd<") if away else ids("cd<")
    assert answer.prompt_ids == tuple(bare)
    for count, step in enumerate(answer.trace):
        rest = answer.token_ids[:count]
        tables = [BASE.next_logprobs([*prefix, *rest]) for prefix in (bare, said, other)]
        policy = torch.log_softmax(tables[0] + weight * (tables[1] - tables[2]), dim=-1)
        assert step.chosen.mixed_logprob == pytest.approx(float(policy[step.chosen.token_id]), abs=1e-5)
        assert step.kl == pytest.approx(float((policy.exp() * (policy - tables[0])).sum()), abs=1e-5)


def ids(text: str) -> list[int]:
    """Letters as the tabular model numbers them; < is what ends a message."""
    return ["<abcdefgh".index(letter) for letter in text]


def test_at_weight_one_a_sentence_is_the_system_prompt_itself() -> None:
    decoder, how = Decoder(BASE, {"g": PromptGuide("fab", separator="")}), {"max_new_tokens": 8, "ignore_eos": True}
    [steered] = decoder.generate("cd", weights={"g": 1.0}, temperature=0, **how)
    [said] = Decoder(BASE).generate("fabcd", temperature=0, **how)
    assert steered.token_ids == said.token_ids


def test_the_laws_on_a_transformers_model() -> None:
    """The sentence's rows share the base's forward passes; two sentences are below."""
    model = HFModel(tiny_model("llama").module, tiny_tokenizer())
    check_guide(PromptGuide("w3 w4", separator=" "), model, PROMPTS[1:], num_steps=2)


@pytest.mark.parametrize("guide", [PromptGuide("fab", separator=""), PromptGuide("fab", "g", separator="")])
def test_the_laws_on_the_tabular_model(guide: PromptGuide) -> None:
    check_guide(guide, BASE)
    chat = [{"role": "user", "content": "cd"}]
    check_guide(guide, BASE, [chat, "ab", [4]])


def test_the_laws_where_the_sentences_have_tokens_in_common_and_other_lengths() -> None:
    model = byte_model(max_length=160)
    guide = PromptGuide("You are very glad.", "You are sad.")
    check_guide(guide, model, [[{"role": "user", "content": "Hi"}], "Once", [70, 71, 72]], num_steps=3)


def test_rows_of_sentences_are_rows_of_the_bases_own_pass() -> None:
    model = byte_model(max_length=160)
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = model.module.model.register_forward_hook(count)
    guides = {"one": PromptGuide("Be glad."), "two": PromptGuide("Be glad.", "Be sad.")}
    prompt = "Once upon a time there was a king who had no sentence of his own, "
    list(Decoder(model, guides).generate(prompt, max_new_tokens=5, seed=1, ignore_eos=True))
    hook.remove()
    assert passes == 5


def test_the_beginning_of_a_sentence_is_fed_once_for_all_requests() -> None:
    """What the requests have in common is known to the session as soon as one of them has been fed."""
    model = byte_model(max_length=200)
    for guide in (PromptGuide("Be very glad about everything."), PromptGuide("Be very glad.", "Be extremely sad.")):
        bound = guide.bind(model)
        rows = [bound.prompt_ids([{"role": "user", "content": text}], []) for text in ("Hi", "Ho")]
        base = model.open()
        session = bound.open(base)
        session.admit(rows[:1])
        assert num_known(session, rows[1]) == 0
        session.score(every_token(model))
        assert num_known(session, rows[1]) >= len("[system] Be very glad.\n[user] H")


def every_token(model: HFModel) -> Candidates:
    """The candidates of a row whose base likes all tokens alike."""
    return Candidates(torch.arange(model.vocab_size)[None], torch.zeros(1, model.vocab_size), complete=True)


def byte_model(template: str | None = BYTE_TEMPLATE, *, max_length: int = 96) -> HFModel:
    tokenizer = byte_tokenizer(template=template)
    return HFModel(byte_llama(tokenizer, max_length=max_length), tokenizer)


def read(guide: PromptGuide, model: HFModel, prompt: Prompt) -> str:
    assert model.tokenizer is not None
    return model.tokenizer.decode(guide.bind(model).prompt_ids(prompt, []))


USER = {"role": "user", "content": "Hi"}
PLACED = {
    "a system message": ("auto", [USER], "[system] Be glad.\n[user] Hi\n[assistant] "),
    "before a system message's own text": (
        "auto",
        [{"role": "system", "content": "Short."}, USER],
        "[system] Be glad.\n\nShort.\n[user] Hi\n[assistant] ",
    ),
    "the user's first message": ("user", [USER], "[user] Be glad.\n\nHi\n[assistant] "),
    "the first of several": (
        "user",
        [{"role": "system", "content": "Short."}, USER, {"role": "assistant", "content": "Yes"}, USER],
        "[system] Short.\n[user] Be glad.\n\nHi\n[assistant] Yes\n[user] Hi\n[assistant] ",
    ),
    "a raw text": ("auto", "Once", "Be glad.\n\nOnce"),
}


@pytest.mark.parametrize(("place", "prompt", "expected"), PLACED.values(), ids=PLACED)
def test_where_a_sentence_stands(place: str, prompt: Prompt, expected: str) -> None:
    assert read(PromptGuide("Be glad.", place=place), byte_model(), prompt) == expected


def test_before_token_ids_it_stands_as_tokens() -> None:
    model = byte_model()
    assert model.tokenizer is not None
    given = model.tokenizer.encode("Once")
    assert read(PromptGuide("Be glad."), model, given) == "Be glad.\n\nOnce"
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    begun = HFModel(tiny_model("llama").module, tokenizer)
    assert begun.tokenizer is not None
    assert begun.tokenizer.encode("w5")[0] == 0, "it begins texts with a token"
    bound = PromptGuide("w3", separator=" ").bind(begun)
    given = begun.tokenizer.encode("w5")
    assert bound.prompt_ids(given, given) == begun.tokenizer.encode("w3 w5")


def test_what_a_chat_says_to_the_template_holds_for_the_sentence_too() -> None:
    template = BYTE_TEMPLATE + "{% if mood is defined %}({{ mood }}){% endif %}"
    assert read(PromptGuide("Be glad."), byte_model(template), Chat([USER], {"mood": "up"})).endswith("(up)")


def test_without_a_system_role_it_stands_before_the_users_text_or_is_refused() -> None:
    model = byte_model(NO_SYSTEM)
    assert read(PromptGuide("Be glad."), model, [USER]) == "[user] Be glad.\n\nHi\n[assistant] "
    assert PromptGuide("Be glad.").bind(model).place == "user"
    with pytest.raises(OptionError, match=r"no system role .*No system role.*place 'user'"):
        PromptGuide("Be glad.", place="system").bind(model)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (("",), "empty"),
        (("Be glad.", " \n"), "empty"),
        (("Be glad.", "Be glad."), "the same"),
        ((7,), "is 7; give a text"),
    ],
)
def test_sentences_that_say_nothing_are_refused(sentences: Sequence[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PromptGuide(*sentences)


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(OptionError, match="Unknown place of a sentence 'system-message'"):
        PromptGuide("Be glad.", place="system-message")


def test_a_sentence_longer_than_the_context_is_refused_when_it_is_bound() -> None:
    with pytest.raises(OptionError, match=r"has 120 tokens.*holds 96"):
        PromptGuide("glad! " * 20).bind(byte_model())


def test_a_sentence_that_leaves_no_room_for_a_prompt_is_refused_with_the_request() -> None:
    decoder = Decoder(byte_model(), {"glad": PromptGuide("glad! " * 8, "sad! ")})
    with pytest.raises(PromptError, match="guide glad"):
        decoder.generate("Once upon a time there was a king who had no sentence of his own, he said")


def test_a_model_of_bare_ids_reads_no_sentence() -> None:
    with pytest.raises(OptionError, match="no tokenizer"):
        PromptGuide("Be glad.").bind(HFModel(tiny_model("llama").module))


def test_before_it_is_bound_it_does_not_run() -> None:
    with pytest.raises(BaseMismatchError, match="bind"):
        PromptGuide("Be glad.").open()
