"""Packing a base with guides: what is written, that nothing is copied, and what is refused. No vLLM is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_module, tiny_tokenizer, write_lora
from trimtab.engines.vllm.manifest import Manifest
from trimtab.engines.vllm.packing import pack
from trimtab.errors import (
    BaseMismatchError,
    CheckpointError,
    CompatibilityError,
    OptionError,
    OutputExistsError,
    TrimtabError,
    VocabularyMismatchError,
)

OTHER_TEMPLATE = "{% for m in messages %}w1 {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with three ids that no token has, and guides of every sort."""
    root = tmp_path_factory.mktemp("house")
    base = _save(root / "base", tiny_tokenizer([f"w{index}" for index in range(56)]))
    for name in ("near", "tuned", "reward", "parm"):
        write_lora(root / name, base)
    _card(root / "tuned", kind="policy")
    _card(root / "reward", kind="reward")
    _card(root / "parm", kind="parm")
    _card(root / "odd", kind="oracle")
    write_lora(root / "of another", tiny_module("llama", hidden_size=48))
    _save(root / "other", tiny_tokenizer([f"w{index}" for index in range(56)]), hidden_size=16)
    small = _save(root / "small", tiny_tokenizer([f"w{index}" for index in range(56)]), hidden_size=16)
    for name in ("weak", "weaker", "lost", "bare"):
        write_lora(root / name, small)
    described = {"architecture": "LlamaForCausalLM", "num_layers": 3, "hidden_size": 16}
    _card(root / "weak", kind="arm", guide_form="shift", base={"name": str(root / "small"), **described})
    _card(root / "lost", kind="arm", base={"name": str(root / "gone"), **described})
    write_lora(root / "weaker", small, base_model_name_or_path=str(root / "small"))
    _card(root / "agent", kind="agent")
    _card(root / "formless", kind="arm", guide_form="sum")
    write_lora(root / "formless", base)
    _save(root / "tuned whole", tiny_tokenizer([f"w{index}" for index in range(56)]), hidden_size=16)
    _card(root / "tuned whole", kind="policy", base={"name": str(root / "small"), **described})
    _save(root / "words", tiny_tokenizer([f"v{index}" for index in range(56)]))
    spoken = tiny_tokenizer([f"w{index}" for index in range(56)])
    spoken.chat_template = OTHER_TEMPLATE
    _save(root / "spoken", spoken, hidden_size=16)
    return root


def _save(directory: Path, tokenizer: Any, **shape: Any) -> Any:
    module = tiny_module("llama", **shape)
    module.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return module


def _card(directory: Path, **content: Any) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "guide.json").write_text(json.dumps({"format": 1, **content}))


def test_a_packed_directory_says_what_runs_how(house: Path, tmp_path: Path) -> None:
    guides = {"near": house / "near", "tuned": house / "tuned", "other": house / "other"}
    manifest = pack(house / "base", guides, tmp_path / "served", weights={"near": 0.5})
    config = json.loads((tmp_path / "served" / "config.json").read_text())
    assert Manifest.of(config) == manifest
    assert manifest.base == str(house / "base")
    assert manifest.architectures == ("LlamaForCausalLM",)
    assert config["architectures"] == ["TrimtabForCausalLM"]
    ways = {guide.name: (guide.kind, guide.way, guide.path, guide.weight, guide.form) for guide in manifest.guides}
    assert ways == {
        "near": ("arm", "shared", str(house / "near"), 0.5, "product"),
        "tuned": ("policy", "shared", str(house / "tuned"), 0.0, "shift"),
        "other": ("arm", "model", str(house / "other"), 0.0, "product"),
    }
    assert [guide.base for guide in manifest.guides] == [None, None, None]
    assert manifest.weights == {"near": 0.5, "tuned": 0.0, "other": 0.0}
    assert manifest.nameless == ((58, 61),)


def test_a_guide_of_a_smaller_model_is_packed_with_it(house: Path, tmp_path: Path) -> None:
    guides = {name: house / name for name in ("near", "weak", "weaker", "bare", "tuned whole", "other")}
    bases = {"bare": str(house / "small" / ".." / "small")}
    manifest = pack(house / "base", guides, tmp_path / "served", bases=bases)
    found = {guide.name: (guide.way, guide.form, guide.base) for guide in manifest.guides}
    small = str(house / "small")
    assert found == {
        "near": ("shared", "product", None),
        "weak": ("shared", "shift", small),
        "weaker": ("shared", "product", small),
        "bare": ("shared", "product", small),
        "tuned whole": ("model", "shift", small),
        "other": ("model", "product", None),
    }
    assert _manifest(tmp_path / "served") == manifest


def test_a_base_that_is_named_goes_before_the_card_s(house: Path, tmp_path: Path) -> None:
    guides = {"lost": house / "lost", "near": house / "near"}
    manifest = pack(house / "base", guides, tmp_path / "a", bases={"lost": house / "small", "near": house / "base"})
    assert [guide.base for guide in manifest.guides] == [str(house / "small"), None]
    other = pack(house / "base", {"whole": house / "other"}, tmp_path / "b", bases={"whole": house / "small"},
                 forms={"whole": "shift"})  # fmt: skip
    assert [guide.base for guide in other.guides] == [str(house / "small")]


