"""A server of a tiny model in this process: the application behind uvicorn, on a port of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("fastapi")
import uvicorn

from tests.tiny import byte_llama, byte_tokenizer, write_lora
from trimtab.decoding.decoder import Decoder
from trimtab.models.hf import HFModel
from trimtab.serving.app import Service, create_app
from trimtab.serving.asking import Catalogue
from trimtab.serving.batch_thread import BatchThread
from trimtab.serving.connections import HTTPServer, configured
from trimtab.serving.limits import Limits
from trimtab.storage.loading import load_guide

GUIDES = ("up", "down")
PRESETS = {"kinder": {"up": 1.5}, "odd": {"up": 1.0, "down": -0.5}}


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    service: Service
    batch: BatchThread
    server: uvicorn.Server


@pytest.fixture(scope="session")
def tiny_model() -> HFModel:
    tokenizer = byte_tokenizer()
    return HFModel(byte_llama(tokenizer, max_length=2048), tokenizer, name="tiny")


@pytest.fixture(scope="session")
def guides(tiny_model: HFModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("guides")
    """Shifts, so that any weight means something."""
    paths = [write_lora(root / name, tiny_model.module, seed=seed) for seed, name in enumerate(GUIDES)]
    return {name: load_guide(path, form="shift") for name, path in zip(GUIDES, paths, strict=True)}


Start = Callable[..., Any]


def apart(server: Running) -> Decoder:
    """A decoder of a server's model and guides for this thread: the server's own belongs to another."""
    engine = server.service.engine
    assert isinstance(engine, Decoder)
    return Decoder(engine.model, engine.guides)


@pytest.fixture(scope="session")
def start(tiny_model: HFModel, guides: dict[str, Any]) -> Start:
    """`with start(limits=..., keys=...) as server:` a server of its own."""

    @contextmanager
    def running(
        limits: Limits | None = None,
        *,
        engine: Decoder | None = None,
        catalogue: Catalogue | None = None,
        **options: Any,
    ) -> Iterator[Running]:
        limits = limits or Limits(max_rows=8, default_new_tokens=24)
        engine = engine or Decoder(tiny_model, guides, max_rows=limits.max_rows, prefill_chunk=limits.prefill_chunk)
        service = Service(
            engine=engine,
            catalogue=catalogue or Catalogue(tiny_model, "tiny", dict.fromkeys(GUIDES, 0.0), PRESETS),
            limits=limits,
            **options,
        )
        app = create_app(service)
        server = HTTPServer(configured(app, limits))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Running(f"http://127.0.0.1:{port}", service, app.state.batch, server)
        finally:
            server.should_exit = True
            thread.join(10)

    return running


@pytest.fixture(scope="session")
def server(start: Start) -> Iterator[Running]:
    with start() as running:
        yield running
