"""The guided policy as a model of Inspect, the evaluation framework: `--model trimtab/MODEL`.

    inspect eval task.py --model trimtab/demo -M guide=builtin:sentiment -M weight=1.0

Inspect finds this provider by its entry point. A request goes through the server's own application in this process
(`app.py`), so whatever `trimtab serve` honours is honoured here, in one batch with every other sample that is under
way, and what it refuses is refused with the same sentence. What Inspect's options say that the server has no field for
is refused by name; none is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from trimtab.engines import arguments
from trimtab.engines.maker import QUANTIZE, GuideSource
from trimtab.engines.registry import BUILTIN, maker_of
from trimtab.errors import MissingExtraError, OptionError, TrimtabError
from trimtab.serving.app import Service, create_app
from trimtab.serving.asking import Catalogue
from trimtab.serving.limits import Limits
from trimtab.serving.thread import TensorThread
from trimtab.storage.model_source import ModelSource

try:
    import httpx
    from inspect_ai.model import (
        ChatMessage,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        messages_to_openai,
        model_output_from_openai,
        modelapi,
    )
    from inspect_ai.tool import ToolChoice, ToolFunction, ToolInfo
except ImportError as error:
    raise MissingExtraError("inspect_ai", "inspect", "The provider for Inspect") from error

FIELDS: Mapping[str, str] = {
    **{name: name for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "logit_bias")},
    **{name: name for name in ("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "prompt_logprobs")},
    "stop_seqs": "stop",
    "num_choices": "n",
    "parallel_tool_calls": "parallel_tool_calls",
}
"""Inspect's option -> the field of a request."""

ITS_OWN = frozenset(
    {
        *("max_retries", "timeout", "attempt_timeout", "max_connections", "adaptive_connections", "system_message"),
        *("max_tool_output", "cache", "cache_prompt", "fail_on_refusal", "reasoning_history", "internal_tools"),
    }
)
"""Options that Inspect sees to itself, before or after a provider is asked."""