def test_a_form_that_is_asked_for_goes_before_the_card_s(house: Path, tmp_path: Path) -> None:
    guides = {"near": house / "near", "weak": house / "weak", "tuned": house / "tuned"}
    manifest = pack(house / "base", guides, tmp_path / "served", forms={"near": "shift", "weak": "product"})
    assert manifest.forms == {"near": "shift", "weak": "product", "tuned": "shift"}
    assert manifest.weights == dict.fromkeys(guides, 0.0)


def test_a_directory_of_the_first_format_is_read_as_it_was_meant() -> None:
    guides = [{"name": kind, "kind": kind, "path": kind, "way": way, "weight": 0.5} for kind, way in OLD.items()]
    entry = {"format": 1, "base": "base", "architectures": ["LlamaForCausalLM"], "guides": guides, "nameless": [[3, 4]]}
    manifest = Manifest.of({"trimtab": entry})
    assert manifest.forms == {"arm": "product", "policy": "shift", "agent": None}
    assert [guide.base for guide in manifest.guides] == [None, None, None]


OLD = {"arm": "shared", "policy": "model", "agent": "head"}


def test_nothing_is_copied_and_the_rest_of_the_config_is_the_base_s(house: Path, tmp_path: Path) -> None:
    pack(house / "base", {"near": house / "near"}, tmp_path / "served")
    files = {path.name: path for path in (tmp_path / "served").iterdir()}
    assert set(files) == {path.name for path in (house / "base").iterdir()}
    assert all(path.is_symlink() and path.resolve().parent == house / "base" for name, path in files.items()
               if name != "config.json")  # fmt: skip
    config = json.loads(files["config.json"].read_text())
    own = json.loads((house / "base" / "config.json").read_text())
    assert {key: value for key, value in config.items() if key not in ("trimtab", "architectures")} == {
        key: value for key, value in own.items() if key != "architectures"
    }


def test_a_lora_may_be_merged(house: Path, tmp_path: Path) -> None:
    manifest = pack(house / "base", {"near": house / "near"}, tmp_path / "served", lora="merged")
    assert [guide.way for guide in manifest.guides] == ["merged"]


