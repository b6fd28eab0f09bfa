"""`trimtab train agent` as a user meets it: streams, exit codes, refusals."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torchrl")

from trimtab.cli.train.rewards import parse_reward
from trimtab.errors import OptionError
from trimtab.storage.loading import load_guide

from .conftest import Run, Tiny, spawn

SMALL = (
    *("--episodes", "8", "--rollout-batch", "4", "--max-new-tokens", "6", "--hidden-dim", "8", "--batch-size", "16"),
    *("--warmup-batches", "1", "--updates-per-episode", "2", "--logging-episodes", "4", "--baseline", "base"),
)


def length(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
    """How long the answer is."""
    return [float(len(text)) for text in texts]


def never(prompts: Sequence[object], texts: Sequence[str]) -> list[float]:
    return [math.nan] * len(texts)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(5)), encoding="utf-8")
    return str(path)


def command(
    tiny: Tiny, prompts: str, out: Path, *more: str, reward: str = f"length={__name__}:length:0.5"
) -> tuple[str, ...]:
    told = ("train", "agent", "--model", tiny.model, "--prompts", prompts, "--reward", reward, "--out", str(out))
    return (*told, *SMALL, *more)


def test_a_run_prints_one_json_object_and_its_curve_on_the_other_stream(
    run: Run, tiny: Tiny, prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "agent"
    outcome = run(*command(tiny, prompts, out, "--json"))
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["out"], result["num_episodes"], result["num_dropped"]) == (str(out), 8, 0)
    assert result["num_updates"] > 0
    assert result["reward"] == result["metrics"]["reward"] > 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("episode ")]
    assert len(lines) == 2
    assert all(word in lines[-1] for word in ("8/8", "reward", "acceptance", "entropy", "KL", "buffer", "episodes/s"))
    card = json.loads((out / "guide.json").read_text())
    assert card["base"]["hidden_size"] == 32
    assert card["data"]["files"] == ["prompts.jsonl"]
    assert card["rewards"] == [{"name": "length", "source": f"{__name__}:length", "multiplier": 0.5}]
    assert load_guide(out).weight == 0.5


def test_without_json_nothing_goes_to_standard_output(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    outcome = run(*command(tiny, prompts, tmp_path / "agent", "--raw", "--no-postback", "--state-dtype", "float16"))
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert "5 prompts to train on" in outcome.err
    assert "at the end of 8 episodes" in outcome.err
    told = json.loads((tmp_path / "agent" / "guide.json").read_text())
    assert (told["hyperparameters"]["postback"], told["hyperparameters"]["state_dtype"]) == (False, "float16")
    assert told["data"]["template"] == "raw"


def test_the_agent_steers(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "agent"
    assert run(*command(tiny, prompts, out)).code == 0
    asked = ("generate", "--model", tiny.model, "--prompt", "say 3", "--max-new-tokens", "4", "--seed", "1")
    outcome = run(*asked, "--guide", f"agent={out}")
    assert outcome.code == 0, outcome.err


def test_every_reward_ends_up_in_the_total(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    more = ("--reward", f"cost={__name__}:length:-0.25", "--json")
    outcome = run(*command(tiny, prompts, tmp_path / "agent", *more))
    assert outcome.code == 0, outcome.err
    metrics = json.loads(outcome.out)["metrics"]
    assert metrics["reward"] == pytest.approx(0.25 * metrics["reward_length"])


FORMS = {
    "mood=sentiment": ("sentiment", 1.0),
    "mood=sentiment:-2": ("sentiment", -2.0),
    "mood=models/rm:0.5": ("models/rm", 0.5),
    "mood=package.module:function": ("package.module:function", 1.0),
    "mood=package.module:function:2e-1": ("package.module:function", 0.2),
    "mood=owner/name:3": ("owner/name", 3.0),
}


@pytest.mark.parametrize("text", FORMS)
def test_a_reward_is_a_source_and_a_multiplier(text: str) -> None:
    reward = parse_reward(text)
    assert (reward.name, reward.source, reward.multiplier) == ("mood", *FORMS[text])


def test_a_directory_may_hold_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rm:2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (parse_reward("a=rm:2").source, parse_reward("a=rm:2").multiplier) == ("rm:2", 1.0)


def test_a_function_of_ones_own_may_be_named_by_its_file() -> None:
    found = [parse_reward(f"a=rewards/mine.py:length{tail}") for tail in ("", ":-0.5")]
    assert [(one.source, one.multiplier) for one in found] == [
        ("rewards/mine.py:length", 1.0),
        ("rewards/mine.py:length", -0.5),
    ]


BAD_FORMS = {
    "sentiment": "is not a reward. Accepted: NAME=SOURCE",
    "=sentiment": "is not a reward",
    "mood=": "is not a reward",
    "mood=sentiment:high": "The multiplier 'high' of reward mood is not a number",
    "mood=models/rm:two": "The multiplier 'two'",
    "mood=package:function:two": "The multiplier 'two'",
    "mood=sentiment:nan": "The multiplier of reward mood is nan",
    "mood=sentiment:0": "other than 0",
    "mood=:2": "names no source",
    "a mood=sentiment": "not a name for a reward",
}


@pytest.mark.parametrize("text", BAD_FORMS)
def test_what_is_no_reward_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(BAD_FORMS[text])):
        parse_reward(text)


TOLD = ("train", "agent", "--model", "m", "--prompts", "p.jsonl", "--out", "o")

REFUSED = {
    "no reward": (TOLD, "required: --reward"),
    "no prompts": (("train", "agent", "--model", "m", "--out", "o", "--reward", "a=sentiment"), "required: --prompts"),
    "a reward without a name": ((*TOLD, "--reward", "sentiment"), "is not a reward"),
    "a multiplier that is no number": ((*TOLD, "--reward", "a=sentiment:x"), "is not a number"),
    "a name used twice": ((*TOLD, "--reward", "a=sentiment", "--reward", "a=offence"), "Two rewards are named 'a'"),
    "no episodes": ((*TOLD, "--reward", "a=sentiment", "--episodes", "0"), "whole number of at least 1"),
    "a buffer that never fills": ((*TOLD, "--reward", "a=sentiment", "--buffer-size", "9"), "would never begin"),
    "a baseline by another name": ((*TOLD, "--reward", "a=sentiment", "--baseline", "sft"), "'sft' is not accepted"),
    "a missing file": ((*TOLD, "--reward", "a=sentiment"), "there is no such file"),
    "an unknown option": ((*TOLD, "--reward", "a=sentiment", "--episode", "3"), "Did you mean '--episodes'?"),
    "resume and overwrite": ((*TOLD, "--reward", "a=sentiment", "--resume", "--overwrite"), "not allowed with"),
    "fewer than no workers": ((*TOLD, "--reward", "a=sentiment", "--workers", "-1"), "at least 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_way_out(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv, problem = REFUSED[name]
    outcome = run(*argv)
    assert (outcome.code, outcome.out) == (2, "")
    assert problem in outcome.err
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_an_empty_or_unreadable_prompt_file_is_refused(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    path, out = Path(prompts), tmp_path / "agent"
    path.write_text("")
    outcome = run(*command(tiny, prompts, out))
    assert (outcome.code, "the file is empty" in outcome.err) == (2, True)
    path.write_text('{"prompt": "say 1"}\n{cut\n')
    outcome = run(*command(tiny, prompts, out))
    assert (outcome.code, f"{prompts}, line 2: not JSON" in outcome.err) == (2, True)
    assert not out.exists()
    assert run(*command(tiny, prompts, out, "--skip-bad-lines")).code == 0


def test_rewards_that_are_never_numbers_end_in_a_sentence(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    outcome = run(*command(tiny, prompts, tmp_path / "agent", reward=f"never={__name__}:never"))
    assert (outcome.code, outcome.out) == (2, "")
    assert "None of 8 episodes left anything to learn from: 8 had no finite reward" in outcome.err


def test_a_model_without_a_chat_template_takes_no_messages(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    told = command(tiny, prompts, tmp_path / "agent", "--chat")
    outcome = run(*(tiny.plain if word == tiny.model else word for word in told))
    assert outcome.code == 2
    assert "no chat template" in outcome.err


def test_in_a_process_of_its_own_standard_output_holds_the_json_alone(tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    outcome = spawn(command(tiny, prompts, tmp_path / "agent", "--json", reward="mood=sentiment"))
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["num_episodes"] == 8


def test_the_documented_defaults_are_the_parsers(repository: Path) -> None:
    from trimtab.cli.main import build_parser

    page = (repository / "docs" / "reference" / "flags.md").read_text(encoding="utf-8")
    section = page.split("## Settings of agents")[1].split("\n## ")[0]
    written = dict(re.findall(r"^\| `(--[a-z-]+) [NX]` \| ([\d.e-]+) \|", section, flags=re.MULTILINE))
    told = build_parser().parse_args([*TOLD, "--reward", "a=sentiment"])
    assert len(written) > 20
    assert {flag: float(value) for flag, value in written.items()} == {
        flag: float(getattr(told, flag[2:].replace("-", "_"))) for flag in written
    }
