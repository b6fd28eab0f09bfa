"""The first signal ends a training at its current step with a whole checkpoint, from which it goes on exactly."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import safetensors.torch

from trimtab.core import Prompt
from trimtab.training.arm.train import ArmSettings, train_arm
from trimtab.training.dpo.train import DpoSettings, train_dpo
from trimtab.training.parm.train import ParmSettings, train_parm
from trimtab.training.reward.train import RewardSettings, train_reward
from trimtab.training.rl.train import AgentReward, RLSettings, train_rl
from trimtab.training.run import checkpoints
from trimtab.training.run.interruption import Interrupted, interruptible
from trimtab.training.run.settings import TrainProgress

from .conftest import vowel_pairs

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _default_handlers() -> Any:
    """Those that a command starts with, whatever runs the tests has put there; and nobody leaves others behind."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    left = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert left == {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_a_flag_and_the_second_ends_at_once(number: signal.Signals) -> None:
    with interruptible("step") as interruption:
        assert not interruption.asked
        signal.raise_signal(number)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_comes_of_the_first_signal_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="trimtab"), interruptible("round"):
        signal.raise_signal(signal.SIGINT)
    assert "after this round" in caplog.text
    assert "once more" in caplog.text


def test_nothing_is_said_where_nobody_interrupts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="trimtab"), interruptible("step"):
        pass
    assert caplog.text == ""


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As of a command in the background of a shell, or under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible("step") as interruption:
            signal.raise_signal(signal.SIGINT)
            assert not interruption.asked
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_handlers_that_were_there_come_back_after_an_error() -> None:
    heard: list[int] = []

    def own(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(ZeroDivisionError), interruptible("step"):
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_outside_the_main_thread_no_handler_is_touched() -> None:
    found: list[Any] = []

    def inside() -> None:
        with interruptible("step") as interruption:
            found.extend([signal.getsignal(signal.SIGINT), interruption.asked])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler, False]


# Every kind of training, cut at every step. Lines of the curve come every third step, so most cuts are inside a window.

PAIRS, HELD = vowel_pairs(32), vowel_pairs(8, seed=1)
PROMPTS: list[Prompt] = [f"say {number}" for number in range(8)]
SHARED: dict[str, Any] = {
    "learning_rate": 0.01,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "max_length": 64,
    "logging_steps": 3,
    "save_steps": 0,
    "save_minutes": 0,
    "lora_dropout": 0.1,
}
"""Four steps; the dropout makes the random state matter, and the last window has a single step."""


