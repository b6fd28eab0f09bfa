"""What is written of the pairs: rows that training reads as they were meant, an account, whole files or none."""

from __future__ import annotations

import errno
from dataclasses import fields
from pathlib import Path

import pytest

from trimtab.core import Chat, Prompt, SamplingParams
from trimtab.errors import DataError
from trimtab.fields import table
from trimtab.making import files as files_module
from trimtab.making.card import About, card, margins_and_lengths
from trimtab.making.choosing import CUT, MISREAD, Account, Pair, prompt_key
from trimtab.making.files import PairFiles
from trimtab.making.result import ANSWERS_OUT, PAIRS_OUT, as_json, as_row, pair_set
from trimtab.making.settings import ChoiceSettings, SampleSettings
from trimtab.training.pairs.data import read_pairs

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


def pairs_of(num: int, prompt: Prompt | None = None) -> list[list[Pair]]:
    return [
        [Pair(prompt or [{"role": "user", "content": f"q{index}"}], f"yes {index}", f"no {index}", (1.0, 0.5))]
        for index in range(num)
    ]


PROMPTS: dict[str, Prompt] = {
    "text": "Once upon a time, there",
    "messages": QUESTION,
    "options": Chat(QUESTION, {"enable_thinking": False}),
    "tools": Chat(QUESTION, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
    "half of a surrogate pair": [{"role": "user", "content": "\ud83d"}],
}


@pytest.mark.parametrize("what", PROMPTS)
def test_training_reads_what_was_meant(what: str, tmp_path: Path) -> None:
    pair = Pair(PROMPTS[what], " a bright day.\nIt rained", " dark\u2028night", (2.0, 1.0))
    place = PairFiles(tmp_path / "pairs.jsonl")
    place.write([pair], [], "card")
    (read,) = read_pairs([place.out]).pairs
    assert (read.chosen, read.rejected) == (pair.chosen, pair.rejected)
    assert prompt_key(read.prompt) == prompt_key(pair.prompt)


def test_a_pair_that_training_would_read_otherwise_is_left_out() -> None:
    """A raw answer that says its prompt again is cut by the reader, or refused."""
    prompt = "The film was the best"
    again = [Pair(prompt, f"{prompt} of all.", "; no."), Pair(prompt, f"{prompt} ever", f"{prompt} of May")]
    groups = [again, [Pair(prompt, " by far.", " of none.")]]
    account = Account()
    found = pair_set(groups, ChoiceSettings(eval_share=0), account, seed=0)
    assert [pair.chosen for pair in found.pairs] == [" by far."]
    assert account.pairs_out == {MISREAD: 2}


def test_whole_prompts_are_held_out() -> None:
    groups = [one * 3 for one in pairs_of(10)]
    found = pair_set(groups, ChoiceSettings(eval_share=0.3), Account(), seed=1)
    train, held = ({prompt_key(pair.prompt) for pair in part} for part in (found.pairs, found.held_out))
    assert (len(train), len(held), train & held) == (7, 3, set())
    assert found.num_prompts == 10
    assert pair_set(groups, ChoiceSettings(eval_share=0.3), Account(), seed=1) == found
    assert pair_set(groups, ChoiceSettings(eval_share=0), Account(), seed=1).held_out == ()


def test_pairs_of_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match=r"one prompt among 7.*With resume, .*eval_share 0.*With overwrite, "):
        pair_set(pairs_of(1), ChoiceSettings(), Account(num_prompts=7), seed=0)


def no_pair(**counts: int) -> str:
    """What is said where nothing is left, by the reasons why answers and pairs were left out."""
    account = Account(num_prompts=7, num_answers=42)
    for why, num in counts.items():
        (account.pairs_out if why in PAIRS_OUT else account.answers_out)[why] = num
    with pytest.raises(DataError) as caught:
        pair_set([[], []], ChoiceSettings(), account, seed=0)
    return str(caught.value)


def test_no_pair_says_how_many_were_tried_and_what_to_change() -> None:
    assert "42 answers to 7 prompts (30 pairs of answers: too small a margin)." in no_pair(close=30)


SAMPLED_OTHERWISE = {field.name for settings in (SampleSettings, SamplingParams) for field in fields(settings)}


