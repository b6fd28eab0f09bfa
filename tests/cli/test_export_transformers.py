"""`trimtab export transformers`: a directory that transformers' own `generate` takes as `custom_generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.errors import CompatibilityError, OptionError
from trimtab.guides.agent import AgentNetwork

from .conftest import Run, Tiny


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers copies code to, apart from the user's."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def exported(run: Run, tiny: Tiny, tmp_path: Path) -> Path:
    out = tmp_path / "exported"
    outcome = run("export", "transformers", tiny.lora, "--out", str(out), "--name", "kind", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out) == {
        "out": str(out),
        "format": "transformers",
        "name": "kind",
        "guide": str(out / "guide"),
    }
    assert "imports trimtab" in outcome.err
    return out


class Loaded:
    """A model as a user of transformers has it."""

    def __init__(self, directory: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def generate(self, exported: Path, texts: list[str], **options: Any) -> list[list[int]]:
        """The new tokens of each row."""
        self.tokenizer.pad_token_id = 0
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        inputs.pop("token_type_ids", None)
        given = {"tokenizer": self.tokenizer, "trust_remote_code": True, "max_new_tokens": 6, **options}
        ids = self.model.generate(**inputs, custom_generate=str(exported), **given)
        width = inputs["input_ids"].shape[1]
        repeats = options.get("num_return_sequences", 1)
        assert torch.equal(ids[:, :width], inputs["input_ids"].repeat_interleave(repeats, dim=0))
        return ids[:, width:].tolist()


@pytest.fixture(scope="module")
def loaded(tiny: Tiny) -> Loaded:
    return Loaded(tiny.model)


def _answers(run: Run, tiny: Tiny, prompts: list[str], tmp_path: Path, *flags: str) -> list[list[int]]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    argv = ["generate", "--model", tiny.model, "--prompts", str(file), "--max-new-tokens", "6", "--raw", *flags]
    outcome = run(*argv)
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["token_ids"] for line in outcome.out.splitlines()]


def _unpadded(rows: list[list[int]], like: list[list[int]]) -> list[list[int]]:
    return [row[: len(other)] for row, other in zip(rows, like, strict=True)]


PROMPTS = ["How are you?", "a"]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_tokens_are_those_of_trimtab_generate(
    run: Run, tiny: Tiny, exported: Path, loaded: Loaded, tmp_path: Path, weight: float
) -> None:
    flags = ("--guide", f"kind={tiny.lora}:{weight}", "--seed", "7")
    wanted = _answers(run, tiny, PROMPTS, tmp_path, *flags)
    found = loaded.generate(exported, PROMPTS, weights={"kind": weight}, do_sample=True, seed=7)
    assert _unpadded(found, wanted) == wanted
    greedy = _answers(run, tiny, PROMPTS, tmp_path, *flags, "--temperature", "0")
    assert _unpadded(loaded.generate(exported, PROMPTS, weights={"kind": weight}), greedy) == greedy
    filtered = _answers(run, tiny, PROMPTS, tmp_path, *flags, "--temperature", "0.7", "--top-k", "5")
    options = {"do_sample": True, "temperature": 0.7, "top_k": 5, "seed": 7}
    assert _unpadded(loaded.generate(exported, PROMPTS, weights={"kind": weight}, **options), filtered) == filtered


def test_a_guide_steers_and_a_weight_is_each_prompts(exported: Path, loaded: Loaded) -> None:
    plain, steered = (loaded.generate(exported, ["a", "a"], weights={"kind": weight}) for weight in (0.0, 3.0))
    assert plain != steered
    assert loaded.generate(exported, ["a", "a"], weights=[{"kind": 0.0}, {"kind": 3.0}]) == [plain[0], steered[1]]


def test_seeds_hold_and_torch_gives_one_where_nobody_does(exported: Path, loaded: Loaded) -> None:
    drawn = [loaded.generate(exported, ["a"], do_sample=True, seed=seed, num_return_sequences=3) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({tuple(row) for row in drawn[0]}) > 1
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(loaded.generate(exported, ["a"], do_sample=True))
    assert found[0] == found[1] != found[2]


def test_an_answer_ends_where_transformers_would_end_it(exported: Path, loaded: Loaded) -> None:
    (row,) = loaded.generate(exported, ["a"], max_new_tokens=None, max_length=1 + 4, weights={"kind": 0.0})
    assert len(row) <= 4
    inputs = loaded.tokenizer(["a"], return_tensors="pt")
    ours = loaded.model.generate(
        **inputs,
        tokenizer=loaded.tokenizer,
        custom_generate=str(exported),
        trust_remote_code=True,
        weights={"kind": 0.0},
        max_new_tokens=6,
    )
    theirs = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours, theirs)


REFUSED = {
    "beams": ({"num_beams": 2}, r"num_beams is 2, which guided decoding does not do; leave it out \(its value for off"),
    "a penalty of other meaning": ({"repetition_penalty": 1.2}, "repetition_penalty is 1.2"),
    "a processor": ({"logits_processor": [print]}, "logits_processor is"),
    "a dictionary": ({"return_dict_in_generate": True}, "return_dict_in_generate is True"),
    "an assistant": ({"assistant_model": object()}, "assistant_model is"),
    "a streamer": ({"streamer": object()}, "streamer is"),
    "a typing error": ({"weight": {"kind": 1.0}}, "weight is"),
    "an unknown guide": ({"weights": {"knd": 1.0}}, "Unknown guide 'knd'. Did you mean 'kind'"),
    "too few weights": ({"weights": [{}, {}]}, "weights for 2 prompts and 1 prompts"),
    "no tokenizer": ({"tokenizer": None}, "Give tokenizer="),
    "another end": ({"eos_token_id": 5}, r"eos_token_id is \[5\]"),
    "no room": ({"max_new_tokens": None, "max_length": 1}, "Give max_new_tokens"),
    "a broken seed": ({"seed": 1.5}, "seed is 1.5"),
    "no answers": ({"num_return_sequences": 0}, "num_return_sequences is 0"),
    "a filter of nothing": ({"top_k": 5}, "top_k is 5, and without do_sample nothing is drawn"),
    "two lengths": ({"max_length": 9}, "Give one of them"),
    "a shortest that is too long": ({"min_new_tokens": 9}, "min_new_tokens is 9, and max_new_tokens 6"),
    "a number for weights": ({"weights": 1.0}, "weights is 1.0; give {NAME: NUMBER}"),
    "numbers for weights": ({"weights": [1.0]}, r"weights is \[1.0\]"),
    "an end that is a text": ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
    "guides of another kind": ({"guides": ["a"]}, "guides is no mapping"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_done_is_refused_by_name(exported: Path, loaded: Loaded, what: str) -> None:
    options, message = REFUSED[what]
    with pytest.raises(OptionError, match=message):
        loaded.generate(exported, ["a"], **options)


def test_what_asks_for_nothing_is_no_fault(exported: Path, loaded: Loaded) -> None:
    options = {"num_beams": 1, "repetition_penalty": 1.0, "logits_processor": [], "use_cache": True, "streamer": None}
    assert loaded.generate(exported, ["a"], **options) == loaded.generate(exported, ["a"])


def test_the_models_generation_config_counts(exported: Path, tiny: Tiny) -> None:
    loaded = Loaded(tiny.model)
    loaded.model.generation_config.repetition_penalty = 1.1
    with pytest.raises(OptionError, match=r"repetition_penalty is 1\.1.*also of the generation config"):
        loaded.generate(exported, ["a"])
    loaded.generate(exported, ["a"], repetition_penalty=1.0)
    loaded.model.generation_config.max_new_tokens = 5
    loaded.model.generation_config.temperature = 0.5  # of no effect without do_sample, as in transformers
    off = {"repetition_penalty": 1.0, "max_new_tokens": None}
    assert len(loaded.generate(exported, ["a"], **off)[0]) <= 5
    assert len(loaded.generate(exported, ["a"], **off, max_length=3)[0]) <= 2
    loaded.model.train()
    with pytest.raises(OptionError, match="training mode"):
        loaded.generate(exported, ["a"], repetition_penalty=1.0)


def test_padding_is_on_the_left_and_known(exported: Path, loaded: Loaded) -> None:
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    given = {"custom_generate": str(exported), "trust_remote_code": True, "tokenizer": loaded.tokenizer}
    with pytest.raises(OptionError, match="padded on its right"):
        loaded.model.generate(ids, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]), max_new_tokens=2, **given)
    with pytest.raises(OptionError, match="Give attention_mask"):
        loaded.model.generate(ids.flip(1), pad_token_id=0, max_new_tokens=2, **given)


def test_another_base_is_refused_before_decoding(
    exported: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tiny import byte_llama, byte_tokenizer
    from trimtab.decoding.decoder import Decoder

    tokenizer = byte_tokenizer(template=None, model_max_length=96)
    tokenizer.add_tokens(["<another>"])
    model = byte_llama(tokenizer, max_length=96, seed=0)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    card = {"format": 1, "kind": "arm", "base": {}, "vocabulary": {"size": 3, "fingerprint": "x"}}
    (exported / "guide" / "guide.json").write_text(json.dumps(card))
    monkeypatch.setattr(Decoder, "generate", lambda *_: pytest.fail("it decodes"))
    with pytest.raises(CompatibilityError, match=r"they differ in content\. An adapter runs"):
        Loaded(str(tmp_path / "other")).generate(exported, ["a"])


def test_a_directory_that_has_moved_says_the_way_out(exported: Path, loaded: Loaded, tmp_path: Path) -> None:
    before = loaded.generate(exported, ["a"], weights={"kind": 3.0})
    moved = tmp_path / "moved"
    shutil.move(exported, moved)
    assert 'guides={"kind": "DIR/guide"}' in (moved / "README.md").read_text().replace("'", '"')
    given = {"weights": {"kind": 3.0}, "guides": {"kind": str(moved / "guide")}}
    assert loaded.generate(moved, ["a"], **given) == before


def test_code_runs_only_where_it_is_trusted(exported: Path, loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        loaded.generate(exported, ["a"], trust_remote_code=False)


def test_its_requirements_name_trimtab(exported: Path) -> None:
    assert (exported / "custom_generate" / "requirements.txt").read_text().startswith("trimtab>=")
    code = (exported / "custom_generate" / "generate.py").read_text()
    compile(code, "generate.py", "exec")
    assert "\nfrom trimtab import generate_with_guides\n" in code


def test_an_agent_chooses_as_in_trimtab_generate(run: Run, tiny: Tiny, loaded: Loaded, tmp_path: Path) -> None:
    """A guide that selects reads the model's states, which a logits processor never sees."""
    torch.manual_seed(0)
    torch.save(AgentNetwork(32, 64).state_dict(), tmp_path / "actor.pth")
    agent, out = str(tmp_path / "agent"), tmp_path / "out"
    assert run("convert", "agent", str(tmp_path / "actor.pth"), agent, "--width", "32").code == 0
    assert run("export", "transformers", agent, "--out", str(out)).code == 0
    wanted = _answers(run, tiny, PROMPTS, tmp_path, "--guide", f"guide={agent}", "--seed", "3")
    assert _unpadded(loaded.generate(out, PROMPTS, do_sample=True, seed=3), wanted) == wanted
    unsteered = loaded.generate(out, PROMPTS, do_sample=True, seed=3, weights={"guide": 0.0})
    assert _unpadded(unsteered, wanted) != wanted


def test_a_sentence_is_carried_by_itself(run: Run, loaded: Loaded, tmp_path: Path) -> None:
    out = tmp_path / "sentence"
    assert run("export", "transformers", 'prompt:"Be kind."', "--out", str(out)).code == 0
    assert not (out / "guide").exists()
    assert len(loaded.generate(out, ["a"], weights={"guide": 1.0})) == 1


def test_what_cannot_be_carried_is_refused_by_name(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    bad = tmp_path / "bad"
    shutil.copytree(tiny.lora, bad)
    (bad / "code.py").write_text("print('hello')\n")
    for guide, flags, message in (
        (str(tmp_path / "m.gguf"), (), "which llama.cpp runs"),
        (str(bad), (), "it holds what may run code"),
        (tiny.lora, ("--name", "a b"), "The name 'a b' is none"),
        (str(tmp_path / "none"), (), "none"),
    ):
        outcome = run("export", "transformers", guide, "--out", str(tmp_path / "out"), *flags)
        assert outcome.code == 2, outcome
        assert message in outcome.err
        assert not (tmp_path / "out").exists()
    assert run("export", "transformers", tiny.lora, "--out", str(bad)).code == 2
