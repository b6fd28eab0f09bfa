"""One request of the web and its reply: the body read off the event loop, the answers whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from trimtab.errors import ClientGoneError, TrimtabError
from trimtab.serving import schema
from trimtab.serving.answering import Answering
from trimtab.serving.asking import NOTHING, Wanted
from trimtab.serving.bodies import check_type, reader
from trimtab.serving.field_names import names_of
from trimtab.serving.parts import Parts
from trimtab.serving.problems import problem
from trimtab.serving.responses import GrowingResponse
from trimtab.serving.responses_schema import ResponseRequest
from trimtab.serving.wire import Style, Writer

_STREAMED = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def route_that_reads(kind: type[schema.Sampled], parsing: asyncio.Semaphore) -> type[APIRoute]:
    """A route whose body is read off the event loop. FastAPI, which would do it there, finds it done."""
    read = reader(kind)

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            sound = super().get_route_handler()

            async def handle(request: Request) -> Response:
                check_type(request.headers.get("content-type"), request.headers.get("content-encoding"))
                raw = await request.body()
                async with parsing:
                    body = await run_in_threadpool(read, raw)
                request.state.names = names_of(body)
                return await sound(_Read(request, body))

            return handle

    return Route


def called(request: Request) -> Mapping[str, str]:
    """What a request whose body has been read calls its fields."""
    found: Mapping[str, str] = getattr(request.state, "names", {})
    return found


class _Read(Request):
    """A request whose body has been read and checked."""

    def __init__(self, request: Request, body: schema.Sampled) -> None:
        headers = [(b"content-type", b"application/json")]
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self._checked = body

    async def body(self) -> bytes:
        return b"read"

    async def json(self) -> Any:
        return self._checked


async def reply(request: Request, body: schema.Asked, wanted: Sequence[Wanted], style: Style) -> Response:
    """The answers, whole or as a stream. A client that goes frees their rows."""
    running = [one for one in wanted if one.kind != NOTHING]
    answering = Answering(request.app.state.batch, running, request.app.state.answerings)
    writers = [Writer(style, index, one.weights, one.params.seed, one.brought) for index, one in enumerate(running)]
    parts = Parts(wanted, running, writers, style)
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
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        pieces = _pieces(request, answering, parts, frame, with_usage=with_usage)
        return _Stream(answering, pieces, media_type="text/event-stream", headers=_STREAMED)
    await _finish(request, answering, writers)
    return JSONResponse({**frame, **parts.whole(body), "usage": parts.usage()})


async def respond(request: Request, body: ResponseRequest, wanted: Sequence[Wanted], style: Style) -> Response:
    """The answer of `/v1/responses`, whole or as a stream of events. A client that goes frees its row."""
    answering = Answering(request.app.state.batch, wanted, request.app.state.answerings)
    [one] = wanted
    writer = Writer(style, 0, one.weights, one.params.seed, one.brought)
    made = GrowingResponse(body, writer, int(time.time()), one.num_prompt_tokens)
    if body.stream:
        try:
            await answering.begin()
        except BaseException:
            answering.close()
            raise
        return _Stream(answering, _events(request, answering, made), media_type="text/event-stream", headers=_STREAMED)
    await _finish(request, answering, [writer])
    return JSONResponse(made.whole())


async def _finish(request: Request, answering: Answering, writers: Sequence[Writer]) -> None:
    """Take all steps of answers that are sent whole."""
    watch = asyncio.create_task(_watch(request, answering))
    try:
        await answering.begin()
        async for index, step in answering.steps():
            writers[index].take(step)
    finally:
        watch.cancel()
        answering.close()


async def _events(request: Request, answering: Answering, made: GrowingResponse) -> AsyncIterator[bytes]:
    """Server-sent events of `/v1/responses`, each under its type; an error is the last of them."""
    watch = asyncio.create_task(_watch(request, answering))
    try:
        for event in made.started():
            yield _named_event(event)
        async for _, step in answering.steps():
            for event in made.grown(step):
                yield _named_event(event)
        for event in made.ended():
            yield _named_event(event)
    except ClientGoneError:
        return
    except TrimtabError as error:
        yield _named_event(made.failed(problem(error, called(request))[1]))
    finally:
        watch.cancel()
        answering.close()


class _Stream(StreamingResponse):
    """A stream that frees its answers however it ends, before its first piece as well."""

    def __init__(self, answering: Answering, pieces: AsyncIterator[bytes], **options: Any) -> None:
        super().__init__(pieces, **options)
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.close()


async def _pieces(
    request: Request, answering: Answering, parts: Parts, frame: dict[str, Any], *, with_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events; an error ends them without `[DONE]`, so that no cut answer passes for a whole one."""
    more = {"usage": None} if with_usage else {}
    watch = asyncio.create_task(_watch(request, answering))
    try:
        for choice in parts.starts():
            yield _event({**frame, "choices": [choice], **more})
        async for index, step in answering.steps():
            piece = parts.writers[index].piece(step)
            if piece is not None:
                yield _event({**frame, "choices": [piece], **more})
        if with_usage:
            yield _event({**frame, "choices": [], "usage": parts.usage()})
        yield b"data: [DONE]\n\n"
    except ClientGoneError:
        return
    except TrimtabError as error:
        yield _event(problem(error, called(request))[1])
    finally:
        watch.cancel()
        answering.close()


async def _watch(request: Request, answering: Answering) -> None:
    """Tell the reader of the steps when the client goes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    answering.leave()


def _named_event(content: dict[str, Any]) -> bytes:
    return f"event: {content['type']}\n".encode() + _event(content)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
