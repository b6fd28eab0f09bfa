"""API keys as a server is given them: what could never be sent, or stands for nothing, is refused at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from trimtab.cli.keys import read_keys
from trimtab.errors import InputError

BAD = {
    "": "is empty",
    "  ": "is empty",
    "\t\n": "is empty",
    "a b": "white space",
    " k3y": "white space",
    "k3y\n": "white space",
    "clé": "not ASCII",
    "ключ": "not ASCII",
    "key\udce9": "not ASCII",  # a byte that is no UTF-8, as Python gives it
    "key\x00": "not ASCII",
    "key\x7f": "not ASCII",
    "\N{ZERO WIDTH SPACE}": "not ASCII",
    "\N{NO-BREAK SPACE}": "is empty",
}


@pytest.mark.parametrize("key", BAD)
def test_a_key_that_opens_nothing_is_refused(key: str) -> None:
    for flags, variable in (([key], None), (["good", key], None), ([], key), (["good"], key)):
        with pytest.raises(InputError, match=BAD[key]) as caught:
            read_keys(flags, None, variable)
        assert not key.strip() or key.strip() not in str(caught.value)


def test_the_keys_of_all_three_places(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n\r\n  second  \r\n")
    assert read_keys(["flag"], str(file), "variable") == ["flag", "variable", "first", "second"]
    assert read_keys([], None, None) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no key is in it"),
        (b"\n  \n", "no key is in it"),
        (b"good\ncl\xe9\n", "not readable as UTF-8"),
        ("good\nclé\n".encode(), "line 2: the key has characters that are not ASCII"),
        (b"# my keys\ngood\n", "line 1: the key has white space"),
        (b"\x00\x01\xff", "not readable as UTF-8"),
        (b"go\x00od", "line 1: the key has characters"),
    ],
)
def test_a_file_of_bad_keys_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_keys([], str(file), None)
    assert "clé" not in str(caught.value)


def test_it_is_said_before_anything_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run("serve", "--model", "/nowhere", "--api-key", "")
    assert (outcome.code, "--api-key" in outcome.err) == (2, True)
    monkeypatch.setenv("TRIMTAB_API_KEY", "")
    outcome = run("serve", "--model", "/nowhere")
    assert (outcome.code, "$TRIMTAB_API_KEY is empty" in outcome.err) == (2, True)
