"""Prompt and answer as ids: what training reads is what decoding is fed and produces, for any tokenizer and template.

The matrix is small tokenizers of every kind, built on the spot, times chat templates of every habit.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from trimtab.core import Chat
from trimtab.errors import PromptError
from trimtab.models.hf import HFTokenizer
from trimtab.models.tokenizing.conversations import Conversations, Exchange

SPECIAL = ("<pad>", "<s>", "</s>", "<end>", "<think>", "</think>")
BOS, EOS, END = 1, 2, 3
ENDS = frozenset({EOS, END})
WORDS = ("Hello", "world", "yes", "no", "hi", "user", "assistant", "system", "a", "b")


def _finished(inner: Tokenizer, *, before: bool = False, behind: bool = False, **names: str) -> Any:
    inner.add_special_tokens([*SPECIAL])
    if before or behind:
        single = f"{'<s> ' if before else ''}$A{' </s>' if behind else ''}"
        inner.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(name, inner.token_to_id(name)) for name in ("<s>", "</s>")]
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **names}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def _byte_level(merges: list[tuple[str, str]], **how: Any) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return _finished(inner, **how)


def _metaspace(scheme: str, **how: Any) -> Any:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    merges: list[tuple[str, str]] = []
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁.,|[]:":
        vocabulary.setdefault(letter, len(vocabulary))
    for word in [*(f"▁{word}" for word in WORDS), *WORDS]:
        for place in range(1, len(word)):
            pair = word[:place], word[place]
            vocabulary.setdefault(word[: place + 1], len(vocabulary))
            if pair not in merges:
                merges.append(pair)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return _finished(inner, **how)


def _unigram() -> Any:
    pieces = [(token, 0.0) for token in SPECIAL] + [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁.,|[]:"
    pieces += [(letter, -6.0) for letter in letters] + [(word, -4.0) for word in WORDS[:8]]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return _finished(inner, before=True)


def _word_pieces() -> Any:
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    for letter in "abcdefghijklmnopqrstuvwxyz.,|[]:é☺<>/":
        for piece in (letter, f"##{letter}"):
            vocabulary[piece] = len(vocabulary)
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="<pad>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return _finished(inner, before=True, behind=True)


MERGES = [("Ċ", "Ċ"), ("Ġ", "y"), ("e", "s"), ("Ġy", "es"), ("Ġ", "H"), ("y", "es"), (":", "Ġ")]
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: _byte_level([]),
    "bytes that begin with BOS": lambda: _byte_level([], before=True),
    "bytes that end each text": lambda: _byte_level([], before=True, behind=True),
    "merges over spaces and lines": lambda: _byte_level(MERGES),
    "one token that begins and ends": lambda: _byte_level(MERGES, bos_token="</s>"),
    "no token that begins": lambda: _byte_level(MERGES, bos_token=None),  # type: ignore[arg-type]
    "metaspace, first": lambda: _metaspace("first", before=True),
    "metaspace, always": lambda: _metaspace("always", before=True),
    "metaspace, never": lambda: _metaspace("never", before=True, behind=True),
    "unigram": _unigram,
    "word pieces": _word_pieces,
}
FAITHFUL = [name for name in TOKENIZERS if name not in ("word pieces", "metaspace, always")]
"""Those that give a text back letter by letter, behind special tokens too."""

CHATML = (
    "{% for m in messages %}{{ '|' + m['role'] + '\n' + m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}|assistant\n{% endif %}"
)
TEMPLATES = {
    "ends of turns": CHATML,
    "BOS written": "<s>" + CHATML,
    "content trimmed": CHATML.replace("m['content']", "m['content'] | trim"),
    "a space opens the answer": (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    ),
    "spaces around, as Llama 2": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' </s>' }}"
        "{% else %}{{ '<s>[' + m['content'] | trim + ']' }}{% endif %}{% endfor %}"
    ),
    "a thought is opened": CHATML.replace("|assistant\n{% endif %}", "|assistant\n<think>\n{% endif %}"),
    "an empty thought is opened": CHATML.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif"),
    "thoughts are cut": CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"),
    "opened and cut, as R1": CHATML.replace("m['content']", "m['content'].split('</think>')[-1]").replace(
        "|assistant\n{% endif %}", "|assistant\n<think>\n{% endif %}"
    ),
    "the last turn has a thought, as Qwen3": (
        "{% for m in messages %}{{ '|' + m['role'] + '\n' }}{% if loop.last and m['role'] == 'assistant' %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}|assistant\n{% endif %}"
    ),
    "the last turn is not ended": (
        "{% for m in messages %}|{{ m['role'] }}\n{{ m['content'] }}{% if not loop.last %}<end>\n{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<end>\n|assistant\n{% endif %}"
    ),
    "content in parts": (
        "{% for m in messages %}|{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<end>\n"
        "{% endfor %}{% if add_generation_prompt %}|assistant\n{% endif %}"
    ),
}
ANSWERS = ("yes", "Hello world", " yes ", "\n\nno", "no\nyes\n", "<think>\na\n</think>\n\nno", "né ☺")
PROMPT = ({"role": "user", "content": "hi"},)
LONGER = ({"role": "system", "content": "a"}, *PROMPT, {"role": "assistant", "content": "no"}, *PROMPT)
PREFILLED = (*PROMPT, {"role": "assistant", "content": "Hello "})


@functools.cache
def _built(name: str) -> Any:
    return TOKENIZERS[name]()


def _tokenizer(name: str, template: str) -> HFTokenizer:
    return _with(name, TEMPLATES[template])


def _with(name: str, template: Any) -> HFTokenizer:
    hf = _built(name)
    hf.chat_template = template
    return HFTokenizer(hf)


def _shown(tokenizer: HFTokenizer, ids: list[int]) -> str:
    return str(tokenizer.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _exchange(tokenizer: HFTokenizer, prompt: Any, answer: str) -> Exchange:
    (found,) = tokenizer.conversations.exchanges(prompt, [{"role": "assistant", "content": answer}], ENDS)
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_training_reads_what_decoding_is_fed_and_produces(name: str, template: str) -> None:
    tokenizer = _tokenizer(name, template)
    for prompt in (PROMPT, LONGER, PREFILLED):
        fed = tokenizer.encode_chat(prompt)
        for answer in ANSWERS:
            found = _exchange(tokenizer, prompt, answer)
            assert found.prompt_ids == fed, "the prompt is what decoding is fed"
            assert found.answer_ids[-1] in ENDS, "it ends where decoding stops"
            assert not ENDS.intersection(found.answer_ids[:-1]), "and not before"
            assert found.num_cut == 0
            if name in FAITHFUL:
                said = _shown(tokenizer, [*fed, *found.answer_ids])
                assert said.startswith(_shown(tokenizer, fed)), "decoding adds to the prompt, token by token"
                start = (
                    max(0, len(_shown(tokenizer, fed)) - len("<think>."))
                    if "think" in said
                    else len(_shown(tokenizer, fed))
                )
                assert answer.strip() in said[start:]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_where_the_conversation_continues_the_prompt_the_answer_is_its_ids(name: str, template: str) -> None:
    """`apply_chat_template` of the whole, by transformers itself, is the judge."""
    tokenizer = _tokenizer(name, template)
    if template == "content in parts":
        pytest.skip("transformers is given a text, which this template does not read")
    hf, num_judged = tokenizer.hf, 0
    for answer in ("yes", "Hello world", "né ☺"):
        messages = [dict(message) for message in PROMPT]
        opened = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole = hf.apply_chat_template([*messages, {"role": "assistant", "content": answer}], tokenize=False)
        before, after = (hf(text, add_special_tokens=False)["input_ids"] for text in (opened, whole))
        if after[: len(before)] != before or not ENDS.intersection(after[len(before) :]):
            continue
        rest = after[len(before) :]
        want = rest[: next(place for place, item in enumerate(rest) if item in ENDS) + 1]
        assert _exchange(tokenizer, PROMPT, answer).answer_ids == want
        num_judged += 1
    assert num_judged or template not in ("ends of turns", "content trimmed", "thoughts are cut")


@pytest.mark.parametrize("template", ["ends of turns", "BOS written", "content trimmed", "thoughts are cut"])
@pytest.mark.parametrize("name", FAITHFUL)
def test_a_cut_off_answer_is_continued_where_it_ended(name: str, template: str) -> None:
    """What is said so far, sent as the assistant's message, is the text that decoding had before it."""
    tokenizer = _tokenizer(name, template)
    for said in ("yes", "Hello world ", " yes", "", "  ", "no\n", "<think>\na", "<think>\na\n</think>\n\nno"):
        continued = tokenizer.encode_chat([*PROMPT, {"role": "assistant", "content": said}])
        assert _shown(tokenizer, continued) == _shown(tokenizer, tokenizer.encode_chat(PROMPT)) + said


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_raw_text_is_continued(name: str) -> None:
    tokenizer = _tokenizer(name, "ends of turns")
    whole = tokenizer.hf("hi. yes", add_special_tokens=False)["input_ids"]
    for prompt in ("hi.", "hi\n", "hi ", "<s>hi", "hi</s>"):
        fed = tokenizer.encode(prompt)
        plain = tokenizer.hf(prompt, add_special_tokens=False)["input_ids"]
        assert fed[-1] == plain[-1], "nothing stands behind a text that is to be continued"
        assert fed[:2] != [BOS, BOS]
        assert fed.count(BOS) <= 1
        for answer in (" yes", "yes", "\nno", " Hello world"):
            found = _exchange(tokenizer, prompt, answer)
            assert found.prompt_ids == fed
            assert found.answer_ids[-1] == EOS
            assert EOS not in found.answer_ids[:-1]
            if name in FAITHFUL:
                shown = _shown(tokenizer, [*fed, *found.answer_ids])
                assert shown == _shown(tokenizer, fed) + answer + "</s>"
    start = len(tokenizer.encode("hi.")) - len(tokenizer.hf("hi.", add_special_tokens=False)["input_ids"])
    assert [*tokenizer.encode("hi. yes")[start:]] == whole


