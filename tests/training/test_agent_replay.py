"""The ring: chains hold around its end, memory does not grow, and what is on the disk brings it back exactly."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchrl")

from trimtab.errors import CheckpointError
from trimtab.training.agent.replay import Replay

LENGTHS = (3, 7, 1, 5, 9, 2, 2, 6, 4, 8)


def episode(number: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States that say which episode and which of its transitions they are."""
    at = torch.arange(length, dtype=torch.float32)
    return torch.stack([torch.full((length,), float(number)), at], -1), at.long() % 2, at + 100 * number


def filled(capacity: int, count: int, dtype: torch.dtype = torch.float32) -> Replay:
    replay = Replay(capacity, dtype)
    for number in range(count):
        replay.append(*episode(number, LENGTHS[number % len(LENGTHS)]))
    return replay


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6, 7, 8, 20])
def test_the_next_state_is_the_next_of_the_same_episode_however_the_ring_wraps(count: int) -> None:
    replay = filled(16, count)
    batch = replay.sample(600, rng())
    number, at = batch["observation"].unbind(-1)
    assert torch.equal(batch["next", "reward"][:, 0], at + 100 * number)
    assert torch.equal(batch["action"], at.long() % 2)
    lengths = torch.tensor([LENGTHS[int(n) % len(LENGTHS)] for n in number])
    end = batch["next", "terminated"][:, 0]
    assert torch.equal(end, at == lengths - 1)
    assert torch.equal(end, batch["next", "done"][:, 0])
    following = batch["next", "observation"]
    assert torch.equal(following[~end, 0], number[~end])
    assert torch.equal(following[~end, 1], at[~end] + 1)
    assert bool(torch.isfinite(following).all())


def test_what_is_kept_is_the_newest_and_every_one_is_drawn() -> None:
    replay = filled(16, 10)
    written = [(n, t) for n, length in enumerate(LENGTHS) for t in range(length)]
    drawn = replay.sample(2000, rng())["observation"].long().tolist()
    assert {tuple(pair) for pair in drawn} == set(written[-16:])
    assert (len(replay), replay.num_written) == (16, sum(LENGTHS))


def test_an_episode_longer_than_the_ring_loses_its_beginning() -> None:
    replay = Replay(4)
    replay.append(*episode(0, 10))
    batch = replay.sample(200, rng())
    assert sorted(set(batch["observation"][:, 1].tolist())) == [6, 7, 8, 9]
    end = batch["next", "terminated"][:, 0]
    assert torch.equal(batch["next", "observation"][~end, 1], batch["observation"][~end, 1] + 1)


def test_the_generator_decides_what_is_drawn() -> None:
    replay = filled(64, 10)
    first, again, other = (replay.sample(32, rng(seed))["observation"] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_precision_is_what_is_stored_and_float32_what_is_drawn() -> None:
    replay = Replay(8, torch.float16)
    states = torch.tensor([[1.0001, 0.0], [0.0, 1.0]])
    replay.append(states, torch.tensor([0, 1]), torch.tensor([0.1, 0.2]))
    batch = replay.sample(20, rng())
    assert batch["observation"].dtype == torch.float32
    assert batch["observation"].max() == 1.0, "1.0001 is 1 in half precision"
    assert {round(value, 3) for value in batch["next", "reward"][:, 0].tolist()} == {0.1, 0.2}


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_the_ring_comes_back_as_it_was(every: int, tmp_path: Path) -> None:
    """Saved every so many episodes, restored, filled further: the same draws as one that was left alone."""
    replay, since, files = Replay(16), 0, {}
    for number in range(10):
        replay.append(*episode(number, LENGTHS[number]))
        if (number + 1) % every == 0:
            files, since = replay.save(tmp_path, since), replay.num_written
            replay.drop(tmp_path)
            restored = Replay(16)
            restored.load(tmp_path, files, since)
            assert_same(replay, restored)
            restored.append(*episode(77, 5))
            expected = filled(16, number + 1)
            expected.append(*episode(77, 5))
            assert_same(expected, restored)


def assert_same(one: Replay, other: Replay) -> None:
    assert (len(one), one.num_written) == (len(other), other.num_written)
    left, right = one.sample(200, rng(3)), other.sample(200, rng(3))
    for key in ("observation", "action", ("next", "reward"), ("next", "observation"), ("next", "terminated")):
        assert torch.equal(left[key], right[key]), key


def test_the_disk_holds_no_more_than_the_ring_and_a_save(tmp_path: Path) -> None:
    replay, since = Replay(16), 0
    for number in range(40):
        replay.append(*episode(number, 4))
        files, since = replay.save(tmp_path, since), replay.num_written
        replay.drop(tmp_path)
        assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 4, "sixteen transitions, four in each file"


def test_what_was_written_after_the_checkpoint_is_removed(tmp_path: Path) -> None:
    replay = filled(64, 2)
    files, since = replay.save(tmp_path, 0), replay.num_written
    replay.append(*episode(2, 5))
    replay.save(tmp_path, since)
    restored = Replay(64)
    restored.load(tmp_path, files, since)
    assert_same(filled(64, 2), restored)
    assert [path.name for path in tmp_path.iterdir()] == list(files)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    replay = filled(64, 3)
    files = replay.save(tmp_path, 0)
    (path,) = tmp_path.iterdir()
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"transitions-000000000000-000000000011.* --overwrite"):
        Replay(64).load(tmp_path, files, replay.num_written)


def test_torchrl_keeps_silent(capfd: pytest.CaptureFixture[str]) -> None:
    filled(16, 2).sample(4, rng())
    assert capfd.readouterr() == ("", "")


def test_torchrls_logger_is_left_as_it_was_and_says_nothing() -> None:
    """It logs of its storage on standard output, which is the command line's."""
    logger = logging.getLogger("torchrl")
    level, heard = logger.level, logging.handlers.BufferingHandler(10**6)
    logger.addHandler(heard)
    logger.setLevel(logging.DEBUG)
    try:
        filled(16, 10).sample(8, rng())
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(level)
        logger.removeHandler(heard)
    assert [record.getMessage() for record in heard.buffer] == []
