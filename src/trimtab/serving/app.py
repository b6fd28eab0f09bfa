"""The HTTP application: OpenAI's routes, what guides add to them, how the server is, and the page."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from trimtab.errors import (
    ClientGoneError,
    DeadlineError,
    InputError,
    QueueFullError,
    StoppedError,
    TrimtabError,
    UnknownModelError,
)
from trimtab.forms import forms_of
from trimtab.generation import GenerationEngine
from trimtab.serving import schema
from trimtab.serving.answering import Answering
from trimtab.serving.asking import Catalogue, Wanted, wanted_chat, wanted_completion
from trimtab.serving.engine import Engine, Event
from trimtab.serving.guard import Guard, Keys
from trimtab.serving.limits import Limits
from trimtab.serving.metrics import Metrics
from trimtab.serving.problems import sentence_of
from trimtab.serving.thread import TensorThread
from trimtab.serving.wire import Style, Writer, usage

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("playground")
_PING_S = 10.0

_KINDS: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (UnknownModelError, 404, "invalid_request_error", "model_not_found"),
    (InputError, 400, "invalid_request_error", None),
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (DeadlineError, 504, "server_error", "deadline"),
    (StoppedError, 503, "server_error", "stopping"),
)
"""Error -> status, OpenAI's type, code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a server serves, and to whom."""

    decoder: GenerationEngine
    catalogue: Catalogue
    limits: Limits
    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    """Other origins whose pages may call it (CORS)."""
    thread: TensorThread | None = None
    """The thread that loaded the model; decoding goes on in it."""
    on_death: Callable[[BaseException], None] | None = None


def create_app(service: Service) -> FastAPI:
    """The application of one service; its engine runs while the application does, as `app.state.engine`."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        engine = Engine(
            service.decoder,
            service.limits,
            metrics,
            post=_poster(loop),
            thread=service.thread,
            on_death=service.on_death,
        )
        app.state.engine = engine
        engine.start()
        yield
        await run_in_threadpool(engine.stop)

    app = FastAPI(
        title="trimtab", version=version("trimtab"), lifespan=lifespan, docs_url=None, redoc_url=None, responses=_ERRORS
    )
    app.state.metrics = metrics
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
    return app


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorReply} for status in (400, 401, 404, 405, 413, 422, 429, 500, 503, 504)
}


_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def _poster(loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Event]], None]:
    def deliver(events: Sequence[Event]) -> None:
        for event in events:
            event.job.deliver(event)

    def post(events: Sequence[Event]) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to be told
            loop.call_soon_threadsafe(deliver, events)

    return post


def _add_answers(app: FastAPI, service: Service) -> None:
    tokenizer = service.catalogue.model.tokenizer
    assert tokenizer is not None

    def style(body: schema.Asked, num_rivals: int | None, *, chat: bool) -> Style:
        guidance = body.guidance or schema.Guidance()
        return Style(
            tokenizer,
            chat,
            num_rivals,
            policy=guidance.logprobs,
            guided=body.guidance is not None,
            explain=guidance.explain,
        )

    @app.post("/v1/chat/completions", response_model=schema.Completion, responses=_STREAMED)
    async def chat(body: schema.ChatRequest, request: Request) -> Response:
        wanted = await run_in_threadpool(wanted_chat, body, service.catalogue, service.limits)
        num_rivals = (body.top_logprobs or 0) if body.logprobs else None
        return await _reply(request, body, wanted, style(body, num_rivals, chat=True))

    @app.post("/v1/completions", response_model=schema.Completion, responses=_STREAMED)
    async def completions(body: schema.CompletionRequest, request: Request) -> Response:
        wanted = await run_in_threadpool(wanted_completion, body, service.catalogue, service.limits)
        return await _reply(request, body, wanted, style(body, body.logprobs, chat=False))


async def _reply(request: Request, body: schema.Asked, wanted: Sequence[Wanted], style: Style) -> Response:
    """The answers, whole or as a stream. A client that goes frees their rows."""
    answering = Answering(request.app.state.engine, wanted)
    writers = [Writer(style, index, one.params.weights, one.params.seed) for index, one in enumerate(wanted)]
    kind, letters = ("chat.completion", "chatcmpl") if style.chat else ("text_completion", "cmpl")
    frame = {
        "id": f"{letters}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": body.model,
    }
    if body.stream:
        try:
            await answering.begin()  # a refusal is a status; later it is an event of the stream
        except BaseException:
            answering.close()
            raise
        frame["object"] = f"{kind}.chunk" if style.chat else kind
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        pieces = _pieces(request, answering, writers, frame, with_usage=with_usage)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
    watch = asyncio.create_task(_watch(request, answering))
    try:
        await answering.begin()
        async for index, step in answering.steps():
            writers[index].take(step)
    finally:
        watch.cancel()
        answering.close()
    return JSONResponse(
        {**frame, "choices": [writer.whole() for writer in writers], "usage": _usage(answering, writers)}
    )


async def _pieces(
    request: Request, answering: Answering, writers: Sequence[Writer], frame: dict[str, Any], *, with_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events; an error ends them without `[DONE]`, so that no cut answer passes for a whole one."""
    more = {"usage": None} if with_usage else {}
    watch = asyncio.create_task(_watch(request, answering))
    try:
        for writer in writers:
            yield _event({**frame, "choices": [writer.start()], **more})
        async for index, step in answering.steps():
            choice = writers[index].piece(step)
            if choice is not None:
                yield _event({**frame, "choices": [choice], **more})
        if with_usage:
            yield _event({**frame, "choices": [], "usage": _usage(answering, writers)})
        yield b"data: [DONE]\n\n"
    except ClientGoneError:
        return
    except TrimtabError as error:
        yield _event(_problem(error)[1])
    finally:
        watch.cancel()
        answering.close()


