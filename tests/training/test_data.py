"""Files and hub data sets into pairs; what is wrong is named by file and line."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from trimtab.errors import DataError, OptionError
from trimtab.training.pairs.data import PreferencePair, fingerprint, hold_out, read_pairs, sample, without_stock

from .conftest import vowel_pairs, write_rows

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_files_are_read_in_order_each_in_its_own_shape(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", [GOOD])
    transcript = {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"}
    two = write_rows(tmp_path / "two.jsonl", [transcript])
    data = read_pairs([one, two])
    assert data.pairs == (
        PreferencePair("p", "a", "b"),
        PreferencePair(({"role": "user", "content": "q"},), "x", "y"),
    )
    assert data.names == ("one.jsonl", "two.jsonl"), "names without directories"


BAD_LINES = {
    "empty": ("", "the line is empty"),
    "spaces": ("   ", "the line is empty"),
    "cut": ('{"prompt": "p", "cho', "is no JSON"),
    "a list": ("[1, 2]", "is not a JSON object"),
    "a key missing": (json.dumps({"prompt": "p", "chosen": "a"}), "`rejected` is missing"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(name: str, tmp_path: Path) -> None:
    line, problem = BAD_LINES[name]
    path = write_rows(tmp_path / "pairs.jsonl", [GOOD, line, GOOD])
    with pytest.raises(DataError, match=problem) as caught:
        read_pairs([path])
    assert (caught.value.path, caught.value.line) == (Path(path), 2)
    assert f"{path}, line 2: " in str(caught.value)
    assert "--skip-bad-lines" in str(caught.value)


def test_bad_lines_are_passed_over_only_when_told_to_and_counted(tmp_path: Path) -> None:
    rows = [GOOD, *(line for line, _ in BAD_LINES.values()), {**GOOD, "chosen": "c"}]
    data = read_pairs([write_rows(tmp_path / "pairs.jsonl", rows)], skip_bad_lines=True)
    assert [pair.chosen for pair in data.pairs] == ["a", "c"]
    assert data.num_skipped == len(BAD_LINES)


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"line 2: the line is not UTF-8 text"):
        read_pairs([path])


def test_ties_are_counted_and_no_error(tmp_path: Path) -> None:
    tie = {"instruction": "p", "completions": [{"response": text, "score": 1} for text in "ab"]}
    good = {"instruction": "p", "completions": [{"response": text, "score": ord(text)} for text in "ab"]}
    data = read_pairs([write_rows(tmp_path / "pairs.jsonl", [tie, good])])
    assert (len(data.pairs), data.num_ties, data.num_skipped) == (1, 1, 0)


@pytest.mark.parametrize("rows", [[], ["nonsense"]])
def test_no_pair_at_all_is_an_error_even_when_bad_lines_are_passed_over(rows: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no preference pair"):
        read_pairs([write_rows(tmp_path / "pairs.jsonl", rows)], skip_bad_lines=True)


def test_a_missing_file_is_not_taken_for_a_hub_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_pairs([tmp_path / "missing.jsonl"])
    with pytest.raises(DataError, match="is a directory"):
        read_pairs([tmp_path])


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"Did you mean 'pku-safer'"):
        read_pairs([tmp_path / "x.jsonl"], format="pku-saver")


def test_a_hub_data_set_is_read_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, str]]:
        asked.append((name, split))
        return [GOOD]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = read_pairs(["someone/pairs", "someone/pairs@test"])
    assert asked == [("someone/pairs", "train"), ("someone/pairs", "test")]
    assert data.names == ("someone/pairs", "someone/pairs@test")


def test_a_hub_data_set_that_cannot_be_had_is_a_data_error() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="is not a file here, and the hub did not give it"):
        read_pairs(["nobody/no-such-pairs"])  # the hub is offline in tests


def test_the_fingerprint_is_of_the_content_and_its_order() -> None:
    pairs = vowel_pairs(4)
    assert fingerprint(pairs) == fingerprint(list(pairs))
    assert fingerprint(pairs) != fingerprint(pairs[::-1])
    assert fingerprint(pairs) != fingerprint([*pairs[:3], PreferencePair(pairs[3].prompt, "x", pairs[3].rejected)])
    assert len(fingerprint([])) == 64


def test_prompts_are_held_out_whole() -> None:
    pairs = [PreferencePair(f"p{i % 10}", f"good {i}", f"bad {i}") for i in range(100)]
    train, held = hold_out(pairs, 0.2, seed=3)
    assert len(train) + len(held) == 100
    assert len({pair.prompt for pair in held}) == 2
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held}
    assert hold_out(pairs, 0.2, seed=3) == (train, held)
    assert hold_out(pairs, 0.2, seed=4) != (train, held)


def test_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="share one prompt"):
        hold_out([PreferencePair("p", "a", "b")], 0.5, seed=0)


STOCK = [PreferencePair(f"p{i}", "I win.", f"bad {i}") for i in range(5)]


def test_a_response_to_many_prompts_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rivals = [PreferencePair("p", "good", f"bad {i}") for i in range(20)]
    turned = [PreferencePair("q", "good too", "I win.")]
    with caplog.at_level("WARNING", logger="trimtab"):
        assert without_stock([*STOCK, *rivals, *turned], 5) == rivals, "many rivals to one prompt are in order"
    assert "6 of 26 pairs are left out" in caplog.text
    assert "begins 'I win.'" in caplog.text


def test_a_response_to_few_prompts_stays(caplog: pytest.LogCaptureFixture) -> None:
    assert without_stock(STOCK, 5) == STOCK
    assert without_stock(STOCK, 0) == STOCK
    assert not caplog.text


def test_nothing_but_stock_responses_is_an_error() -> None:
    with pytest.raises(DataError, match=r"max_prompts_per_response 0"):
        without_stock(STOCK, 4)


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    pairs = vowel_pairs(20)
    drawn = sample(pairs, 5, seed=1)
    assert drawn == sample(pairs, 5, seed=1) != sample(pairs, 5, seed=2)
    assert [pairs.index(pair) for pair in drawn] == sorted(pairs.index(pair) for pair in drawn)
    assert sample(pairs, 99, seed=1) == pairs


@pytest.mark.parametrize(("name", "count"), [("helpful", 344), ("harmless", 200)])
def test_the_shared_data_is_read_as_it_is(name: str, count: int, shared_data: Path) -> None:
    data = read_pairs([shared_data / name / "validation.jsonl"])
    assert (len(data.pairs), data.num_skipped) == (count, 0)
