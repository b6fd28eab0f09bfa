"""An agent's training that is cut by a signal after any round ends in the same agent; and it says what it is doing."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchrl")

from trimtab.errors import OptionError
from trimtab.training.agent.outlook import waiting
from trimtab.training.agent.train import AgentSettings, TrainProgress
from trimtab.training.run import checkpoints
from trimtab.training.run.interruption import Interrupted
from trimtab.training.run.pace import duration

from .test_agent import SETTINGS, assert_same, train

ALONE = dataclasses.replace(SETTINGS, logging_episodes=6, save_episodes=0, save_minutes=0)
"""Seven rounds of two episodes; a line of the curve every third, so most cuts are inside a window."""
EPISODES = range(2, 15, 2)


@pytest.fixture(autouse=True)
def _interrupt_key() -> Any:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("agents") / "whole"
    train(out, ALONE)
    return out


def signal_at(episode: int) -> Callable[[TrainProgress], None]:
    def progress(at: TrainProgress) -> None:
        if at.step == episode and not at.metrics:
            signal.raise_signal(signal.SIGINT)

    return progress


def metrics(directory: Path) -> dict[str, Any]:
    found = json.loads((directory / "guide.json").read_text())["metrics"]
    clock = ("share_", "episodes_per", "seconds", "num_resumed")
    return {key: value for key, value in found.items() if not key.startswith(clock)}


@pytest.mark.parametrize("episode", EPISODES)
def test_a_training_cut_after_any_round_resumes_to_the_same_losses(episode: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "agent"
    with pytest.raises(Interrupted, match=f"after episode {episode} of 14") as caught:
        train(out, ALONE, progress=signal_at(episode))
    assert (caught.value.step, caught.value.num_steps) == (episode, 14)
    assert not out.exists()
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(out))) == episode
    train(out, ALONE, resume=True)
    assert_same(out, whole)
    assert metrics(out) == metrics(whole)


def test_a_training_may_be_cut_again_and_again(whole: Path, tmp_path: Path) -> None:
    for episode in EPISODES:
        with pytest.raises(Interrupted):
            train(tmp_path / "agent", ALONE, resume=episode > 2, progress=signal_at(episode))
    train(tmp_path / "agent", ALONE, resume=True)
    assert_same(tmp_path / "agent", whole)


@pytest.mark.parametrize("changes", [{"save_minutes": 1e-9}, {"save_episodes": 5}, {"save_minutes": 0}])
def test_checkpoints_change_nothing_and_a_resumed_run_may_have_others(
    changes: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "agent"
    train(out, dataclasses.replace(ALONE, **changes))
    assert_same(out, whole)
    with pytest.raises(Interrupted):
        train(tmp_path / "b", ALONE, progress=signal_at(4))
    train(tmp_path / "b", dataclasses.replace(ALONE, **changes), resume=True)
    assert_same(tmp_path / "b", whole)


def test_checkpoints_come_by_minutes(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(at: TrainProgress) -> None:
        seen.append(checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(tmp_path / "agent"))))

    from trimtab.training.agent import run as agent_run

    settings = dataclasses.replace(ALONE, save_minutes=1e-9, logging_episodes=14)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_run.cadence, "MAX_SHARE", 1e9)
        train(tmp_path / "agent", settings, progress=look)
    assert seen[:7] == [0, 2, 4, 6, 8, 10, 12]


def test_a_resume_with_another_setting_names_it_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "agent", ALONE, progress=signal_at(4))
    other = dataclasses.replace(ALONE, tau=0.5)
    with pytest.raises(OptionError, match=r"other settings: tau is 0\.5 here and 0\.2 in the run\. Give"):
        train(tmp_path / "agent", other, resume=True)


# What is said on the way.


def test_a_run_says_what_it_waits_for_and_when_the_first_update_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="trimtab"):
        train(tmp_path / "agent", ALONE)
    text = caplog.text
    assert "rolling out 14 episodes to 5 prompts, 2 at a time" in text
    assert "no update before 16 transitions are collected" in text
    assert text.count("the first update") == 1
    assert text.index("no update before") < text.index("the first update")


def test_what_is_waited_for_is_said_in_episodes_and_minutes() -> None:
    line = waiting(collected=1024, needed=65536, num_episodes=16, left=1984, pace=3.75)
    assert line == (
        "no update before 65,536 transitions are collected: there are 1,024 of 16 episodes, so about 1,008 more "
        "episodes, about 63 minutes at this pace"
    )
    assert "nothing would be learnt" in waiting(collected=16, needed=65536, num_episodes=16, left=1984, pace=3.75)
    assert "no episode" in waiting(collected=0, needed=65536, num_episodes=16, left=1984, pace=3.75)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.123, "0.12 seconds"), (12.4, "12 seconds"), (100, "2 minutes"), (7800, "2 hours 10 minutes")],
)
def test_a_time_reads_as_one_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_resuming_where_nothing_was_saved_says_that_it_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = AgentSettings(**{**dataclasses.asdict(ALONE), "episodes": 2})
    with caplog.at_level(logging.INFO, logger="trimtab"):
        train(tmp_path / "agent", settings, resume=True)
    assert caplog.text.count("starts anew") == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="trimtab"):
        train(tmp_path / "agent", settings, resume=True)
    assert "is finished; nothing is left to do" in caplog.text
