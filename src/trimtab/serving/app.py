"""The HTTP application: OpenAI's routes, what guides add to them, how the server is, and the page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from trimtab.core import Tokenizer
from trimtab.decoding.engine import GenerationEngine
from trimtab.errors import ClientGoneError, OptionError, StoppedError, TrimtabError, UnknownModelError, about
from trimtab.mixing.forms import forms_of
from trimtab.serving import reply_schema, schema
from trimtab.serving.asking import SCORES, Catalogue, Wanted, wanted_chat, wanted_completion
from trimtab.serving.batch_thread import BatchThread, Event
from trimtab.serving.door import Door, Hosts
from trimtab.serving.guard import Guard, Keys
from trimtab.serving.guidance_schema import Guidance
from trimtab.serving.hosts import ANY
from trimtab.serving.limits import OF_A_REQUEST, Limits
from trimtab.serving.metrics import Metrics
from trimtab.serving.problems import MalformedError, error_body, malformed, problem
from trimtab.serving.replies import called, reply, respond, route_that_reads
from trimtab.serving.responses_schema import ResponseRequest
from trimtab.serving.scored import why_unscored
from trimtab.serving.thread import TensorThread
from trimtab.serving.wire import Style
from trimtab.serving.wordings import cut

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("playground")
_PING_S = 10.0
_ENCODED_AT_ONCE = 2
"""Requests whose prompts are made tokens of at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server serves, and to whom."""

    engine: GenerationEngine
    catalogue: Catalogue
    limits: Limits
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    """Other origins whose pages may call it (CORS)."""
    hosts: Sequence[str] = (ANY,)
    """Names that it answers to, beside this machine's own (`door.Hosts`)."""
    thread: TensorThread | None = None
    """The thread that loaded the model; decoding goes on in it."""
    on_death: Callable[[BaseException], None] | None = None


