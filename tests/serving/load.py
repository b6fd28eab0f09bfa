"""Clients that know what they must get: requests with the answers that each has alone, and visitors that send them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from trimtab.core import Prompt, SamplingParams
from trimtab.decoding.decoder import Decoder
from trimtab.prompts import encode_prompt

WORDS = ("a ship", "turns", "the small flap", "🙂 🛥️", "帆を上げる", "naïve", "rudder;", "\n", "0.25", "{}", "…", "wind")
SYSTEM = "You answer in few words, and you never say what you do not know. " * 2
WAIT_S = 120.0
_NUDGE = 1e-3
REFUSED: tuple[bytes, ...] = (
    b"\x00\xff garbage",
    b"[" * 2000,
    b'{"model": "tiny", "prompt": "a", "guidance": {"weights": {"up": NaN}}}',
    b'{"model": "tiny", "prompt": "a", "guidance": {"wieghts": {}}}',
    b'{"model": "tiny", "prompt": "half of a character: \\ud800"}',
    b'{"model": "tiny", "messages": [{"role": "user"}]}',
    json.dumps({"model": "tiny", "prompt": "a", "stop": [f"s{number}" for number in range(5000)]}).encode(),
    json.dumps({"model": "tiny", "prompt": "a " * 30_000}).encode(),
)
"""Bodies that are refused with 400."""

Ending = tuple[str, str]
"""(text, finish_reason) of an answer."""


@dataclass(frozen=True)
class Asked:
    """A request, and the answers it must get."""

    path: str
    body: Mapping[str, Any]
    answers: tuple[Ending, ...]


@dataclass
class Seen:
    """What visitors met."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def pool(decoder: Decoder, size: int, *, seed: int, max_new_tokens: int = 24) -> list[Asked]:
    """`size` different requests with their answers, each decoded alone.

    Left out are those that are so near to a tie that weights changed by 1e-3, up or down, turn them: another batch's
    rounding might as well. (A shift's scores are differences of a nat or so, of numbers that are ten times as large.)
    """
    dice = random.Random(seed)
    found: list[Asked] = []
    while len(found) < size:
        body, prompt, params = _random_request(dice, max_new_tokens, list(decoder.guides))
        plain, up, down = (
            [_alone(decoder, prompt, params, number, nudge) for number in range(body["n"])]
            for nudge in (0.0, _NUDGE, -_NUDGE)
        )
        if plain == up == down:
            path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
            found.append(Asked(path, body, tuple(plain)))
    return found


def _random_request(
    dice: random.Random, max_new_tokens: int, guides: Sequence[str]
) -> tuple[dict[str, Any], Prompt, dict[str, Any]]:
    """(what is sent, the prompt as the decoder takes it, its sampling parameters)."""
    text = " ".join(dice.choices(WORDS, k=dice.choice([1, 4, 12, 60])))
    if dice.random() < 0.1:
        text = f"{text[:40]} {'wind ' * 280}"
    how: dict[str, Any] = {
        "temperature": dice.choice([0.0, 0.7, 1.0, 1.3]),
        "top_p": dice.choice([1.0, 0.9]),
        "seed": dice.randrange(10_000),
        "stop": dice.choice([[], ["e"], ["zq", "\n\n"]]),
    }
    weights = {name: dice.choice([0.0, 0.5, 1.0, -0.5, 2.0]) for name in guides}
    num_new = dice.randint(1, max_new_tokens)
    body = {"model": "tiny", "max_tokens": num_new, "n": dice.choice([1, 1, 1, 2]), "guidance": {"weights": weights}}
    if dice.random() < 0.4:
        body["guidance"] |= {"draft": "lookup", "draft_tokens": dice.choice([None, 2, 5])}
    body |= how
    prompt: Prompt = text
    if dice.random() < 0.7:
        prompt = [{"role": "system", "content": SYSTEM}] * dice.randint(0, 1) + [{"role": "user", "content": text}]
        body["messages"] = prompt
    else:
        body["prompt"] = text
    params = {**how, "stop": tuple(how["stop"]), "weights": weights, "max_new_tokens": num_new}
    return body, prompt, params


def _alone(decoder: Decoder, prompt: Prompt, params: Mapping[str, Any], number: int, nudge: float) -> Ending:
    weights = {name: weight + nudge for name, weight in params["weights"].items()}
    how = SamplingParams(**{**params, "seed": params["seed"] + number, "weights": weights})
    [answer] = decoder.answers([(encode_prompt(decoder.model, prompt), how)])
    return answer.text, {"eos": "stop"}.get(answer.finish_reason, answer.finish_reason)