def test_an_answer_that_holds_an_end_ends_there() -> None:
    tokenizer = _tokenizer("bytes", "ends of turns")
    found = _exchange(tokenizer, PROMPT, "yes<end>\n|user\nand then?")
    assert (_shown(tokenizer, found.answer_ids), found.num_cut) == ("yes<end>", len("|user\nand then?"))
    tidy = _exchange(tokenizer, PROMPT, "yes<end>")
    assert (_shown(tokenizer, tidy.answer_ids), tidy.num_cut) == ("yes<end>", 0), (
        "an end that is written out is one end"
    )


def test_an_opened_thought_is_not_opened_twice() -> None:
    tokenizer = _tokenizer("bytes", "opened and cut, as R1")
    found = _exchange(tokenizer, PROMPT, "<think>\na\n</think>\n\nno")
    assert _shown(tokenizer, [*found.prompt_ids, *found.answer_ids]).endswith("<think>\na\n</think>\n\nno<end>")
    assert found.answer_ids.count(tokenizer.tokens["<think>"]) == 0


def _thoughtful(read: str) -> HFTokenizer:
    hf = TOKENIZERS["bytes"]()
    hf.chat_template = CHATML.replace("{{ '|'", "{{ (m['" + read + "'] or '') + '|'") if read else CHATML
    return HFTokenizer(hf)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_goes_to_the_template_under_the_name_that_it_reads(key: str) -> None:
    tokenizer = _thoughtful("reasoning_content")
    messages = [*PROMPT, {"role": "assistant", "content": "no", key: "hmm"}, *PROMPT]
    assert "hmm" in _shown(tokenizer, tokenizer.encode_chat(messages))
    with pytest.raises(PromptError, match=f"Message 2 has '{key}', which the model's chat template never reads"):
        _thoughtful("").encode_chat(messages)