def odd(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """NaN for some answers, so that there is something to count."""
    return [float("nan") if len(text) == 3 else sum(letter in "aeiou" for letter in text) for text in texts]


def arm(model: str, out: Path, **options: Any) -> None:
    settings = ArmSettings(**{**SHARED, "beta": 0.5, **options.pop("changes", {})})
    train_arm(model, PAIRS, eval_pairs=HELD, out=out, settings=settings, **options)


def reward(model: str, out: Path, **options: Any) -> None:
    settings = RewardSettings(**{**SHARED, **options.pop("changes", {})})
    train_reward(model, PAIRS, eval_pairs=HELD, out=out, settings=settings, **options)


def dpo(model: str, out: Path, **options: Any) -> None:
    settings = DpoSettings(**{**SHARED, **options.pop("changes", {})})
    train_dpo(model, PAIRS, eval_pairs=HELD, out=out, settings=settings, **options)


def parm(model: str, out: Path, **options: Any) -> None:
    turned = [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
    settings = ParmSettings(**{**SHARED, "epochs": 1, **options.pop("changes", {})})
    train_parm(model, {"vowels": PAIRS, "others": turned}, out=out, settings=settings, **options)


def rl(model: str, out: Path, **options: Any) -> None:
    changes = {"num_generations": 4, "batch_size": 8, "max_new_tokens": 5, "epochs": 2, **options.pop("changes", {})}
    own = {name: value for name, value in SHARED.items() if name != "max_length"}
    settings = RLSettings(**{**own, **changes})
    train_rl(model, PROMPTS, [AgentReward("odd", odd)], out=out, settings=settings, **options)


Train = Callable[..., None]
METHODS: dict[str, Train] = {"arm": arm, "reward": reward, "dpo": dpo, "parm": parm, "rl": rl}
NUM_STEPS = 4


def signal_at(step: int, number: int = signal.SIGINT) -> Callable[[TrainProgress], None]:
    def progress(at: TrainProgress) -> None:
        if at.step == step and not at.metrics:
            signal.raise_signal(number)

    return progress


def results(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Weights, the curve, and the metrics of the card, without what depends on the clock."""
    (path,) = out.glob("*.safetensors")

    def steady(line: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in line.items() if not (key.endswith("_per_s") or "second" in key)}

    lines = [steady(json.loads(line)) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((out / "guide.json").read_text())["metrics"]
    return dict(safetensors.torch.load_file(path)), lines, steady(metrics)


def assert_same(one: Path, other: Path) -> None:
    (left, lines, metrics), (right, other_lines, other_metrics) = results(one), results(other)
    assert lines == other_lines
    assert metrics == other_metrics
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What each kind of training gives when it is left alone."""
    root, done = tmp_path_factory.mktemp("whole"), set()

    def directory(method: str) -> Path:
        if method not in done:
            METHODS[method](tiny, root / method)
            done.add(method)
        return root / method

    return directory


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize("method", METHODS)
def test_a_training_cut_at_any_step_resumes_to_the_same_losses(
    method: str, step: int, whole: Callable[[str], Path], tiny: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted) as caught:
        METHODS[method](tiny, out, progress=signal_at(step, SIGNALS[step % 2]))
    assert (caught.value.step, caught.value.num_steps) == (step, NUM_STEPS)
    assert f"after step {step} of {NUM_STEPS}" in str(caught.value)
    assert not out.exists()
    good = checkpoints.last_good(checkpoints.workspace_of(out))
    assert checkpoints.step_of(good) == step
    METHODS[method](tiny, out, resume=True)
    assert_same(out, whole(method))
    assert not checkpoints.workspace_of(out).exists()


def test_a_training_may_be_cut_again_and_again(whole: Callable[[str], Path], tiny: str, tmp_path: Path) -> None:
    for step in range(1, NUM_STEPS + 1):
        with pytest.raises(Interrupted):
            arm(tiny, tmp_path / "out", resume=step > 1, progress=signal_at(step))
    arm(tiny, tmp_path / "out", resume=True)
    assert_same(tmp_path / "out", whole("arm"))


def test_the_second_signal_ends_at_once_and_saves_nothing(tiny: str, tmp_path: Path) -> None:
    def twice(at: TrainProgress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        arm(tiny, tmp_path / "out", progress=twice)
    assert not isinstance(caught.value, Interrupted)
    assert checkpoints.last_good(checkpoints.workspace_of(tmp_path / "out")) is None


@pytest.mark.parametrize("save_steps", [0, 2])
def test_a_signal_while_the_result_is_measured_loses_no_step(
    save_steps: int, whole: Callable[[str], Path], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trimtab.training.pairs.meter import PairMeter

    add = PairMeter.add

    def interrupted(self: Any, trainer: Any, *args: Any) -> None:
        add(self, trainer, *args)
        if not trainer.model.training:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(PairMeter, "add", interrupted)
        with pytest.raises(Interrupted) as caught:
            arm(tiny, tmp_path / "out", changes={"save_steps": save_steps})
    assert caught.value.step == NUM_STEPS
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(tmp_path / "out"))) == NUM_STEPS
    arm(tiny, tmp_path / "out", resume=True)
    assert_same(tmp_path / "out", whole("arm"))


def test_an_evaluation_in_the_middle_is_finished_first(tiny: str, tmp_path: Path) -> None:
    """Its line belongs to the curve, and the checkpoint stands after it."""
    changes = {"eval_steps": 2}
    arm(tiny, tmp_path / "whole", changes=changes)

    def progress(at: TrainProgress) -> None:
        if at.step == 2 and "eval_loss" in at.metrics:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        arm(tiny, tmp_path / "out", changes=changes, progress=progress)
    assert caught.value.step == 2
    arm(tiny, tmp_path / "out", changes=changes, resume=True)
    assert_same(tmp_path / "out", tmp_path / "whole")


# Checkpoints by minutes.


def saved_steps(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [int(record.args[0]) for record in caplog.records if record.msg.startswith("checkpoint after step")]  # type: ignore[index,arg-type]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"save_minutes": 1e-9}, [1, 2, 3, 4]),
        ({"save_minutes": 1000}, [4]),
        ({"save_minutes": 1000, "save_steps": 3}, [3, 4]),
        ({"save_minutes": 0, "save_steps": 2}, [2, 4]),
        ({"save_minutes": 0}, []),
    ],
)
def test_checkpoints_come_by_minutes_as_well_as_by_steps(
    changes: dict[str, Any],
    steps: list[int],
    whole: Callable[[str], Path],
    tiny: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trimtab.training.run import cadence

    monkeypatch.setattr(cadence, "MAX_SHARE", 1e9)  # of the time, however little it takes here
    with caplog.at_level(logging.DEBUG, logger="trimtab"):
        arm(tiny, tmp_path / "out", changes=changes)
    assert saved_steps(caplog) == steps
    assert_same(tmp_path / "out", whole("arm"))


def test_a_checkpoint_that_took_long_is_not_written_as_often() -> None:
    from trimtab.training.run.cadence import Clock

    now = 0.0
    clock = Clock(minutes=1.0, time=lambda: now)
    now = 59.0
    assert not clock.is_due
    now = 60.0
    assert clock.is_due
    clock.wrote(began=60.0)
    assert not clock.is_due
    now = 120.0
    assert clock.is_due
    now = 180.0
    clock.wrote(began=120.0)  # it took a minute, so the next one has to wait for twenty
    now = 180.0 + 19 * 60
    assert not clock.is_due
    now = 180.0 + 20 * 60
    assert clock.is_due
    assert not Clock(minutes=0.0, time=lambda: 1e9).is_due


@pytest.mark.parametrize(
    "changes", [{"save_minutes": 7}, {"save_steps": 2}, {"report_to": ()}, {"save_minutes": 1e-9, "save_steps": 1}]
)
def test_a_resumed_run_may_be_saved_at_other_times(
    changes: dict[str, Any], whole: Callable[[str], Path], tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        arm(tiny, tmp_path / "out", progress=signal_at(2))
    arm(tiny, tmp_path / "out", changes=changes, resume=True)
    assert_same(tmp_path / "out", whole("arm"))


def test_a_log_whose_lock_is_held_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A second signal may strike inside a log's handler, whose lock then stays with the main thread."""
    handler = logging.StreamHandler()
    logging.getLogger("trimtab").addHandler(handler)
    caplog.set_level(logging.INFO, "trimtab")
    handler.acquire()
    ended = threading.Event()
    watch = threading.Timer(30, lambda: None if ended.is_set() else os._exit(3))
    watch.start()
    try:
        with interruptible("step") as interruption:
            interruption.handle(signal.SIGINT, None)
        ended.set()
    finally:
        watch.cancel()
        handler.release()
        logging.getLogger("trimtab").removeHandler(handler)
    assert interruption.asked
