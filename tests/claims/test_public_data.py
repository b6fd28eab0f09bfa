"""The shared rows are built again from public sources, here from stand-ins, and what differs is said."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def public(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("public_data", repository / "recipes" / "public_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["public_data"] = module
    spec.loader.exec_module(module)
    return module


def _dialogue(*said: str) -> str:
    return "".join(f"\n\n{'Assistant' if at % 2 else 'Human'}: {text}" for at, text in enumerate(said))


PAIRS = [
    {
        "chosen": _dialogue(f"ask {at}", "yes", "more", f"good {at}"),
        "rejected": _dialogue(f"ask {at}", "yes", "more", "bad"),
    }
    for at in range(6)
] + [
    {"chosen": _dialogue("one", "a"), "rejected": _dialogue("two", "b")},
    {"chosen": "no dialogue", "rejected": "none"},
]
PROBLEMS = [
    {"question": f"{at} and 1?", "answer": f"It is <<{at}+1={at + 1}>>{at + 1}.\n#### 1,00{at}"} for at in range(5)
]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Stand-ins for two data sets, in the files and shapes of the real ones."""
    harmless = tmp_path / "Anthropic" / "hh-rlhf" / "harmless-base"
    harmless.mkdir(parents=True)
    with gzip.open(harmless / "train.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in PAIRS)
    problems = tmp_path / "openai" / "grade-school-math" / "grade_school_math" / "data"
    problems.mkdir(parents=True)
    (problems / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return tmp_path


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


DRAWN: dict[str, list[dict[str, Any]]] = {
    "harmless/train.jsonl": [
        {
            "prompt": [_user(f"ask {at}"), _said("yes"), _user("more")],
            "chosen": [_said(f"good {at}")],
            "rejected": [_said("bad")],
        }
        for at in (4, 1, 2)
    ],
    "gsm8k/test.jsonl": [
        {"prompt": [_user(f"{at} and 1?")], "answer": f"100{at}", "solution": f"It is {at + 1}."} for at in (3, 0)
    ],
    "prompts/hh_test.jsonl": [{"prompt": [_user("ask 5")], "source": "harmless-base"}],
}


@pytest.fixture
def record(public: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Digests of rows that somebody drew from the stand-ins in an order of their own."""
    found = {name: public.digest(DRAWN.get(name, [{"prompt": "elsewhere"}])) for name in public.SOURCES}
    monkeypatch.setattr(public, "DIGESTS", tmp_path / "record.json")
    public.DIGESTS.write_text(json.dumps(found))
    return found


def test_rows_on_record_are_found_again_in_their_order(
    public: ModuleType, sources: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert public.main(["--sources", str(sources), "--out", str(tmp_path / "out")]) == 1, "other files are missing"
    said = capsys.readouterr().out
    for name, rows in DRAWN.items():
        assert [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()] == rows
        assert f"{name}: the {len(rows)} rows on record" in said
    assert "gsm8k/train.jsonl: not built" in said
    assert "helpful/train.jsonl: not built: how its rows were made" in said


def test_what_is_not_in_a_source_is_said(
    public: ModuleType, sources: Path, record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sources / "openai" / "grade-school-math" / "grade_school_math" / "data" / "test.jsonl"
    path.write_text(path.read_text().replace("3 and 1?", "3 and one?"))
    public.main(["--sources", str(sources), "--out", str(tmp_path / "out")])
    wanted = "gsm8k/test.jsonl: 1 rows, and 2 are on record; 1 rows on record are not there, the first of them row 0"
    assert wanted in capsys.readouterr().out


def test_every_difference_is_told(public: ModuleType) -> None:
    rows = [{"prompt": str(at)} for at in range(4)]
    known = public.digest(rows)
    assert public.differences(rows, known) == []
    assert public.differences([dict(reversed([*row.items()])) for row in rows], known) == []
    cases = {
        "not there, the first of them row 2": [rows[0], rows[1], rows[3]],
        "not on record, the first of them row 4": [*rows, {"prompt": "x"}],
        "another order or number, from row 1": [rows[0], rows[2], rows[1], rows[3]],
        "5 rows, and 4 are on record": [*rows, rows[0]],
    }
    for words, changed in cases.items():
        assert words in "; ".join(public.differences(changed, known))


def test_the_record_is_of_the_shared_rows(public: ModuleType, shared_data: Path) -> None:
    assert public.main(["--check", str(shared_data)]) == 0


def test_the_record_holds_digests_and_no_text(public: ModuleType) -> None:
    record = json.loads(public.DIGESTS.read_text())
    assert {*record} == {*public.SOURCES}
    for known in record.values():
        assert {*known} == {"rows", "sha256", "each"}
        assert set(known["sha256"] + known["each"]) <= set("0123456789abcdef")
        assert len(known["each"]) == known["rows"] * public.SHORT


def test_the_list_names_every_source(public: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert public.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, source in public.SOURCES.items():
        assert name in said
        assert source.repository in said
        assert source.licence in said