@pytest.mark.parametrize("key", ["tool_calls", "weight", "prefix", "persona"])
def test_what_a_template_never_reads_of_a_message_is_refused_by_name(key: str) -> None:
    with pytest.raises(PromptError, match=f"has '{key}'"):
        _thoughtful("").encode_chat([{**PROMPT[0], key: 1}])
    tokenizer = _thoughtful("")
    assert tokenizer.encode_chat([{**PROMPT[0], "id": "7", "created_at": "today", key: None}]) == tokenizer.encode_chat(
        PROMPT
    ), "what is about a message, or empty, is nothing to read"


def test_a_thought_of_an_answer_is_learnt_or_refused() -> None:
    answer = {"role": "assistant", "content": "no", "thinking": "hmm"}
    hf = TOKENIZERS["bytes"]()
    thought = "{% if m['thinking'] %}{{ '<think>' + m['thinking'] + '</think>' }}{% endif %}"
    hf.chat_template = CHATML.replace("'\n' + m['content'] }}", "'\n' }}" + thought + "{{ m['content'] }}")
    (found,) = Conversations(hf).exchanges(PROMPT, [answer], ENDS)
    assert hf.decode(found.answer_ids) == "<think>hmm</think>no<end>"
    hf.chat_template = CHATML.replace(
        "m['content'] }}", "m['content'] + (m['thinking'] or '' if not loop.last else '') }}"
    )
    with pytest.raises(PromptError, match="does not write 'thinking' of an answer"):
        Conversations(hf).exchanges(PROMPT, [answer], ENDS)