class TrimtabAPI(ModelAPI):  # type: ignore[misc]
    """A language model with guides, for Inspect.

    `model_name` is a model as everywhere: a hub id, a directory, a GGUF file, or `demo`. Model arguments are those of
    the model for lm-eval: `guide` names one or several with ";" between them, each with its part of `weight` (left
    out: its own), of `form` and of `guide_base`; `batch_size` is how many samples are decoded together;
    `chat_template_kwargs` is told to the chat template where a request does not say otherwise. Raises OptionError for
    parts that do not fit the guides.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        guide: str = "",
        weight: float | str | None = None,
        form: str = "",
        guide_base: str = "",
        batch_size: int = 16,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        engine: str = BUILTIN,
        engine_options: str = "",
        backend: str | None = None,
        dtype: str = "auto",
        quantize: str | None = None,
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if base_url is not None:
            raise OptionError(
                "base_url names a server, and this model runs in this process. For a server of trimtab's give "
                "--model openai-api/trimtab/NAME."
            )
        names = arguments.guide_names(guide)
        asked = arguments.weights(weight, names)
        forms, bases = arguments.parts("form", form, names), arguments.parts("guide_base", guide_base, names)
        kind, options = maker_of(engine), arguments.engine_options(engine_options)
        if quantize is not None:
            kind.check_features([QUANTIZE], what="quantize")
        source = ModelSource(model_name, dtype, device, trust_remote_code, revision, quantize, backend)
        sources = {
            name: GuideSource(name, form=one_form, guide_base=base)
            for name, one_form, base in zip(names, forms, bases, strict=True)
        }
        thread = TensorThread()

        def loaded() -> Service:
            decoding = kind.open(source, options, max_rows=batch_size).make(sources, max_rows=batch_size)
            usual = {name: asked.get(name, one.weight) for name, one in decoding.guides.items()}
            return Service(
                engine=decoding,
                catalogue=Catalogue(decoding.model, model_name, usual, {}, chat_template_kwargs or {}),
                # Inspect has as many requests under way as it was told; none is turned away for the others.
                limits=Limits(max_rows=batch_size, max_queue=100_000, max_n=1_000, timeout_s=86_400.0),
                thread=thread,
            )

        self._rows = batch_size
        self._service = thread.submit(loaded).result()
        self._running = AsyncExitStack()
        self._client: httpx.AsyncClient | None = None

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """An answer, with what the guides did in its metadata: `guidance`, for each choice weights, seed and KL.

        The KL is that of the policy to the base in nats, summed over the answer's tokens; None where it is infinite.
        Why each token was chosen is there where `extra_body` asks for it (`{"guidance": {"explain": true}}`).

        Raises OptionError for an option that trimtab does not have, and TrimtabError with the server's sentence for a
        request that it refuses.
        """
        body = {"model": self.model_name, "messages": await messages_to_openai(input), **_fields(config)}
        asked = body.setdefault("guidance", {})
        if isinstance(asked, dict):
            body["guidance"] = {"explain": True, "alternatives": 0, **asked}
        if tools:
            body |= {"tools": [_tool(tool) for tool in tools], "tool_choice": _choice(tool_choice)}
        client = await self._opened()
        answer = await client.post("/v1/chat/completions", json=body)
        reply = answer.json()
        if answer.status_code != httpx.codes.OK:
            raise TrimtabError(reply["error"]["message"])
        output = await model_output_from_openai(reply)
        keep = isinstance(asked, dict) and bool(asked.get("explain"))
        output.metadata = {"guidance": [_said(choice["guidance"], keep=keep) for choice in reply["choices"]]}
        return output

    async def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            app = create_app(self._service)
            await self._running.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app)
            self._client = await self._running.enter_async_context(
                httpx.AsyncClient(transport=transport, base_url="http://trimtab", timeout=None)
            )
        return self._client

    async def aclose(self) -> None:
        """Stop decoding. The model's memory goes with this object."""
        self._client = None
        await self._running.aclose()

    def max_connections(self) -> int:
        """As many samples as are decoded together, and as many again, so that none is waited for."""
        return 2 * self._rows

    def connection_key(self) -> str:
        """Each model has its own limit on samples under way."""
        return f"trimtab/{self.model_name}"


@modelapi(name="trimtab")  # type: ignore[untyped-decorator]
def trimtab() -> type[TrimtabAPI]:
    """The provider, as Inspect's registry takes it."""
    return TrimtabAPI


def _fields(config: GenerateConfig) -> dict[str, Any]:
    """Inspect's options as fields of a request. Raises OptionError for those that there is no field for."""
    given = {name: value for name in type(config).model_fields if (value := getattr(config, name)) is not None}
    fields = {FIELDS[name]: given.pop(name) for name in FIELDS if name in given}
    if (schema := given.pop("response_schema", None)) is not None:
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": schema.name,
                "schema": schema.json_schema.model_dump(exclude_none=True),
                "strict": True if schema.strict is None else schema.strict,
            },
        }
    fields |= given.pop("extra_body", None) or {}
    refused = sorted({*given} - ITS_OWN)
    if refused:
        raise OptionError(
            f"trimtab does not have {', '.join(refused)}. Accepted: {', '.join(sorted(FIELDS))}, response_schema, and "
            "extra_body for what trimtab's own requests may say besides."
        )
    return fields


def _said(guidance: Mapping[str, Any], *, keep: bool) -> dict[str, Any]:
    """What is kept of a choice's account: every token's only where it was asked for."""
    kls = [token["kl"] for token in guidance.get("tokens", ())]
    kl = sum(kls) if kls and all(isinstance(one, int | float) for one in kls) else None
    return {**{name: value for name, value in guidance.items() if keep or name != "tokens"}, "kl": kl}


def _tool(tool: ToolInfo) -> dict[str, Any]:
    parameters = tool.parameters.model_dump(exclude_none=True)
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _choice(choice: ToolChoice) -> Any:
    if isinstance(choice, ToolFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return {"any": "required"}.get(choice, choice)