async def visit(session: aiohttp.ClientSession, asked: Sequence[Asked], seen: Seen, dice: random.Random) -> None:
    """One request of a random kind."""
    kind = dice.choices(("stream", "whole", "hang up", "refused", "look"), (40, 25, 20, 10, 5))[0]
    try:
        async with asyncio.timeout(WAIT_S):
            await _KINDS[kind](session, dice.choice(asked), seen, dice)
    except TimeoutError:
        seen.wrong.append(f"{kind}: no answer within {WAIT_S:g} s")
    except aiohttp.ClientError as error:
        seen.wrong.append(f"{kind}: {error!r}")
    seen.counts[kind] += 1


async def whole(session: aiohttp.ClientSession, asked: Asked, seen: Seen, dice: random.Random) -> None:
    """Ask for the answers as one reply, and compare them."""
    async with session.post(asked.path, json=dict(asked.body)) as reply:
        if _is_full(reply, seen):
            return
        choices = (await reply.json())["choices"]
    found = [(_text(choice), choice["finish_reason"]) for choice in sorted(choices, key=lambda one: one["index"])]
    _compare(asked, found, seen)


async def stream(session: aiohttp.ClientSession, asked: Asked, seen: Seen, dice: random.Random) -> None:
    """Read the answers piece by piece to `[DONE]`, and compare them."""
    texts, reasons, last = [""] * len(asked.answers), [""] * len(asked.answers), b""
    body = {**asked.body, "stream": True, "logprobs": dice.choice([None, 1 if "prompt" in asked.body else True])}
    async with session.post(asked.path, json=body) as reply:
        if _is_full(reply, seen):
            return
        async for line in reply.content:
            last = line.strip() or last
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += _text(choice)
                    reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    if last != b"data: [DONE]":
        seen.wrong.append(f"a stream ended with {last!r}")
    _compare(asked, list(zip(texts, reasons, strict=True)), seen)


async def hang_up(session: aiohttp.ClientSession, asked: Asked, seen: Seen, dice: random.Random) -> None:
    """Leave before anything has come, amid the stream, or while a whole answer is made."""
    streamed = dice.random() < 0.8
    sending = asyncio.create_task(session.post(asked.path, json={**asked.body, "stream": streamed}).__aenter__())
    if not streamed or dice.random() < 0.3:
        await asyncio.sleep(dice.random() * 0.2)
        sending.cancel()
    for reply in await asyncio.gather(sending, return_exceptions=True):
        if isinstance(reply, aiohttp.ClientResponse):
            for _ in range(dice.randint(0, 12)):
                await reply.content.readline()
            reply.close()


async def _refused(session: aiohttp.ClientSession, asked: Asked, seen: Seen, dice: random.Random) -> None:
    body, status = dice.choice(REFUSED), 400
    if dice.random() < 0.05:
        body, status = b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413
    headers = {"content-type": "application/json"}
    path = "/v1/completions" if b'"prompt"' in body else "/v1/chat/completions"
    async with session.post(path, data=body, headers=headers) as reply:
        told = await reply.json()
    if reply.status != status or not told["error"]["message"]:
        seen.wrong.append(f"{body[:60]!r} got {reply.status}: {told}")


async def _look(session: aiohttp.ClientSession, asked: Asked, seen: Seen, dice: random.Random) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/guides", "/"):
        async with session.get(path) as reply:
            if reply.status != 200:
                seen.wrong.append(f"{path} got {reply.status}")
            await reply.read()


_KINDS = {"stream": stream, "whole": whole, "hang up": hang_up, "refused": _refused, "look": _look}


def _is_full(reply: aiohttp.ClientResponse, seen: Seen) -> bool:
    """Whether the queue was full; any other refusal is wrong."""
    if reply.status == 429:
        seen.counts["queue full"] += 1
        if "retry-after" not in reply.headers:
            seen.wrong.append("a 429 says no retry-after")
        return True
    if reply.status != 200:
        seen.wrong.append(f"a good request got {reply.status}")
        return True
    return False


def _text(choice: Mapping[str, Any]) -> str:
    """The text of a choice: whole or a piece, of a chat or a completion."""
    if "text" in choice:
        return str(choice["text"])
    return str((choice.get("message") or choice.get("delta") or {}).get("content") or "")


def _compare(asked: Asked, found: Sequence[Ending], seen: Seen) -> None:
    seen.counts["answers compared"] += len(found)
    for number, (expected, got) in enumerate(zip(asked.answers, found, strict=True)):
        if expected != got:
            seen.wrong.append(f"{json.dumps(asked.body)} answer {number} is {got}, alone {expected}")