@pytest.mark.parametrize("why", [*PAIRS_OUT, *ANSWERS_OUT, ""])
def test_a_way_out_is_named_with_the_flag_under_which_it_can_be_taken(why: str) -> None:
    """Answers that are there cannot be sampled otherwise: whatever would, begins anew."""
    said = no_pair(**({why: 30} if why else {}))
    kept, _, anew = said.partition("overwrite")
    assert anew, said
    assert "resume" in kept or not {name for name in table(ChoiceSettings) if name in kept}
    assert not {name for name in SAMPLED_OTHERWISE if name in kept.partition("). ")[2]}, said
    assert not {name for name in table(ChoiceSettings) if name in anew}, said


def test_the_commonest_reasons_give_the_ways_out() -> None:
    said = no_pair(close=30, unlike=20, empty=5)
    assert said.endswith(
        "With resume, for the same answers: accept a smaller min_margin; or accept answers that differ more in length "
        "(min_length_ratio). With overwrite, for new answers: sample more answers (num_samples); or give answers more "
        "room (max_new_tokens), or turn whole_sentences off."
    )


def test_the_account_says_how_often_the_chosen_answer_is_longer() -> None:
    groups = [[Pair(f"p{index}", "four" if index < 3 else "a", "two", (index, 0.0))] for index in range(1, 5)]
    found = as_json(pair_set(groups, ChoiceSettings(eval_share=0), Account(), seed=0))
    assert found["chosen_longer"]["share"] == 0.5  # type: ignore[index]
    assert (found["chosen_mean_length"], found["rejected_mean_length"]) == (2.5, 3)
    assert found["margin"] == {"mean": 2.5, "min": 1, "median": 2.5, "max": 4}


@pytest.mark.parametrize(("num_cut", "num_left_out", "warns"), [(31, 0, True), (30, 0, False), (60, 60, False)])
def test_answers_that_end_where_the_limit_was_are_warned_of(num_cut: int, num_left_out: int, warns: bool) -> None:
    account = Account(num_prompts=10, num_answers=60, num_cut=num_cut)
    account.answers_out[CUT] = num_left_out
    found = pair_set(pairs_of(10), ChoiceSettings(eval_share=0), account, seed=0)
    said = [line for line in margins_and_lengths(found) if "ran into the limit" in line]
    assert bool(said) is warns
    if warns:
        assert said[0].startswith("31 of 60 answers")
        assert "(--max-new-tokens) and leave them out (--no-cut-answers)" in said[0]
    assert as_json(found)["num_cut_answers"] == num_cut


def test_the_card_names_the_files_as_datasets_finds_them() -> None:
    yaml = pytest.importorskip("yaml")
    found = pair_set(pairs_of(10), ChoiceSettings(eval_share=0.2), Account(num_prompts=12, num_answers=60), seed=0)
    text = card(found, About("a.jsonl", "a.held_out.jsonl", "demo", "`p.txt`", "How.", {"stop": ["|"]}))
    front = yaml.safe_load(text.split("---\n")[1])
    (config,) = front["configs"]
    assert config["data_files"] == [
        {"split": "train", "path": "a.jsonl"},
        {"split": "validation", "path": "a.held_out.jsonl"},
    ]
    assert "| prompts tried | 12 |" in text
    assert "| pairs | 8 |" in text
    assert r'| stop | ["\|"] |' in text


def test_a_disk_that_fills_up_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = PairFiles(tmp_path / "a.jsonl")
    place.out.write_text("old")
    num_synced = 0

    def sync(path: Path) -> None:
        nonlocal num_synced
        num_synced += 1
        if num_synced == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files_module, "sync", sync)
    with pytest.raises(OSError, match="No space"):
        place.write(pairs_of(3)[0], pairs_of(3)[1], "card")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.jsonl", "old")]


def test_an_earlier_file_of_pairs_held_out_goes_with_what_it_belonged_to(tmp_path: Path) -> None:
    place = PairFiles(tmp_path / "a.jsonl")
    place.write(pairs_of(1)[0], pairs_of(2)[1], "card")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.README.md", "a.held_out.jsonl", "a.jsonl"]
    place.write(pairs_of(1)[0], [], "card")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.README.md", "a.jsonl"]


def test_a_row_of_messages_is_trls_conversational_format() -> None:
    assert as_row(Pair(QUESTION, "a", "b")) == {
        "prompt": QUESTION,
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