async def _watch(request: Request, answering: Answering) -> None:
    """Tell the reader of the steps when the client goes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answering.leave()


def _usage(answering: Answering, writers: Sequence[Writer]) -> dict[str, int]:
    """A prompt counts once, however many answers it has."""
    prompts = {id(job.prompt): job.num_prompt_tokens for job in answering.jobs}
    return usage(sum(prompts.values()), sum(writer.num_tokens for writer in writers))


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _add_lists(app: FastAPI, service: Service) -> None:
    catalogue = service.catalogue
    started = int(time.time())
    models = {
        name: {"id": name, "object": "model", "created": started, "owned_by": "trimtab", "guidance": dict(weights)}
        for name, weights in {catalogue.name: catalogue.guides, **catalogue.presets}.items()
    }

    @app.get("/v1/models", response_model=schema.NamedList)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": list(models.values())}

    @app.get("/v1/models/{name:path}", response_model=schema.Named)
    async def one_model(name: str) -> dict[str, Any]:
        if name not in models:
            raise UnknownModelError(f"The model {name!r} does not exist. This server has: {', '.join(models)}.")
        return models[name]

    forms = forms_of(service.decoder.guides)

    @app.get("/v1/guides", response_model=schema.NamedList)
    async def guides() -> dict[str, Any]:
        found = []
        for name, weight in catalogue.guides.items():
            selection = service.decoder.guides[name].selection
            kind = {
                "selects": selection is not None,
                "accepts": selection is not None and selection.rule.accepts,  # its weight is an acceptance threshold
                "form": forms[name],  # product or shift, of a guide that is a language model
            }
            entry = {"id": name, "object": "guide", "weight": weight, "max_weight": service.limits.max_weight}
            found.append({**entry, **kind})
        return {"object": "list", "data": found}


def _add_status(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/health", response_model=schema.Status)
    async def health() -> Response:
        """Whether the generation thread answers."""
        alive = await run_in_threadpool(app.state.engine.ping, _PING_S)
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    @app.get("/ready", response_model=schema.Status)
    async def ready() -> Response:
        """Whether new requests are taken."""
        is_open = app.state.engine.is_open
        return JSONResponse({"status": "ready" if is_open else "stopping"}, 200 if is_open else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def measured() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=_FRESH)

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


def _problem(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, in OpenAI's shape."""
    found = (entry for entry in _KINDS if isinstance(error, entry[0]))
    _, status, name, code = next(found, (None, 500, "server_error", None))
    message = str(error) if isinstance(error, TrimtabError) else "An unexpected error; the log says more."
    return status, _error_body(message, name, None, code)


def _error_body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    """OpenAI's shape; what a client sent may stand in the message, and UTF-8 may not be able to say it."""
    said, place = (text and text.encode("utf-8", "replace").decode() for text in (message, param))
    return {"error": {"message": said, "type": kind, "param": place, "code": code}}


def _add_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        status, body = _problem(error)
        if status == 500:
            log.error("a request failed", exc_info=error)
        return JSONResponse(body, status, headers={"retry-after": "1"} if status in (429, 503) else None)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        param, message = sentence_of(error.errors())
        return JSONResponse(_error_body(message, "invalid_request_error", param, None), 400)

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = _error_body(str(error.detail), "invalid_request_error", None, None)
        return JSONResponse(body, error.status_code, headers=error.headers)

    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(TrimtabError, ours)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, ours)