def _adapter_of(directory: Path, module: Any, *targets: str) -> Path:
    peft = pytest.importorskip("peft", reason="the environment of vLLM has no peft")

    options = {"r": 2, "target_modules": list(targets), "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(module, peft.LoraConfig(**options))
    model.save_pretrained(directory, save_embedding_layers=False)
    return directory


@pytest.mark.parametrize(
    ("tied", "lora", "words"),
    [(True, "merged", "which is the embeddings here"), (True, "shared", ""), (False, "shared", "")],
)
def test_an_adapter_of_the_output_head_is_not_left_out_in_silence(
    tied: bool, lora: str, words: str, tmp_path: Path
) -> None:
    shape = {"tie_word_embeddings": tied}
    _save(tmp_path / "base", tiny_tokenizer(), **shape)
    guide = _adapter_of(tmp_path / "guide", tiny_module("llama", **shape), "q_proj", "lm_head")
    with pytest.raises(CompatibilityError, match=rf"adapts the output head \(lm_head\), {words}"):
        pack(tmp_path / "base", {"guide": guide}, tmp_path / "served", lora=lora)


def test_an_adapter_of_an_output_head_of_its_own_may_be_merged(tmp_path: Path) -> None:
    _save(tmp_path / "base", tiny_tokenizer())
    guide = _adapter_of(tmp_path / "guide", tiny_module("llama"), "q_proj", "lm_head")
    assert pack(tmp_path / "base", {"guide": guide}, tmp_path / "served", lora="merged").guides[0].way == "merged"


def test_weights_that_are_kept_turned_are_not_merged(tmp_path: Path) -> None:
    base = tiny_module("gpt2")
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    write_lora(tmp_path / "guide", base)
    with pytest.raises(CompatibilityError, match="kept turned"):
        pack(tmp_path / "base", {"guide": tmp_path / "guide"}, tmp_path / "served", lora="merged")
    assert pack(tmp_path / "base", {"guide": tmp_path / "guide"}, tmp_path / "served").guides[0].way == "shared"


def test_a_base_alone_may_be_packed(house: Path, tmp_path: Path) -> None:
    assert pack(house / "base", {}, tmp_path / "served").guides == ()


def test_a_base_packed_once_is_not_replaced_unasked(house: Path, tmp_path: Path) -> None:
    pack(house / "base", {"near": house / "near"}, tmp_path / "served")
    with pytest.raises(OutputExistsError):
        pack(house / "base", {"tuned": house / "tuned"}, tmp_path / "served")
    assert set(_manifest(tmp_path / "served").weights) == {"near"}
    pack(house / "base", {"tuned": house / "tuned"}, tmp_path / "served", overwrite=True)
    assert set(_manifest(tmp_path / "served").weights) == {"tuned"}


def _manifest(directory: Path) -> Manifest:
    return Manifest.of(json.loads((directory / "config.json").read_text()))


REFUSED: dict[str, tuple[str, type[TrimtabError], str]] = {
    "reward": ("reward", CompatibilityError, "trajectory reward model"),
    "parm": ("parm", CompatibilityError, "Save it at a vector first"),
    "an unknown kind": (
        "odd",
        CheckpointError,
        "of kind 'oracle', which this version does not know. Known: agent, arm",
    ),
    "an adapter of another base": ("of another", BaseMismatchError, ""),
    "another vocabulary": ("words", VocabularyMismatchError, "differs from the base's"),
    "another chat template": ("spoken", CompatibilityError, "--base-prompts"),
    "an unknown form": ("formless", CheckpointError, "guide_form 'sum'; accepted: product, shift"),
    "an adapter of nobody knows what": ("bare", BaseMismatchError, "(guide_base)"),
    "an adapter of a model that has gone": ("lost", BaseMismatchError, "(guide_base)"),
    "nothing": ("nowhere", CheckpointError, "There is no guide"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_vllm_cannot_run_is_refused_and_leaves_nothing(house: Path, tmp_path: Path, name: str) -> None:
    path, kind, sentence = REFUSED[name]
    with pytest.raises(kind) as error:
        pack(house / "base", {"near": house / "near", "it": house / path}, tmp_path / "served")
    assert sentence in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_guide_with_another_template_may_read_the_base_s_prompt(house: Path, tmp_path: Path) -> None:
    manifest = pack(house / "base", {"it": house / "spoken"}, tmp_path / "served", base_prompts=True)
    assert [guide.way for guide in manifest.guides] == ["model"]


ASKED: dict[str, tuple[str, dict[str, Any], type[TrimtabError], str]] = {
    "a base of another vocabulary": ("bare", {"bases": {"it": "words"}}, VocabularyMismatchError, "has another"),
    "a base with another chat template": ("bare", {"bases": {"it": "spoken"}}, CompatibilityError, "--base-prompts"),
    "a base that the adapter is not of": ("bare", {"bases": {"it": "base"}}, BaseMismatchError, "expects"),
    "a base that is not there": ("near", {"bases": {"it": "nowhere"}}, BaseMismatchError, "is not a model"),
    "a base for a whole product": ("other", {"bases": {"it": "small"}}, OptionError, "runs on no base of its own"),
    "a base for an agent": ("agent", {"bases": {"it": "small"}}, OptionError, "leave --guide-base out"),
    "a form for an agent": ("agent", {"forms": {"it": "shift"}}, OptionError, "leave --form out"),
    "a policy as a product": ("tuned", {"forms": {"it": "product"}}, OptionError, "always a shift"),
    "another form": ("near", {"forms": {"it": "shfit"}}, OptionError, "Did you mean 'shift'"),
    "the form of another guide": ("near", {"forms": {"itt": "shift"}}, OptionError, "Unknown guide 'itt'"),
    "the base of another guide": ("near", {"bases": {"itt": "small"}}, OptionError, "Unknown guide 'itt'"),
    "a negative product": ("near", {"weights": {"it": -1.0}}, OptionError, "Guide it is a product"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_of_a_guide_and_cannot_be_is_refused(house: Path, tmp_path: Path, name: str) -> None:
    path, how, kind, sentence = ASKED[name]
    how = {key: {it: _inside(house, value) for it, value in given.items()} for key, given in how.items()}
    with pytest.raises(kind) as error:
        pack(house / "base", {"it": house / path}, tmp_path / "served", **how)
    assert sentence in str(error.value)
    assert "plausibility" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def _inside(house: Path, value: Any) -> Any:
    return house / value if value in ("words", "spoken", "base", "small", "nowhere") else value


def test_a_negative_weight_may_be_a_shift_s(house: Path, tmp_path: Path) -> None:
    weights = {"near": 1.0, "tuned": -1.0, "weak": -2.0}
    manifest = pack(house / "base", {name: house / name for name in weights}, tmp_path / "served", weights=weights)
    assert manifest.weights == weights


def test_options_are_checked(house: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Did you mean 'merged'"):
        pack(house / "base", {"near": house / "near"}, tmp_path / "served", lora="merge")
    with pytest.raises(OptionError, match="Unknown guide 'neer'"):
        pack(house / "base", {"near": house / "near"}, tmp_path / "served", weights={"neer": 1.0})


UNREADABLE: dict[str, tuple[Any, str]] = {
    "no entry": ({"architectures": ["LlamaForCausalLM"]}, "config.json has no `trimtab`"),
    "no mapping": ({"trimtab": 3}, "config.json has no `trimtab`"),
    "another format": ({"trimtab": {"format": 99}}, "packed in format 99"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_was_not_packed_is_told(name: str) -> None:
    config, sentence = UNREADABLE[name]
    with pytest.raises(CheckpointError, match=sentence):
        Manifest.of(config)