def create_app(service: Service) -> FastAPI:
    """The application of one service; its batch runs while the application does, as `app.state.batch`."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        batch = BatchThread(
            service.engine,
            service.limits,
            metrics,
            post=_poster(loop),
            thread=service.thread,
            on_death=service.on_death,
        )
        app.state.batch = batch
        batch.start()
        yield
        await run_in_threadpool(batch.stop)

    app = FastAPI(
        title="trimtab",
        version=version("trimtab"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    app.state.answerings = set()
    _add_answers(app, service)
    _add_lists(app, service)
    _add_status(app, metrics)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(Guard, keys=Keys(service.keys), max_body_bytes=service.limits.max_body_bytes, metrics=metrics)
    if service.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(service.origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Door, hosts=Hosts(service.hosts, service.origins), metrics=metrics)
    return app


def abandon(app: FastAPI) -> None:
    """Fail every answer that is under way, without waiting for the generation thread: streams end with an event."""
    for answering in list(app.state.answerings):
        answering.fail(StoppedError("The server was stopped before this answer ended."))


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": reply_schema.ErrorReply}
    for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504)
}


_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def _poster(loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Event]], None]:
    def deliver(events: Sequence[Event]) -> None:
        for event in events:
            event.job.deliver(event)

    return partial(_tell, loop, deliver)


def _add_answers(app: FastAPI, service: Service) -> None:
    tokenizer = service.catalogue.model.tokenizer
    assert tokenizer is not None

    style = partial(_style, tokenizer)

    def asked(kind: Callable[..., list[Wanted]], body: schema.Asked) -> list[Wanted]:
        wanted = kind(body, service.catalogue, service.limits)
        for one in wanted:
            if one.kind == SCORES and (why := why_unscored(service.engine, one.params.weights)):
                said = f"{body.scored_by} asks what the policy says of the prompt's tokens. {why}"
                raise about(str(body.scored_by), OptionError(said))
        return wanted

    encoding = asyncio.Semaphore(_ENCODED_AT_ONCE)

    async def chat(body: schema.ChatRequest, request: Request) -> Response:
        async with encoding:
            wanted = await run_in_threadpool(asked, wanted_chat, body)
        num_rivals = (body.top_logprobs or 0) if body.logprobs else None
        return await reply(request, body, wanted, style(body, num_rivals, chat=True))

    async def completions(body: schema.CompletionRequest, request: Request) -> Response:
        async with encoding:
            wanted = await run_in_threadpool(asked, wanted_completion, body)
        return await reply(request, body, wanted, style(body, body.logprobs, chat=False))

    async def responses(body: ResponseRequest, request: Request) -> Response:
        said = body.as_chat()
        async with encoding:
            try:
                wanted = await run_in_threadpool(asked, wanted_chat, said)
            except MalformedError as error:
                raise body.placed(error) from None
        num_rivals = (said.top_logprobs or 0) if said.logprobs else None
        return await respond(request, body, wanted, style(said, num_rivals, chat=True))

    parsing = asyncio.Semaphore(1)  # whoever parses keeps the interpreter to itself for up to some 0.06 s
    routes: tuple[tuple[str, Callable[..., Any], type[schema.Sampled], type[Any]], ...] = (
        ("/v1/chat/completions", chat, schema.ChatRequest, reply_schema.Completion),
        ("/v1/completions", completions, schema.CompletionRequest, reply_schema.Completion),
        ("/v1/responses", responses, ResponseRequest, reply_schema.Response),
    )
    for path, answer, kind, reply_kind in routes:
        app.router.add_api_route(
            path,
            answer,
            methods=["POST"],
            response_model=reply_kind,
            responses=_STREAMED,
            route_class_override=route_that_reads(kind, parsing),
        )


def _style(tokenizer: Tokenizer, body: schema.Asked, num_rivals: int | None, *, chat: bool) -> Style:
    """How a request wants its answers written."""
    guidance = body.guidance or Guidance()
    return Style(
        tokenizer,
        chat,
        num_rivals,
        policy=guidance.logprobs,
        guided=body.guidance is not None,
        explain=guidance.explain,
        echo=isinstance(body, schema.CompletionRequest) and bool(body.echo),
    )


def _add_lists(app: FastAPI, service: Service) -> None:
    catalogue = service.catalogue
    started = int(time.time())
    models = {
        name: {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "trimtab",
            "root": catalogue.name,
            "parent": None if name == catalogue.name else catalogue.name,
            "max_model_len": catalogue.model.max_length,
            "guidance": dict(weights),
        }
        for name, weights in {catalogue.name: catalogue.guides, **catalogue.presets}.items()
    }

    limits = {name: getattr(service.limits, name) for name in OF_A_REQUEST}
    offered = {"guides": dict(catalogue.guides), "presets": catalogue.presets, "limits": limits}

    @app.get("/v1/models", response_model=reply_schema.ModelList)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": list(models.values()), **offered}

    @app.get("/v1/models/{name:path}", response_model=reply_schema.Named)
    async def one_model(name: str) -> dict[str, Any]:
        if name not in models:
            refusal = f"The model {cut(name)!r} does not exist. This server has: {', '.join(models)}."
            raise about("model", UnknownModelError(refusal))
        return models[name]

    forms = forms_of(service.engine.guides)

    brought = {
        "max_guides": len(catalogue.places),
        "max_tokens": service.limits.max_sentence_tokens,
        "max_weight": service.limits.max_weight,
    }

    @app.get("/v1/guides", response_model=reply_schema.GuideList)
    async def guides() -> dict[str, Any]:
        listed = []
        for name, weight in catalogue.guides.items():
            selection = service.engine.guides[name].selection
            kind = {
                "selects": selection is not None,
                "accepts": selection is not None and selection.rule.accepts,  # its weight is an acceptance threshold
                "form": forms[name],  # product or shift, of a guide that is a language model
            }
            entry = {"id": name, "object": "guide", "weight": weight, "max_weight": service.limits.max_weight}
            listed.append({**entry, **kind})
        return {"object": "list", "data": listed, "prompts": brought if catalogue.places else None}


def _add_status(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health", response_model=reply_schema.Status)
    async def health() -> Response:
        """Whether the generation thread answers."""
        alive = await _answers(app.state.batch)
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    @app.get("/ready", response_model=reply_schema.Status)
    async def ready() -> Response:
        """Whether new requests are taken."""
        is_open = app.state.batch.is_open
        return JSONResponse({"status": "ready" if is_open else "stopping"}, 200 if is_open else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")


async def _answers(batch: BatchThread) -> bool:
    """Whether the generation thread answers in time. No thread of this process's waits for it."""
    if batch.death is not None:
        return False
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    batch.call(lambda: _tell(loop, answered.set))
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(answered.wait(), _PING_S)
    return answered.is_set() and batch.death is None


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    with suppress(RuntimeError):  # the loop has closed: nobody is left to be told
        loop.call_soon_threadsafe(function, *args)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=_FRESH)

    @app.get("/playground", include_in_schema=False)
    @app.get("/playground/", include_in_schema=False)
    async def old_page(request: Request) -> Response:
        up = "../" if request.url.path.endswith("/") else "./"  # relative: what a proxy calls this place is not known
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(up + query)

    app.mount("/playground", _PageFiles(directory=PAGE), name="playground")


_FRESH = {"cache-control": "no-cache"}
"""A browser asks whether its copy is still right, so that a new version's page is not half an old one's."""


class _PageFiles(StaticFiles):
    """The page's files; the type of a script does not depend on the machine's tables, since browsers insist on it."""

    def file_response(self, full_path: Any, *args: Any, **options: Any) -> Response:
        response = super().file_response(full_path, *args, **options)
        response.headers.update(_FRESH)
        if str(full_path).endswith(".js") and response.status_code == 200:
            response.headers["content-type"] = "text/javascript; charset=utf-8"
        return response


def _add_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        status, body = problem(error, called(request))
        if status == 500:
            log.error("a request failed", exc_info=error)
        return JSONResponse(body, status, headers=_MORE_HEADERS.get(status))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def unread(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return await ours(request, malformed(error.errors(), error.body))

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers, detail = dict(error.headers or {}), str(error.detail)
        if error.status_code == 405:
            allowed = headers.get("Allow", "GET").split(", ")
            headers["Allow"] = ", ".join([*allowed, "HEAD"] if "GET" in allowed and "HEAD" not in allowed else allowed)
            detail = f"This path does not take {cut(request.method)}; it takes {headers['Allow']}."
        elif error.status_code == 404:
            detail = f"There is nothing at {cut(request.url.path)}."
        return JSONResponse(error_body(detail, "invalid_request_error"), error.status_code, headers=headers)

    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(TrimtabError, ours)
    app.add_exception_handler(RequestValidationError, unread)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, ours)


_MORE_HEADERS = {
    415: {"accept": "application/json", "accept-encoding": "identity"},
    429: {"retry-after": "1"},
    503: {"retry-after": "1"},
}
