from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from trimtab.cli.prompts import read_prompts
from trimtab.errors import DataError

GOOD = '{"prompt": "Hello"}'


def _write(tmp_path: Path, *lines: str | bytes, name: str = "p.jsonl") -> str:
    path = tmp_path / name
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return str(path)


def test_rows_carry_their_own_weights_and_seed(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        '{"prompt": "Hi", "weights": {"a": 2}, "seed": 7}',
        '{"prompt": [{"role": "user", "content": "Hi"}], "source": "a column of somebody"}',
        '{"prompt": [3, 4, 5]}',
    )
    first, second, third = read_prompts(path, ["a"])
    assert (first.prompt, first.weights, first.seed, first.line) == ("Hi", {"a": 2.0}, 7, 1)
    assert (second.prompt, second.weights, second.seed) == ([{"role": "user", "content": "Hi"}], {}, None)
    assert (third.prompt, third.line) == ([3, 4, 5], 3)


def test_a_text_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    rows = read_prompts(_write(tmp_path, "One, {not json}", "Zwei ☺", "", "", name="p.txt"), [])
    assert [row.prompt for row in rows] == ["One, {not json}", "Zwei ☺"]


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    rows = read_prompts(_write(tmp_path, b"\xef\xbb\xbfone\r", b"two\r", name="p.txt"), [])
    assert [row.prompt for row in rows] == ["one", "two"]
    assert len(read_prompts(_write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r"), [])) == 1


BAD = {
    "not JSON": ('{"prompt": "Hi"', "not JSON"),
    "brackets": ("[" * 200_000, "not JSON (the values are nested too deep)"),
    "a field twice": ('{"prompt": "Hi", "prompt": "Ho"}', "not JSON (the key 'prompt' is given twice)"),
    "a weight of many digits": (f'{{"prompt": "Hi", "weights": {{"a": {"9" * 400}}}}}', "more than 40 digits"),
    "a list": ('["Hi"]', "a JSON list"),
    "an empty line": ("", "an empty line"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not UTF-8"),
    "no prompt": ('{"text": "Hi"}', 'no "prompt" among the fields (text)'),
    "an empty prompt": ('{"prompt": ""}', "the prompt is empty"),
    "no messages": ('{"prompt": []}', "the prompt is empty"),
    "a message without content": ('{"prompt": [{"role": "user"}]}', "neither text nor chat messages"),
    "a negative token id": ('{"prompt": [-1]}', "nor token ids"),
    "true is no token id": ('{"prompt": [true]}', "nor token ids"),
    "a NaN weight": ('{"prompt": "Hi", "weights": {"a": NaN}}', "the weight of a is nan"),
    "an infinite weight": ('{"prompt": "Hi", "weights": {"a": 1e999}}', "the weight of a is inf"),
    "a weight in words": ('{"prompt": "Hi", "weights": {"a": "1"}}', "the weight of a is '1'"),
    "an unknown guide": ('{"prompt": "Hi", "weights": {"b": 1}}', "Unknown guide 'b'"),
    "weights in a list": ('{"prompt": "Hi", "weights": [1]}', '"weights" is not an object'),
    "a negative seed": ('{"prompt": "Hi", "seed": -1}', '"seed" is -1'),
    "half a seed": ('{"prompt": "Hi", "seed": 0.5}', '"seed" is 0.5'),
    "a misspelt field": ('{"prompt": "Hi", "weight": {"a": 1}}', "Did you mean 'weights'?"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_with_its_number_and_left_out_only_when_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, problem = BAD[name]
    path = _write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(DataError) as caught:
        read_prompts(path, ["a"])
    assert f"{path}, line 2: " in str(caught.value)
    assert problem in str(caught.value)
    assert "--skip-bad-lines" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        rows = read_prompts(path, ["a"], skip_bad_lines=True)
    assert [row.line for row in rows] == [1, 3]
    assert "line 2" in caplog.text
    assert problem in caplog.text


def test_a_file_without_prompts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        read_prompts(_write(tmp_path, "", ""), [])
    with pytest.raises(DataError, match="no prompts among 2 bad lines"):
        read_prompts(_write(tmp_path, "{", "["), [], skip_bad_lines=True)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_prompts(str(tmp_path / "none.jsonl"), [])
    with pytest.raises(DataError, match="a directory"):
        read_prompts(str(tmp_path), [])


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert [row.prompt for row in read_prompts("-", [])] == ["Hello"]
