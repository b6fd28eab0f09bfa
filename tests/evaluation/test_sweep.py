"""One guide at several strengths on a real decoder: one draw at every strength, exact KL, rewards of their texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from trimtab.core import Prompt
from trimtab.decoding.decoder import Decoder
from trimtab.evaluation.comparison.recipe import MethodSpec, Recipe, Reward
from trimtab.evaluation.comparison.records import Row, read_answers, read_costs
from trimtab.evaluation.comparison.run import Progress, open_run, run_comparison
from trimtab.guides.arm import ARM
from trimtab.methods.method import Guided, Policy, number
from trimtab.models.tabular import TabularModel
from trimtab.storage.scorers import Scorer

PROMPTS = ["ab", "ba", "aab", "bba", "b", "a"]
RECIPE = Recipe(
    "A sweep",
    "tiny",
    {},
    [Reward("c", "c")],
    [MethodSpec("base", "base", (0.0,)), MethodSpec("guide", "policy", (0.0, 1.0, 3.0))],
    decoding={"max_new_tokens": 6, "temperature": 1.0},
    seeds=(3,),
    batch_size=4,
)
SCORER = Scorer("c", "how many c", lambda prompts, texts: [float(text.count("c")) for text in texts])


@pytest.fixture(scope="module")
def reports() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, reports: list[Progress]) -> Path:
    """Letters a, b, c at random, and a guide that likes c (id 3)."""
    base = TabularModel.of_table(torch.zeros(4, 4), eos_ids=(0,))
    likes_c = TabularModel.of_table(torch.tensor([0.0, 0.0, 0.0, 2.0]).expand(4, 4), eos_ids=(0,))

    def build(spec: MethodSpec) -> Policy:
        if spec.method == "base":
            return Guided(Decoder(base), lambda strength: {})
        return Guided(Decoder(base, {"c": ARM(likes_c)}), lambda strength: {"c": number(strength, what="a weight")})

    path = tmp_path_factory.mktemp("sweep") / "run"
    files = open_run(path, RECIPE, {"methods": {}}, {}, resume=False)
    prompts: dict[str, Sequence[Prompt]] = {"test": PROMPTS}
    run_comparison(RECIPE, prompts, {"c": SCORER}, build, files, device=torch.device("cpu"), progress=reports.append)
    return path


@pytest.fixture(scope="module")
def rows(directory: Path) -> list[Row]:
    return read_answers(directory / "answers.jsonl")


def _at(rows: list[Row], method: str, strength: float) -> list[Row]:
    return [row for row in rows if (row.key.method, row.key.strength) == (method, strength)]


def test_reward_and_kl_rise_with_the_strength(rows: list[Row]) -> None:
    at = [_at(rows, "guide", strength) for strength in (0.0, 1.0, 3.0)]
    rewards = [sum(row.rewards["c"] for row in same) for same in at]
    kls = [math.fsum(row.kl or 0.0 for row in same) for same in at]
    assert rewards == sorted(set(rewards))
    assert kls == sorted(set(kls))
    assert kls[0] == 0.0


def test_kl_is_the_closed_form(rows: list[Row]) -> None:
    policy = torch.softmax(torch.tensor([0.0, 0.0, 0.0, 2.0]), 0)
    step = float((policy * (policy * 4).log()).sum())
    same = _at(rows, "guide", 1.0)
    assert [row.kl for row in same] == pytest.approx([step * row.num_tokens for row in same], rel=1e-5)


def test_strength_0_is_the_base(rows: list[Row]) -> None:
    base, guided = _at(rows, "base", 0.0), _at(rows, "guide", 0.0)
    assert [row.token_ids for row in guided] == [row.token_ids for row in base]


def test_rewards_belong_to_their_answers(rows: list[Row]) -> None:
    same = _at(rows, "guide", 1.0)
    assert [row.rewards["c"] for row in same] == [row.text.count("c") for row in same]
    assert len({row.rewards["c"] for row in same}) > 1


def test_speed_counts_every_token(directory: Path, rows: list[Row]) -> None:
    costs = [cost for cost in read_costs(directory / "costs.jsonl") if cost.method == "guide"]
    assert [cost.num_answers for cost in costs] == [4, 2] * 3
    assert sum(cost.num_tokens for cost in costs) == sum(row.num_tokens for row in rows if row.key.method == "guide")


def test_progress_is_told_of_each_answer(directory: Path, reports: list[Progress]) -> None:
    counts = [one.num_done for one in reports if not one.message]
    assert counts == list(range(1, 4 * len(PROMPTS) + 1))
    assert {one.num_answers for one in reports} == {4 * len(PROMPTS)}
