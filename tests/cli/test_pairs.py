"""`trimtab pairs` as a user meets it: its three forms, what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.cli.conftest import Outcome, Run, Tiny
from tests.fake_judge import Reply, fake_judge, in_turn, prefers
from trimtab.making import sampling
from trimtab.training.pairs.data import prompt_key, read_pairs

PROMPTS = [{"prompt": f"{letter}?"} for letter in "abcdef"]
SENTENCES = ("--towards", "Be kind.", "--away", "Be rude.")
ALL_LENGTHS = ("--min-length-ratio", "0", "--no-whole-sentences")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return path


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rewards of random bytes: how many of the letters are before n; always the same; or a failure."""
    path = tmp_path_factory.mktemp("scorers") / "scorers_for_pairs.py"
    path.write_text(
        "def early(prompts, texts):\n    'How many letters are before n.'\n"
        "    return [sum('a' <= letter < 'n' for letter in text.lower()) for text in texts]\n"
        "def same(prompts, texts):\n    return [1.0] * len(texts)\n"
        "def fails(prompts, texts):\n    return [1 / (prompt[0]['content'] != 'c?') for prompt in prompts]\n"
    )
    return f"{path}:early"


@pytest.fixture
def argv(tiny: Tiny, prompts: Path, tmp_path: Path) -> list[str]:
    return [
        *("pairs", "--model", tiny.model, "--prompts", str(prompts), "--out", str(tmp_path / "out" / "p.jsonl")),
        *("--seed", "3", "--max-new-tokens", "16", "--num-samples", "4", *ALL_LENGTHS),
    ]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def finals(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*") if path.is_file())


def refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    for part in parts:
        assert part in outcome.err


def test_by_reward(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    outcome = run(*argv, "--reward", scorer, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    pairs, held = rows(out / "p.jsonl"), rows(out / "p.held_out.jsonl")
    assert (result["num_pairs"], result["num_held_out_pairs"]) == (len(pairs), len(held))
    assert (result["num_prompts"], result["num_answers"]) == (6, 24)
    assert len(pairs) > 4
    assert finals(out) == ["p.README.md", "p.held_out.jsonl", "p.jsonl"]
    for row in pairs + held:
        scores = [
            sum("a" <= letter < "n" for letter in row[name][0]["content"].lower()) for name in ("chosen", "rejected")
        ]
        assert [row["score_chosen"], row["score_rejected"]] == scores
        assert scores[0] - scores[1] >= result["min_margin"] > 0
    read = [read_pairs([out / name]).pairs for name in ("p.jsonl", "p.held_out.jsonl")]
    assert {prompt_key(pair) for pair in read[0]} & {prompt_key(pair) for pair in read[1]} == set()
    assert "The chosen answer is the longer one in" in outcome.err
    assert "tokens a second" in outcome.err
    assert "How many letters are before n." in (out / "p.README.md").read_text()


def test_several_rewards_are_added_with_their_multipliers(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    twice = scorer.replace(":early", ":same")
    assert run(*argv, "--reward", f"{scorer}:-2", "--reward", f"one={twice}:10").code == 0
    for row in rows(out / "p.jsonl"):
        text = row["chosen"][0]["content"].lower()
        assert row["score_chosen"] == 10 - 2 * sum("a" <= letter < "n" for letter in text)


def test_by_two_sentences(argv: list[str], run: Run, out: Path, tmp_path: Path) -> None:
    sentence = tmp_path / "kind.txt"
    sentence.write_text("Be kind.\n")
    outcome = run(*argv, "--towards", f"@{sentence}", "--away", "Be rude.", "--num-samples", "4", "--eval-share", "0")
    assert outcome.code == 0, outcome.err
    assert finals(out) == ["p.README.md", "p.jsonl"]
    sampled = {json.dumps(row["prompt"]): row for row in rows(out / "p.work" / "samples.jsonl")}
    found = rows(out / "p.jsonl")
    assert len(found) > 6
    for row in found:
        answers = sampled[json.dumps(row["prompt"])]
        assert row["chosen"][0]["content"] in answers["towards"]
        assert row["rejected"][0]["content"] in answers["away"]
        assert set(row) == {"prompt", "chosen", "rejected"}
    text = (out / "p.README.md").read_text()
    assert "“Be kind.”" in text
    assert "“Be rude.”" in text
    assert "system message" in text


def test_a_template_without_a_system_message(argv: list[str], run: Run, tiny: Tiny, out: Path, tmp_path: Path) -> None:
    """The sentence begins the user's message, and both the command and the card say so."""
    model = Path(shutil.copytree(tiny.model, tmp_path / "without_system"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages", "in messages if m['role'] != 'system'")
    tokenizer.save_pretrained(model)
    argv[argv.index("--model") + 1] = str(model)
    outcome = run(*argv, *SENTENCES)
    assert outcome.code == 0, outcome.err
    assert "the chat template has no system message" in outcome.err
    assert "The sentence stood in the user's message" in (out / "p.README.md").read_text()
    assert rows(out / "p.work" / "samples.jsonl")[0]["prompt"] == [{"role": "user", "content": "a?"}]


def test_answers_under_a_sentence_are_those_of_generate_with_it(
    argv: list[str], run: Run, tiny: Tiny, out: Path, tmp_path: Path
) -> None:
    assert run(*argv, *SENTENCES).code == 0
    path = tmp_path / "with.jsonl"
    sentences = ["Be kind."] * 2 + ["Be rude."] * 2
    path.write_text("".join(json.dumps({"prompt": "a?", "system": sentence}) + "\n" for sentence in sentences))
    generated = run(
        *("generate", "--model", tiny.model, "--prompts", str(path), "--max-new-tokens", "16", "--seed", "3", "--json")
    )
    texts = [json.loads(line)["text"].strip() for line in generated.out.splitlines()]
    first = rows(out / "p.work" / "samples.jsonl")[0]
    assert first["towards"] + first["away"] == texts


def test_by_a_judge_in_both_orders(argv: list[str], run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with fake_judge(prefers(len)) as fake:
        outcome = run(*argv, "--judge", "openai:m", "--base-url", fake.base_url, "--eval-share", "0")
        assert outcome.code == 0, outcome.err
        num_asked = len(fake.requests)
        assert run(*argv, "--judge", "openai:m", "--base-url", fake.base_url, "--eval-share", "0", "--resume").code == 0
        assert len(fake.requests) == num_asked
    found = rows(out / "p.jsonl")
    assert num_asked % 2 == 0
    assert 0 < len(found) <= num_asked // 2
    assert all(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in found)
    assert all(b"sk-secret" not in content for content in written(out).values())


def test_a_judge_that_likes_the_first_answer_is_refused(argv: list[str], run: Run, out: Path) -> None:
    pytest.importorskip("openai")
    with fake_judge(in_turn([], Reply("[[A]]"))) as fake:
        outcome = run(*argv, "--judge", "openai:m", "--base-url", fake.base_url)
    refused(outcome, "preferred the other answer as soon as the order was turned", "--judge", "--resume")
    assert finals(out) == []


def test_by_a_scorer_as_a_judge(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    outcome = run(*argv, "--judge", f"scorer:{scorer}", "--lower-is-better")
    assert outcome.code == 0, outcome.err
    for row in rows(out / "p.jsonl"):
        low, high = (sum("a" <= x < "n" for x in row[name][0]["content"].lower()) for name in ("chosen", "rejected"))
        assert low < high


def test_raw_texts_give_pairs_of_text(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    assert run(*argv, "--reward", scorer, "--raw").code == 0
    row = rows(out / "p.jsonl")[0]
    assert all(isinstance(row[name], str) for name in ("prompt", "chosen", "rejected"))
    assert read_pairs([out / "p.jsonl"]).pairs[0].chosen == row["chosen"]


def test_a_prompt_that_stands_twice_is_asked_once(
    argv: list[str], run: Run, scorer: str, prompts: Path, out: Path
) -> None:
    with prompts.open("a") as stream:
        stream.write(json.dumps(PROMPTS[0]) + "\n")
    assert run(*argv, "--reward", scorer).code == 0
    assert len(rows(out / "p.work" / "samples.jsonl")) == 6
    assert "| prompts left out: in the file before | 1 |" in (out / "p.README.md").read_text()


def torn(path: Path, num_lines: int) -> bytes:
    lines = path.read_bytes().splitlines(keepends=True)
    return b"".join(lines[:num_lines]) + lines[num_lines][:11]


def test_a_run_that_was_cut_ends_with_the_same_bytes(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    command = [*argv, "--reward", scorer]
    assert run(*command).code == 0
    whole = written(out)
    samples = out / "p.work" / "samples.jsonl"
    (rewards,) = (out / "p.work").glob("rewards-*")
    for num_samples, num_rewards in ((0, None), (4, None), (6, 3)):
        for name in finals(out):
            (out / name).unlink()
        if num_samples < 6:
            samples.write_bytes(torn(samples, num_samples))
        if num_rewards is None:
            rewards.unlink()
        else:
            rewards.write_bytes(torn(rewards, num_rewards))
        refused(run(*command), "already exists", "--resume")
        again = run(*command, "--resume")
        assert again.code == 0, again.err
        assert written(out) == whole
        assert ("loading" in again.err) == (num_samples < 6)


def test_another_reward_or_margin_goes_on_with_the_same_answers(
    argv: list[str], run: Run, scorer: str, out: Path
) -> None:
    assert run(*argv, "--reward", scorer).code == 0
    answers = (out / "p.work" / "samples.jsonl").read_bytes()
    before = rows(out / "p.jsonl")
    other = run(*argv, "--reward", f"{scorer}:-1", "--max-pairs", "1", "--resume")
    assert other.code == 0, other.err
    assert "loading" not in other.err
    assert (out / "p.work" / "samples.jsonl").read_bytes() == answers
    after = rows(out / "p.jsonl")
    assert all(row["score_chosen"] <= 0 for row in after)
    assert len(after) < len(before)
    refused(run(*argv, "--reward", scorer, "--resume", "--temperature", "0.5"), "Cannot resume", "temperature was null")


def test_overwrite_begins_anew(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    assert run(*argv, "--reward", scorer).code == 0
    first = written(out)
    assert run(*argv[:-3], "--reward", scorer, "--seed", "4", "--overwrite", *ALL_LENGTHS).code == 0
    assert written(out).keys() == first.keys()
    assert written(out)["samples.jsonl"] != first["samples.jsonl"]


def test_a_seed_that_was_drawn_is_kept(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    at = argv.index("--seed")
    command = [*argv[:at], *argv[at + 2 :], "--reward", scorer]
    assert run(*command).code == 0
    whole = written(out)
    samples = out / "p.work" / "samples.jsonl"
    samples.write_bytes(torn(samples, 4))
    assert run(*command, "--resume").code == 0
    assert written(out) == whole


@pytest.mark.slow
def test_kill_9_and_ctrl_c_are_continued_to_the_same_bytes(
    argv: list[str], run: Run, scorer: str, out: Path, prompts: Path
) -> None:
    prompts.write_text("".join(json.dumps({"prompt": f"{number}?"}) + "\n" for number in range(30)))
    command = [*argv, "--reward", scorer, "--batch-size", "4", "--num-samples", "4"]
    assert run(*command).code == 0
    whole = written(out)
    for number in (signal.SIGKILL, signal.SIGINT):
        for path in sorted(out.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab.cli.main", *command], stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        samples = out / "p.work" / "samples.jsonl"
        while not samples.exists() or samples.read_bytes().count(b"\n") < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 130)
        assert number == signal.SIGKILL or "Go on with:" in err
        assert finals(out) == []
        again = run(*command, "--resume")
        assert again.code == 0, again.err
        assert written(out) == whole


def test_a_disk_that_fills_up_costs_no_line(
    argv: list[str], run: Run, scorer: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*argv, "--reward", scorer]
    assert run(*command).code == 0
    whole = written(out)
    real, num_left = sampling.append, 3

    def full(stream: Any, items: Any) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            stream.write('{"prompt": "half a li')
            stream.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        real(stream, items)

    with monkeypatch.context() as patch:
        patch.setattr(sampling, "append", full)
        outcome = run(*command, "--overwrite")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert "--resume continues it" in outcome.err
    assert finals(out) == []
    assert run(*command, "--resume").code == 0
    assert written(out) == whole


def test_a_reward_that_gives_every_answer_the_same(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    outcome = run(*argv, "--reward", scorer.replace(":early", ":same"))
    refused(outcome, "The reward is 1 for each of 24 answers to 6 prompts", "--reward", "--resume")
    assert finals(out) == []
    assert run(*argv, "--reward", scorer, "--resume").code == 0


def test_a_reward_that_fails_names_the_prompt(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    refused(run(*argv, "--reward", scorer.replace(":early", ":fails")), "an answer to prompt 2")
    assert finals(out) == []


def test_prompts_without_a_pair_say_what_to_change(argv: list[str], run: Run, scorer: str, out: Path) -> None:
    outcome = run(*argv, "--reward", scorer, "--min-margin", "1000")
    refused(outcome, "24 answers to 6 prompts", "too small a margin", "--num-samples", "--min-margin")
    assert finals(out) == []
    # Bytes at random hold no whole sentence.
    short = run(*argv[:-3], "--reward", scorer, "--max-new-tokens", "3", "--overwrite")
    refused(short, "whole sentence", "--max-new-tokens", "--no-whole-sentences")


def test_answers_that_ran_into_the_limit_are_left_out_where_asked(
    argv: list[str], run: Run, scorer: str, out: Path
) -> None:
    """A model of random bytes hardly ever ends an answer."""
    outcome = run(*argv, "--reward", scorer)
    assert outcome.code == 0, outcome.err
    assert "answers ran into the limit" in outcome.err
    num_cut = sum(len(row["cut"]) for row in rows(out / "p.work" / "samples.jsonl"))
    assert num_cut > 12
    outcome = run(*argv, "--reward", scorer, "--no-cut-answers", "--resume")
    if outcome.code:
        refused(outcome, f"{num_cut} answers: ran into the limit", "--no-cut-answers", "--max-new-tokens")
    else:
        assert f"{num_cut} answers: ran into the limit" in outcome.err
        assert "are cut back" not in outcome.err


def test_a_sentence_longer_than_the_context(argv: list[str], run: Run, out: Path) -> None:
    outcome = run(*argv, "--towards", "kind " * 40, "--away", "rude")
    refused(outcome, "line 1", "With the sentence of --towards before it", "shorten the sentence")
    assert not out.exists()


WRONG = {
    "no way": ((), "Nothing tells two answers apart"),
    "two ways": (("--reward", "sentiment", *SENTENCES), "--reward and --towards both tell answers apart"),
    "one sentence": (("--towards", "Be kind."), "--away is missing"),
    "the other alone": (("--away", "Be kind."), "--towards is missing"),
    "an empty sentence": (("--towards", " ", "--away", "Be rude."), "--towards is empty"),
    "equal sentences": (("--towards", "Be kind.", "--away", "Be kind. "), "the same sentence"),
    "no such file": (("--towards", "@nowhere.txt", "--away", "Be rude."), "No such file"),
    "an odd number": ((*SENTENCES, "--num-samples", "5"), "--num-samples is 5"),
    "a margin of sentences": ((*SENTENCES, "--min-margin", "1"), "--towards gives none"),
    "a cost without a judge": ((*SENTENCES, "--lower-is-better"), "--lower-is-better is of a judge"),
    "two rewards of one name": (
        ("--reward", "sentiment", "--reward", "sentiment:2"),
        "Two rewards are named 'sentiment'",
    ),
    "an unknown reward": (("--reward", "sentimint"), "Did you mean 'sentiment'"),
    "an unknown judge": (("--judge", "sentiment"), "is not a judge"),
    "an address of no endpoint": (
        ("--judge", "scorer:sentiment", "--base-url", "http://x/v1"),
        "--base-url is of a judge",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_it_refuses_before_anything_is_loaded(what: str, argv: list[str], run: Run, out: Path) -> None:
    given, message = WRONG[what]
    outcome = run(*argv, *given)
    refused(outcome, message)
    assert "loading" not in outcome.err
    assert not out.exists()


def test_it_refuses_a_place_that_is_no_file_of_lines(argv: list[str], run: Run, tmp_path: Path) -> None:
    at = argv.index("--out") + 1
    for name in ("pairs", "pairs.json", "."):
        refused(run(*argv[:at], str(tmp_path / name), *argv[at + 1 :], *SENTENCES), "--out", ".jsonl")


@pytest.fixture(autouse=True)
def _nothing_stays_half_written(tmp_path: Path) -> Iterator[None]:
    yield
    assert list(tmp_path.rglob(".*.tmp")) == []
