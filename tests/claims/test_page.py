"""The page of claims says what the rows on file say, and nothing else."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from recipes.claims import page, prepare, rows
from recipes.claims.__main__ import main
from recipes.claims.recipe import names, read
from trimtab.errors import DataError, OptionError


def _page() -> str:
    return page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_rows_make_it() -> None:
    assert page.MARK.findall(_page()) == ["table", "details"]
    assert page.written(_page()) == _page(), "the page is behind the rows: python -m recipes.claims page"


def test_a_figure_changed_by_hand_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (figure, *_) = re.findall(r"\d\.\d{3} \[", _page())
    changed = _page().replace(figure, "9.999 [", 1)
    assert page.written(changed) == _page()
    monkeypatch.setattr(page, "PAGE", tmp_path / "claims.md")
    page.PAGE.write_text(changed, encoding="utf-8")
    assert main(["page", "--check"]) == 1
    assert main(["page"]) == 0
    assert main(["page", "--check"]) == 0


def test_rows_that_change_change_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    read_rows = rows.read

    def slower(path: Path) -> list[dict[str, object]]:
        return [
            {**row, **({"of_base": 0.1, "lowest": 0.1, "highest": 0.1} if "of_base" in row else {})}
            for row in read_rows(path)
        ]

    monkeypatch.setattr(rows, "read", slower)
    made = page.written(_page())
    assert made != _page()
    assert page.verdict(read("costs")) == "**does not**, by a rule that was changed after a look"


def test_a_claim_without_rows_has_no_figure_and_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(type(read("costs")), "rows_of", lambda self, stage: tmp_path / "none")
    for name in names():
        assert page.verdict(read(name)) == "not run yet"
        text = page.details(read(name))
        assert f"make claim NAME={name}" in text
        assert "not run yet" in text


def test_a_claim_is_not_judged_by_the_tests_that_happen_to_have_rows() -> None:
    claim = read("costs")
    more = {**claim.verdict[0], "rows": "others", "what": "another"}
    half = dataclasses.replace(claim, verdict=(*claim.verdict, more))
    assert page.verdict(half) == "**cannot be told here**: another: not run yet"


def test_the_costs_on_file_are_those_of_their_pages(tmp_path: Path) -> None:
    assert prepare.main(["figures", "--out", str(tmp_path / "figures.jsonl")]) == 0
    kept = rows.read(read("costs").rows_of("figures"))
    assert prepare._lines(tmp_path / "figures.jsonl") == kept, "the pages moved on: make claim NAME=costs"
    assert {row["engine"] for row in kept} == {"builtin", "llama.cpp"}


def test_every_row_of_the_table_leads_to_its_section() -> None:
    links = re.findall(r"\]\(#([^)]+)\)", page.table([read(name) for name in names()]))
    headings = {page._anchor(found) for found in re.findall(r"^### (.*)$", _page(), flags=re.MULTILINE)}
    assert len(links) == len(names())
    assert {*links} == headings


def test_a_table_at_equal_kl_leaves_out_who_reaches_no_number_of_nats(tmp_path: Path) -> None:
    def answers(method: str, strength: float, reward: float, kl: float | None) -> list[dict[str, object]]:
        shared = {"method": method, "strength": strength, "seed": 0, "kl": kl}
        return [
            {**shared, "split": split, "prompt_index": index, "rewards": {"r": reward + index % 3}}
            for split in ("test", "validation")
            for index in range(12)
        ]

    path = tmp_path / "sampled.jsonl.gz"
    rows.write(path, [*answers("base", 0.0, 0.0, 0.0), *answers("a", 1.0, 2.0, 4.0), *answers("b", 1.0, 2.0, None)])
    lines = page._at_equal_kl(path, {"reward": "r", "nats": [2, 9]})
    assert lines[1:] == [
        "| sampled: gain over the base in r | 2 nats | 9 nats |",
        "|---|---|---|",
        "| a | 1.000 [1.000, 1.000] |  |",
    ]
    assert page._at_equal_kl(tmp_path / "none.jsonl.gz", {"reward": "r", "nats": [2]}) == []


def test_answers_make_pairs_where_the_same_prompts_have_two(tmp_path: Path) -> None:
    for name, texts in (("mix", "ab"), ("policy", "ac"), ("others", "b")):
        lines = [f'{{"prompt": "p{index}", "text": "{text}"}}\n' for index, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    out = tmp_path / "pairs.jsonl"

    def made(worse: str) -> int:
        return prepare.main(["against", str(tmp_path / "mix.jsonl"), str(tmp_path / worse), "--out", str(out)])

    assert made("policy.jsonl") == 0
    assert prepare._lines(out) == [{"prompt": "p1", "chosen": "b", "rejected": "c"}]
    with pytest.raises(DataError, match="not answers to the prompts"):
        made("others.jsonl")


def test_prompts_that_ship_are_cut_as_a_file_is(tmp_path: Path) -> None:
    out = tmp_path / "prompts.jsonl"
    assert prepare.main(["first", "builtin:training", "--start", "398", "--num", "2", "--out", str(out)]) == 0
    assert [row["prompt"][0]["role"] for row in prepare._lines(out)] == ["user", "user"]
    with pytest.raises(OptionError, match="list of prompts"):
        prepare.main(["first", "builtin:trainin", "--num", "1", "--out", str(out)])
