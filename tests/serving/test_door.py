"""Whose server a request thinks this is, how it writes its path and method, and what it may be made of."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.serving.conftest import Running, Start
from tests.serving.raw import ask, request
from trimtab.serving.door import ANY, Hosts

BODY = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2, "seed": 1}).encode()
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2, "seed": 1}
PATHS = ("/", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/models/tiny", "/v1/guides")
FILES = ("/playground/main.js", "/playground/nothing", "/nothing", "/playground", "/playground/")
OURS = ("localhost", "LocalHost:8000", "localhost.", "127.0.0.1", "127.0.0.1:9", "127.9.9.9", "[::1]", "[::1]:80")
FOREIGN = (
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil",
    "0.0.0.0",
    "192.168.0.1",
    "[::2]",
    "user@localhost",
    "localhost/x",
    "localhost:x",
    "localhost,evil.example",
    "",
)


@pytest.fixture(scope="module")
def lone(start: Start) -> Iterator[Running]:
    """A server that listens for its own machine alone."""
    with start(hosts=["box.lan"], origins=["https://page.example"]) as server:
        yield server


@pytest.mark.parametrize("host", OURS)
def test_names_of_this_machine_are_answered(host: str) -> None:
    for method in ("GET", "POST"):
        assert Hosts(()).refusal(method, host, None) is None
        assert Hosts(()).refusal(method, host, f"http://{host}") is None


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_not(host: str) -> None:
    assert Hosts(()).refusal("GET", host, None) is not None
    assert Hosts(()).refusal("POST", host, f"http://{host}") is not None
    assert Hosts((ANY,)).refusal("POST", host, f"http://{host}") is None


def test_what_a_flag_adds() -> None:
    hosts = Hosts(["Box.lan"], ["https://page.example/"])
    assert hosts.refusal("GET", "box.LAN:80", None) is None
    assert hosts.refusal("POST", "127.0.0.1:8000", "https://box.lan") is None  # a proxy that wrote another Host
    assert hosts.refusal("POST", "127.0.0.1:8000", "https://page.example") is None
    assert hosts.refusal("GET", "page.example", None) is not None
    assert hosts.refusal("GET", None, None) is None  # HTTP/1.0, which no browser speaks


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://localhost:3000", "http://", "x"])
def test_pages_of_others_may_not_call(origin: str) -> None:
    for method in ("GET", "POST"):
        assert Hosts(()).refusal(method, "localhost:8000", origin) is not None
    assert Hosts((), [origin]).refusal("POST", "localhost:8000", origin) is None
    assert Hosts((), ["*"]).refusal("POST", "localhost:8000", origin) is None


def test_a_program_may_call_by_a_name_without_a_dot() -> None:
    assert Hosts(()).refusal("POST", "box:8000", None) is None
    assert Hosts(()).refusal("POST", "box:8000", "http://box:8000") is not None
    assert Hosts(()).refusal("GET", "box:8000", None) is not None
    for host in FOREIGN:
        assert host == "evil" or Hosts(()).refusal("POST", host, None) is not None


@pytest.mark.parametrize("path", [*PATHS, *FILES, "/v1/completions"])
def test_every_route_refuses_a_foreign_name(lone: Running, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        reply = ask(lone, request(method, path, BODY if method == "POST" else None, host="evil.example"))
        assert reply is not None
        assert reply.status == 403, (method, path)
        assert method == "HEAD" or reply.error["code"] == "host_not_allowed"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_preflight_of_an_allowed_origin_passes(lone: Running) -> None:
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    reply = ask(lone, request("OPTIONS", "/v1/completions", headers=headers))
    assert reply is not None
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://page.example")


@pytest.mark.parametrize("path", [*PATHS, *FILES])
def test_head_is_get_without_a_body(server: Running, path: str) -> None:
    whole, head = (ask(server, request(method, path)) for method in ("GET", "HEAD"))
    assert whole is not None
    assert head is not None
    assert (head.status, head.body) == (whole.status, b"")
    assert head.headers.get("content-type") == whole.headers.get("content-type")


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/"])
def test_a_slash_at_the_end_says_nothing(server: Running, path: str) -> None:
    replies = [ask(server, request("GET", path + slashes)) for slashes in ("", "/", "//")]
    assert [reply and reply.status for reply in replies] == [200, 200, 200]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_slash_at_the_end_of_a_post(server: Running, path: str) -> None:
    body = BODY if path == "/v1/completions" else json.dumps(CHAT).encode()
    replies = [ask(server, request("POST", path + slash, body)) for slash in ("", "/")]
    texts = [json.loads(reply.body)["choices"] for reply in replies if reply]
    assert texts[0] == texts[1]


def test_the_old_page_leads_to_the_page_behind_any_proxy(server: Running) -> None:
    for path, where in (("/playground", "./"), ("/playground/", "../"), ("/playground?a=1", "./?a=1")):
        reply = ask(server, request("GET", path, host="evil.example"))
        assert reply is not None
        assert (reply.status, reply.headers["location"]) == (307, where)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "/playground", "GET, HEAD"),
        ("POST", "/playground/main.js", "GET, HEAD"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("BREW", "/ready", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_are_taken(server: Running, method: str, path: str, allowed: str) -> None:
    reply = ask(server, request(method, path, b"" if method == "POST" else None))
    assert reply is not None
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or allowed in reply.error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-type": 'Application/JSON ;charset="utf-8"'}, 200),
        ({"content-type": "application/vnd.api+json"}, 200),
        ({"content-encoding": "identity"}, 200),
        ({"content-type": None}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "br, gzip"}, 415),
    ],
)
def test_types_and_encodings(server: Running, headers: dict[str, str], status: int) -> None:
    reply = ask(server, request("POST", "/v1/completions", BODY, headers=headers))
    assert reply is not None
    assert reply.status == status
    if status == 415:
        assert reply.error["code"] == "body_type"
        assert reply.headers["accept"] == "application/json"


@pytest.mark.parametrize("raw", [BODY.decode().encode("utf-16"), b"\xff" + BODY, BODY.replace(b"a", b"\xe9")])
def test_what_is_not_utf8_is_no_json(server: Running, raw: bytes) -> None:
    reply = ask(server, request("POST", "/v1/completions", raw))
    assert reply is not None
    assert (reply.status, "UTF-8" in reply.error["message"]) == (400, True)
