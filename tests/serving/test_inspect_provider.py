"""The provider for Inspect: answers are the decoder's, options are honoured or refused, samples share a batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason='needs Inspect: pip install "trimtab[inspect]"')
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig, ResponseSchema, get_model
from inspect_ai.tool import ToolFunction, ToolInfo, ToolParam, ToolParams
from inspect_ai.util import JSONSchema

from tests.tiny import byte_llama, byte_tokenizer, write_lora
from trimtab import load_guide, load_model
from trimtab.decoding.decoder import Decoder
from trimtab.errors import OptionError, TrimtabError
from trimtab.serving.inspect_provider import FIELDS, ITS_OWN, TrimtabAPI

ASK = [ChatMessageUser(content="Why?")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    tokenizer = byte_tokenizer(model_max_length=512)
    model = byte_llama(tokenizer, max_length=512)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    for seed, name in enumerate(("up", "down")):
        write_lora(root / name, model, seed=seed)
    return root


@pytest.fixture(scope="module")
def guided(directory: Path) -> TrimtabAPI:
    return TrimtabAPI(
        str(directory / "model"), guide=f"{directory / 'up'};{directory / 'down'}", weight="1;-0.5", form="shift;shift"
    )


def run(provider: TrimtabAPI, *asked: Coroutine[Any, Any, Any]) -> list[Any]:
    """What is asked for, at one time, in a loop of its own."""

    async def together() -> list[Any]:
        try:
            return list(await asyncio.gather(*asked))
        finally:
            await provider.aclose()

    return asyncio.run(together())


def ask(provider: TrimtabAPI, messages: Any = ASK, tools: Any = (), choice: Any = "auto", **options: Any) -> Any:
    return provider.generate(messages, list(tools), choice, GenerateConfig(**{"max_tokens": 12, "seed": 5, **options}))


@pytest.fixture
def decoder(directory: Path) -> Decoder:
    model = load_model(str(directory / "model"))
    paths = {str(directory / name): load_guide(str(directory / name), form="shift") for name in ("up", "down")}
    return Decoder(model, paths)


def test_inspect_finds_the_provider() -> None:
    (found,) = (entry for entry in entry_points(group="inspect_ai") if entry.name == "trimtab")
    assert found.value == "trimtab.serving.inspect_provider"


def test_a_model_by_its_name(directory: Path) -> None:
    model = get_model(f"trimtab/{directory / 'model'}", memoize=False)
    assert isinstance(model.api, TrimtabAPI)


def test_an_answer_is_the_decoders_with_its_kl(guided: TrimtabAPI, decoder: Decoder, directory: Path) -> None:
    weights = {str(directory / "up"): 1.0, str(directory / "down"): -0.5}
    (wanted,) = decoder.generate(
        [[{"role": "user", "content": "Why?"}]], weights=weights, max_new_tokens=12, seed=5, temperature=1.0, trace=True
    )
    (output,) = run(guided, ask(guided, logprobs=True, top_logprobs=2, temperature=1.0))
    assert output.completion == wanted.text
    places = output.choices[0].logprobs.content
    assert output.usage.output_tokens == len(wanted.token_ids)
    assert len(places) >= len(wanted.token_ids) - 1
    assert all(len(place.top_logprobs) == 2 for place in places)
    (guidance,) = output.metadata["guidance"]
    assert guidance["weights"] == weights
    assert guidance["kl"] > 0


def test_samples_that_are_under_way_share_a_batch_and_do_not_change_each_other(guided: TrimtabAPI) -> None:
    alone = [run(guided, ask(guided, seed=seed))[0].completion for seed in range(4)]
    assert [one.completion for one in run(guided, *(ask(guided, seed=seed) for seed in range(4)))] == alone
    assert len(set(alone)) > 1


def test_a_schema_holds(guided: TrimtabAPI) -> None:
    pytest.importorskip("llguidance")
    schema = JSONSchema(type="object", properties={"a": JSONSchema(type="boolean")}, required=["a"])
    schema.additionalProperties = False
    (output,) = run(guided, ask(guided, response_schema=ResponseSchema(name="s", json_schema=schema), max_tokens=64))
    assert isinstance(json.loads(output.completion)["a"], bool)


def test_what_a_request_may_say_besides_is_extra_body(guided: TrimtabAPI, directory: Path) -> None:
    zero = {"guidance": {"weights": {str(directory / "up"): 0.0, str(directory / "down"): 0.0}}}
    plain = TrimtabAPI(str(directory / "model"))
    (unguided,) = run(guided, ask(guided, extra_body=zero))
    assert unguided.completion == run(plain, ask(plain))[0].completion
    with pytest.raises(TrimtabError, match="wieghts"):
        run(guided, ask(guided, extra_body={"guidance": {"wieghts": {}}}))


@pytest.mark.parametrize("name", sorted({*GenerateConfig.model_fields} - {*FIELDS} - ITS_OWN))
def test_an_option_is_honoured_its_own_or_refused_by_name(name: str, guided: TrimtabAPI) -> None:
    """Inspect's next option is refused until somebody has looked at it."""
    if name in ("response_schema", "extra_body"):
        return
    config = GenerateConfig().model_copy(update={name: 1})
    with pytest.raises(OptionError, match=rf"does not have {name}\. Accepted: .*max_tokens"):
        run(guided, guided.generate(ASK, [], "auto", config))


def test_tools_are_refused_by_a_template_without_them_and_in_words(guided: TrimtabAPI) -> None:
    tool = ToolInfo(
        name="look", description="Looks.", parameters=ToolParams(properties={"at": ToolParam(type="string")})
    )
    for choice in ("auto", "any", ToolFunction(name="look")):
        with pytest.raises(TrimtabError, match="tool"):
            run(guided, ask(guided, tools=[tool], choice=choice))


def test_a_conversation_is_read_whole(guided: TrimtabAPI, decoder: Decoder, directory: Path) -> None:
    said = [ChatMessageUser(content="Why?"), ChatMessageAssistant(content="So."), ChatMessageUser(content="How?")]
    plain = TrimtabAPI(str(directory / "model"))
    (output,) = run(plain, ask(plain, said))
    messages = [{"role": one.role, "content": one.text} for one in said]
    weights = dict.fromkeys(decoder.guides, 0.0)
    (wanted,) = decoder.generate([messages], weights=weights, max_new_tokens=12, seed=5, temperature=1.0)
    assert output.completion == wanted.text


def test_arguments_that_do_not_fit_are_named(directory: Path) -> None:
    model = str(directory / "model")
    with pytest.raises(TypeError, match="giude"):
        TrimtabAPI(model, giude="x")
    for given, said in (
        ({"guide": str(directory / "up"), "weight": "1;2"}, "weight=1;2 is not accepted with 1 guides"),
        ({"base_url": "http://here"}, "openai-api/trimtab/NAME"),
    ):
        with pytest.raises(OptionError, match=said):
            TrimtabAPI(model, **given)


def test_a_sample_that_is_given_up_leaves_no_row(guided: TrimtabAPI) -> None:
    async def give_up() -> int:
        task = asyncio.create_task(ask(guided, max_tokens=400, extra_body={"ignore_eos": True}))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine = guided._service.engine
        for _ in range(200):
            if not engine.num_running and not engine.num_waiting:
                break
            await asyncio.sleep(0.05)
        left = engine.num_running + engine.num_waiting
        await guided.aclose()
        return left

    assert asyncio.run(give_up()) == 0
