"""`--template-option`: from a flag, a row or Python into the chat template; what cannot go there is refused."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import BYTE_TEMPLATE, byte_llama, byte_tokenizer
from trimtab.cli.template_options import add_template_options, template_options
from trimtab.core import Chat
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, PromptError
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.prompts import check_options

from .conftest import Run, Tiny

TEMPLATE = BYTE_TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}-{% endif %}{{ effort }}"
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("told"))
    tokenizer = byte_tokenizer(template=TEMPLATE, model_max_length=96)
    byte_llama(tokenizer, max_length=96).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _told(*argv: str) -> dict[str, Any]:
    parser = ArgumentParser()
    add_template_options(parser)
    return template_options(parser.parse_args(argv))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("false", False), ("False", False), ("TRUE", True), ("null", None), ("None", None), ("3", 3), ("0.5", 0.5)),
        *(("low", "low"), ('"3"', "3"), ("", ""), ("a=b", "a=b"), ("[1, 2]", [1, 2]), ('{"a": true}', {"a": True})),
        *(("NaN", "NaN"), ("[" * 100_000, "[" * 100_000)),
    ],
)
def test_a_value_is_json_or_a_text(text: str, value: Any) -> None:
    assert _told("--template-option", f"name={text}") == {"name": value}


def test_what_is_no_option_is_refused() -> None:
    for text in ("name", "=3", "a b=3", "a-b=3"):
        with pytest.raises(SystemExit):
            _told("--template-option", text)
    with pytest.raises(OptionError, match="name is given twice"):
        _told("--template-option", "name=1", "--template-option", "name=2")
    with pytest.raises(OptionError, match="which --raw leaves out"):
        _told("--template-option", "name=1", "--raw")


def _generated(run: Run, model: str, *argv: str) -> Any:
    outcome = run("generate", "--model", model, "--max-new-tokens", "4", "--seed", "1", "--json", *argv)
    return json.loads(outcome.out) if outcome.code == 0 else outcome.err


def test_generate_tells_the_template(run: Run, model: str, tmp_path: Path) -> None:
    decoder = Decoder(_loaded(model))
    want = next(decoder.generate([Chat([USER], {"enable_thinking": False})], max_new_tokens=4, seed=1))
    flags = ("--template-option", "enable_thinking=false")
    assert _generated(run, model, "--prompt", "Hi", *flags)["token_ids"] == list(want.token_ids)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": False}}) + "\n")
    row = _generated(run, model, "--prompts", str(rows))
    assert row["token_ids"] == list(want.token_ids)
    assert row["chat_template_kwargs"] == {"enable_thinking": False}
    said = next(decoder.generate([[USER]], template_options={"enable_thinking": False}, max_new_tokens=4, seed=1))
    assert said.token_ids == want.token_ids


def _loaded(directory: str) -> HFModel:
    from trimtab.storage.loading import load_model

    return load_model(directory, device="cpu")


def test_an_answer_file_is_not_continued_with_other_options(run: Run, model: str, tmp_path: Path) -> None:
    out = ("--prompt", "Hi", "--out", str(tmp_path / "a.jsonl"))
    _generated(run, model, *out, "--template-option", "effort=low")
    said = _generated(run, model, *out, "--resume", "--template-option", "effort=high")
    assert "template_options" in said


def test_an_option_that_the_template_does_not_read_is_refused(run: Run, model: str, tiny: Tiny) -> None:
    said = _generated(run, model, "--prompt", "Hi", "--template-option", "enable_thinkin=false")
    assert "no option 'enable_thinkin'" in said
    assert "effort, enable_thinking" in said
    said = _generated(run, tiny.plain, "--prompt", "Hi", "--template-option", "effort=low")
    assert "'effort' is for a chat template, and this prompt goes through none" in said


def test_chat_and_explain_tell_it_too(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    for said, code in (("effort=low", 0), ("efort=low", 2)):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
        flags = ("--model", model, "--max-new-tokens", "2", "--template-option", said)
        assert run("chat", *flags).code == code
        assert run("explain", *flags, "--prompt", "Hi").code == code


def test_train_arm_tells_it(run: Run, model: str, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    data.write_text(json.dumps({"prompt": [USER], **answers, "context": "We are lost."}) + "\n")
    argv = ("train", "arm", "--model", model, "--data", str(data), "--out", str(tmp_path / "guide"))
    argv += ("--max-length", "64", "--eval-share", "0", "--batch-size", "1", "--gradient-accumulation", "1")
    assert "--ignore-column context" in run(*argv).err
    ignored = (*argv, "--ignore-column", "context")
    assert "no option 'efort'" in run(*ignored, "--template-option", "efort=low").err
    assert run(*ignored, "--template-option", "effort=low", "--json").code == 0


def test_a_guides_template_is_told_what_it_reads() -> None:
    base, own = (
        HFModel(byte_llama(hf, max_length=96), hf) for hf in (byte_tokenizer(template=TEMPLATE), byte_tokenizer())
    )
    prompt = Chat([USER], {"effort": "low"})
    assert base.tokenizer is not None
    assert own.tokenizer is not None
    assert ARM(own).prompt_ids(prompt, []) == own.tokenizer.encode_chat([USER])
    assert ARM(base).prompt_ids(prompt, []) == base.tokenizer.encode_chat(prompt)
    negative = ARM(base, prompt=lambda asked: [{"role": "system", "content": "Be rude."}, *asked])  # type: ignore[misc]
    told = base.tokenizer.encode_chat(Chat([{"role": "system", "content": "Be rude."}, USER], {"effort": "low"}))
    assert negative.prompt_ids(prompt, []) == told


def test_a_server_checks_its_options_when_it_starts(model: str) -> None:
    check_options(_loaded(model), {"effort": "low"})
    with pytest.raises(OptionError, match="no option 'efort'"):
        check_options(_loaded(model), {"efort": "low"})


def test_python_refuses_options_of_what_goes_through_no_template(model: str) -> None:
    decoder = Decoder(_loaded(model))
    for prompt in ("Hi", [70, 71]):
        with pytest.raises(PromptError, match="'effort' is for a chat template"):
            next(decoder.generate([prompt], template_options={"effort": "low"}))  # type: ignore[list-item]