def test_a_role_that_the_template_leaves_out_is_refused() -> None:
    hf = TOKENIZERS["bytes"]()
    hf.chat_template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    with pytest.raises(PromptError, match="leaves out what 'system' says in message 1"):
        HFTokenizer(hf).encode_chat(LONGER)


OPTIONS = (
    CHATML + "{% set effort = effort | default('low') %}{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{{ effort }}{% if tools %}{{ tools | tojson }}{% endif %}"
)


def test_options_reach_the_template() -> None:
    hf = TOKENIZERS["bytes"]()
    hf.chat_template = OPTIONS
    tokenizer = HFTokenizer(hf)

    def shown(**options: Any) -> str:
        return _shown(tokenizer, tokenizer.encode_chat(Chat(PROMPT, options)))

    assert shown().endswith("|assistant\nlow")
    assert shown(enable_thinking=True, effort="high").endswith("|assistant\nhigh")
    assert shown(enable_thinking=False).endswith("<think></think>low")
    assert shown(tools=[{"name": "look"}]).endswith('low[{"name": "look"}]')


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt", "chat_template", "tokenize"])
def test_an_option_that_the_template_does_not_read_is_refused_by_name(name: str) -> None:
    hf = TOKENIZERS["bytes"]()
    hf.chat_template = OPTIONS
    with pytest.raises(PromptError, match=f"no option '{name}'.*it reads: effort, enable_thinking, tools"):
        HFTokenizer(hf).encode_chat(Chat(PROMPT, {name: True}))
    plain = HFTokenizer(hf).encode_chat(Chat(PROMPT, {name: True}, required=False))
    assert plain == HFTokenizer(hf).encode_chat(PROMPT), "a guide's template is told what it knows"


RAISING: dict[str, Any] = {
    "an error of its own": "{{ raise_exception('not so') }}",
    "types": "{{ messages[0]['content'] + 1 }}",
    "a missing key": "{{ messages[0]['name'] + 'x' }}",
    "an unknown filter": "{{ messages | nonsense }}",
    "no syntax": "{% for m in messages %}",
    "no end": "{% macro again(n) %}{{ again(n) }}{% endmacro %}{{ again(1) }}",
    "division": "{{ 1 // 0 }}",
    "an index": "{{ 'a'.index('b') }}",
    "the sandbox": "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
    "a list of none": "{{ tools | length }}",
    "no default": {"rag": "x", "tool_use": "y"},
    "nested": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.mark.parametrize("what", RAISING)
@pytest.mark.parametrize("last", ["user", "assistant"])
def test_whatever_a_template_raises_is_a_refusal(what: str, last: str) -> None:
    hf = TOKENIZERS["bytes"]()
    hf.chat_template = RAISING[what]
    with pytest.raises(PromptError, match="template"):
        HFTokenizer(hf).encode_chat([{"role": last, "content": "hi"}])


def test_a_call_of_a_tool_has_its_arguments_as_an_object() -> None:
    hf = TOKENIZERS["bytes"]()
    written = "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.city }}{% endif %}"
    hf.chat_template = CHATML.replace("m['content'] }}", "m['content'] }}" + written)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    messages = [*PROMPT, {"role": "assistant", "content": None, "tool_calls": [call]}, *PROMPT]
    assert "assistant\nRome<end>" in _shown(HFTokenizer(hf), HFTokenizer(hf).encode_chat(messages))


@pytest.mark.parametrize(
    "written", ["{{ turn | tojson }}", "{{ messages | tojson }}", "{% for k, v in turn.items() %}{{ v }}{% endfor %}"]
)
def test_a_template_that_writes_messages_whole_reads_all_of_them(written: str) -> None:
    tokenizer = _with("bytes", "{% for turn in messages[0:] %}" + written + "{% endfor %}")
    assert "pirate" in _shown(tokenizer, tokenizer.encode_chat([{**PROMPT[0], "persona": "pirate"}]))


def test_a_chat_is_its_messages_and_its_options() -> None:
    told, plain = Chat(PROMPT, {"effort": "low"}), Chat(PROMPT)
    assert (told == plain, told != plain, told == PROMPT, told != PROMPT) == (False, True, False, True)
    assert (plain == PROMPT, plain != PROMPT, plain == list(PROMPT)) == (True, False, False)
    for again in (pickle.loads(pickle.dumps(told)), copy.deepcopy(told)):
        assert (again, again.required) == (told, True)
