"""A comparison's numbers and its page: what is measured, chosen and said, and that it is a page a browser shows."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.evaluation import comparison_fakes as fakes
from tests.evaluation.test_comparison import run
from tests.evaluation.test_report import outside, read
from trimtab.errors import DataError
from trimtab.evaluation.comparison.cost_summary import summarise_cost
from trimtab.evaluation.comparison.recipe import Recipe
from trimtab.evaluation.comparison.recipe_reader import parse_recipe, role_problems
from trimtab.evaluation.comparison.records import Key, Row
from trimtab.evaluation.comparison.summary import (
    MIN_PROMPTS,
    Measured,
    cells_of,
    choose,
    estimate,
    headline,
    measured,
    reward_of,
)
from trimtab.evaluation.report.curves import _MARKERS, SERIES_DARK, SERIES_LIGHT, Series
from trimtab.evaluation.report.files import write_report
from trimtab.evaluation.report.findings import findings
from trimtab.evaluation.report.results import Results, read_results, summary_of
from trimtab.evaluation.report.win_rates import win_rate_sections
from trimtab.methods.method import Strength
from trimtab.statistics import difference_interval, mean_interval

HOSTILE = '<script>alert("x")</script> {{title}} & </p>'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison") / "run"
    run(path, fakes.recipe())
    write_report(path, read_results(path, fakes.METHODS))
    return path


@pytest.fixture(scope="module")
def results(directory: Path) -> Results:
    return read_results(directory, fakes.METHODS)


@pytest.fixture(scope="module")
def page(directory: Path) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pareto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("moarchiving")
    path = tmp_path_factory.mktemp("pareto") / "run"
    run(path, parse_recipe(fakes.pareto_source(), Path(), fakes.METHODS, fakes.check))
    write_report(path, read_results(path, fakes.METHODS))
    return path


def row(method: str, strength: Strength, index: int, good: float, *, split: str = "test", **changes: Any) -> Row:
    fields = {"seed": 0, "kl": 2.0, "kl_kind": "exact", "token_ids": (1, 2), **changes}
    return Row(
        Key(method, strength, fields["seed"], split, index),
        f"Prompt {index}",
        "good",
        fields["token_ids"],
        "eos",
        {"good": good, "brief": -good},
        fields["kl"],
        fields["kl_kind"],
        -3.0,
    )


def rows_of(recipe: Recipe, means: dict[tuple[str, Strength], float], num: int = 12, **changes: Any) -> list[Row]:
    return [
        row(method, strength, index, mean + 0.01 * index, **changes)
        for (method, strength), mean in means.items()
        for index in range(num)
    ]


def test_seeds_are_averaged_before_prompts_are_resampled() -> None:
    recipe = fakes.recipe()
    values = [0.1 * index for index in range(12)]
    rows = [row("base", 0.0, i, value + s, seed=s) for i, value in enumerate(values) for s in (0, 1)]
    (cell,) = cells_of(recipe, rows, "test")
    (one,) = measured(recipe, [cell], {})
    interval = mean_interval([value + 0.5 for value in values])
    assert (one.rewards["good"].value, one.rewards["good"].low) == pytest.approx((interval.value, interval.low))
    assert one.rewards["good"].num_prompts == 12
    assert one.measures["coherence"] is None


def test_the_joint_rate_counts_answers_that_gain_in_every_reward() -> None:
    """One reward bought with the other raises both means and no answer: seed by seed, an answer against the base's."""
    recipe = fakes.recipe()
    base = [row("base", 0.0, index, 0.5, seed=seed) for index in range(12) for seed in (0, 1)]
    base = [replace(one, rewards={"good": 0.0, "brief": 0.0}) for one in base]

    def rated(gain: Callable[[Key], tuple[float, float]]) -> Measured:
        rows = [replace(one, key=one.key._replace(method="aligner", strength=1.0)) for one in base]
        rows = [replace(one, rewards=dict(zip(("good", "brief"), gain(one.key), strict=True))) for one in rows]
        _, found = measured(recipe, cells_of(recipe, base + rows, "test"), {})
        return found

    bought = rated(lambda key: (3.0, -1.0) if key.seed else (-1.0, 3.0))
    assert {name: gain.value for name, gain in bought.gains.items()} == {"good": 1.0, "brief": 1.0}
    assert bought.joint is not None
    assert bought.joint.value == 0.0
    for gain, value in ((lambda key: (1.0, 1.0), 1.0), (lambda key: (1.0, 0.0), 0.0)):
        assert (joint := rated(gain).joint) is not None
        assert joint.value == value
    half = rated(lambda key: (1.0, 1.0) if key.seed else (-1.0, 1.0)).joint
    assert half is not None
    assert (half.value, half.num_prompts) == (0.5, 12)
    (alone,) = measured(recipe, cells_of(recipe, base, "test"), {})
    assert alone.joint is None


def test_the_joint_rate_stands_in_table_and_json(directory: Path, results: Results, page: str) -> None:
    assert "better in both" in page
    rates = [line["joint_rate"] for line in summary_of(results)["methods"]]  # type: ignore[attr-defined, index]
    assert rates[0] is None
    assert all(0.0 <= rate <= 1.0 for rate in rates[1:])
    assert replace(results.recipe, rewards=results.recipe.rewards[:1], objectives=()).joint == ()


def test_gains_are_paired_with_the_base_on_shared_prompts() -> None:
    recipe = fakes.recipe()
    ours = [0.3, 0.9, 0.1, 0.5, 0.4, 0.8, 0.7, 0.2, 0.6, 0.45]
    theirs = [0.2, 0.5, 0.1, 0.1, 0.3, 0.6, 0.2, 0.2, 0.1, 0.4, 9.0, 9.0]
    rows = [row("aligner", 1.0, i, value) for i, value in enumerate(ours)]
    rows += [row("base", 0.0, i, value) for i, value in enumerate(theirs)]
    _, one = measured(recipe, cells_of(recipe, rows, "test"), {})
    expected = difference_interval(ours, theirs[:10])
    gain = one.gains["good"]
    assert (gain.value, gain.low, gain.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert one.gains["brief"].value == pytest.approx(-expected.value)
    base = measured(recipe, cells_of(recipe, rows, "test"), {})[0]
    assert base.gains == {}


def test_too_few_prompts_have_a_mean_and_no_interval() -> None:
    few = estimate([0.0, 1.0, 0.5])
    assert (few.value, few.low, few.high, few.num_prompts) == (0.5, None, None, 3)
    assert not few.clear_of_zero
    assert estimate([0.1 * index for index in range(MIN_PROMPTS)]).low is not None


def test_an_unknown_kl_stays_unknown() -> None:
    recipe = fakes.recipe()
    rows = [row("aligner", 1.0, i, 0.5, kl=None if i == 3 else 1.0, kl_kind="unknown") for i in range(12)]
    (one,) = measured(recipe, cells_of(recipe, rows, "test"), {})
    assert one.kl is None
    assert one.measures["kl_per_token"] is None
    base_nats = one.measures["base_nats"]
    assert base_nats is not None
    assert base_nats.value == 3.0


def test_strengths_are_chosen_on_validation_prompts_alone() -> None:
    recipe = fakes.recipe()
    means: dict[tuple[str, Strength], float] = {("arm", 0.5): 0.2, ("arm", 1.0): 0.6, ("arm", 2.0): 0.4}
    rows = rows_of(recipe, means, split="validation") + rows_of(recipe, {("arm", 2.0): 9.0})
    chosen = choose(recipe, cells_of(recipe, rows, "validation"))
    assert chosen["arm"].strength == 1.0
    assert (chosen["base"].strength, chosen["base"].why) == (0.0, "its only strength")
    assert "best-of-n" not in chosen  # it has two strengths and no validation answer


def test_a_kl_budget_is_kept() -> None:
    recipe = fakes.recipe(kl_budget=3)
    rows = rows_of(recipe, {("arm", 2.0): 0.9}, split="validation", kl=3.5)
    rows += rows_of(recipe, {("arm", 0.5): 0.2, ("arm", 1.0): 0.6}, split="validation", kl=3.0)
    rows += rows_of(recipe, {("best-of-n", 2.0): 0.1, ("best-of-n", 8.0): 0.2}, split="validation", kl=None)
    chosen = choose(recipe, cells_of(recipe, rows, "validation"))
    assert chosen["arm"].strength == 1.0
    assert chosen["best-of-n"].strength == 8.0
    assert "not held to the budget" in chosen["best-of-n"].why
    nothing = choose(recipe, cells_of(recipe, rows[:12], "validation"))
    assert nothing["arm"].strength is None
    assert "no strength keeps to 3 nats" in nothing["arm"].why


def test_costs_are_beside_the_base_of_the_same_run(results: Results) -> None:
    recipe = results.recipe
    summary = summarise_cost(recipe, results.costs, recipe.methods[1], 2.0)
    own = [cost for cost in results.costs if (cost.method, cost.strength) == ("arm", 2.0)]
    base = [cost for cost in results.costs if cost.method == "base"]
    speed = sum(cost.num_tokens for cost in own) / sum(cost.seconds for cost in own)
    base_speed = sum(cost.num_tokens for cost in base) / sum(cost.seconds for cost in base)
    assert summary.tokens_per_s == pytest.approx(speed)
    assert summary.ratio_to_base == pytest.approx(speed / base_speed)
    assert summary.decoded_per_token == 3.0
    assert summary.peak_memory_mb == max(cost.peak_memory_mb for cost in own)


def test_the_tables_are_about_the_chosen_strengths(results: Results) -> None:
    assert [one.label for one in results.shown] == ["base", "arm", "best-of-n", "aligner"]
    validation = {(one.label, one.strength) for one in results.shown}
    assert ("arm", 2.0) in validation  # the fake says good more often the stronger it is
    assert ("best-of-n", 8.0) in validation
    assert len(results.measured) == 7
    assert results.num_missing == 0
    assert results.num_wanted == 52 + 3 * 52 + 2 * 40 + 52


def test_the_first_sentence_is_about_the_best_on_validation_prompts(page: str, results: Results) -> None:
    text = " ".join(read(page).text.split())
    best = next(one for one in results.shown if one.label == results.headline)
    base = results.shown[0]
    good = f"{best.rewards['good'].value:.2f} against {base.rewards['good'].value:.2f} without guidance"
    assert f"On the validation prompts {best.label} at strength" in text
    assert good in text
    assert f"a gain of {best.gains['good'].value:.2f} (95 % interval {best.gains['good'].low:.2f} to" in text


VALIDATION = {("base", 0.0): 0.1, ("arm", 1.0): 0.6, ("best-of-n", 8.0): 0.5, ("aligner", 1.0): 0.2}


def said_of(test: dict[tuple[str, Strength], float], validation: dict[tuple[str, Strength], float]) -> str:
    recipe = fakes.recipe()
    before = cells_of(recipe, rows_of(recipe, validation, split="validation"), "validation")
    chosen = choose(recipe, before)
    shown = measured(recipe, cells_of(recipe, rows_of(recipe, test), "test"), {})
    return findings(recipe, shown, {}, headline=headline(recipe, before, chosen))


def test_test_prompts_have_no_say_in_what_the_headline_is_about() -> None:
    """`best-of-n` is far ahead on the test prompts: the headline stays with what was chosen before, and says so."""
    test = {("base", 0.0): 0.1, ("arm", 1.0): 0.3, ("best-of-n", 8.0): 0.9, ("aligner", 1.0): 0.3}
    said = said_of(test, VALIDATION)
    assert said.startswith("On the validation prompts arm at strength 1 gained the most good reward.")
    assert "a gain of 0.20 " in said
    assert "aligner cannot be told apart from it" in said
    assert "best-of-n at strength 8 is ahead of it there, by 0.60 " in said


def test_a_headline_that_gains_nothing_says_so() -> None:
    test = {("base", 0.0): 0.3, ("arm", 1.0): 0.1, ("best-of-n", 8.0): 0.2}
    said = said_of(test, VALIDATION)
    assert "a difference of −0.20 (95 % interval −0.20 to −0.20)" in said
    assert "gain of" not in said


def test_without_a_choice_every_strength_is_named_or_all_are_counted() -> None:
    test: dict[tuple[str, Strength], float] = {("base", 0.0): 0.1, ("arm", 0.5): 0.3, ("arm", 2.0): 0.9}
    said = said_of(test, {})
    assert said.startswith("Without guidance the mean good reward on the test prompts is 0.15")
    assert "arm at strength 0.5 gains 0.20 " in said
    assert "arm at strength 2 gains 0.80 " in said
    assert "None is picked out" in said
    methods = [
        {"method": "base"},
        {"name": "arm", "method": "genarm", "guides": {"g": "x"}, "strengths": [1, 2, 3, 4, 5, 6, 7]},
    ]
    recipe = fakes.recipe(methods=methods)
    many: dict[tuple[str, Strength], float] = {("base", 0.0): 0.1, ("arm", 1.0): 0.0, ("arm", 2.0): 0.1}
    many |= {("arm", float(strength)): 0.5 for strength in range(3, 8)}
    shown = measured(recipe, cells_of(recipe, rows_of(recipe, many), "test"), {})
    counted = findings(recipe, shown, {})
    assert "Of 7 methods and strengths paired with it, 5 gain clear of 0 (95 % intervals), 1 lose, and 1 are" in counted
    assert "arm at strength" not in counted


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    assert outside(page) == []
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert page.lower().count("<!doctype") == 1


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 2  # the main reward, and the judge
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert re.findall(r"(?:stroke|fill): #[0-9a-fA-F]+", svg) == []
        for name in set(re.findall(r"var\(--(\w+)\)", svg)):
            assert len(re.findall(rf"--{name}: #", page)) >= 2, f"--{name} is not defined for light and dark"
        for label in ("base", "arm", "best-of-n"):
            assert f">{label}" in svg, "a line without its name"


def test_a_method_of_unknown_kl_is_listed_and_not_drawn(page: str, results: Results) -> None:
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert ">aligner" not in svg
    text = " ".join(read(page).text.split())
    reward = next(one for one in results.measured if one.label == "aligner").rewards["good"]
    assert f"Not drawn, since their KL is unknown. aligner 1: {reward.value:.2f} [" in text


def test_a_bound_is_drawn_and_written_as_one(page: str) -> None:
    assert "best-of-n (bound)" in page
    assert "≤ " in page


def test_no_two_methods_look_alike() -> None:
    looks = {(index % len(SERIES_LIGHT), index % len(_MARKERS)) for index in range(20)}
    assert len(looks) == 20
    assert len(SERIES_LIGHT) == len(SERIES_DARK) == len({*SERIES_LIGHT})


@pytest.mark.parametrize("is_bounded", [False, True])
def test_lines_of_one_colour_differ_in_mark_and_dash(is_bounded: bool) -> None:
    """A line is told apart between its points too, and a point without its line."""
    lines = [Series("", [], index, bounded=is_bounded) for index in range(len(SERIES_LIGHT) * 4)]
    for one, other in combinations(lines, 2):
        if one.colour == other.colour:
            assert one.dash != other.dash
            assert one.marker != other.marker
    assert Series("", [], -1).dash == lines[0].dash or is_bounded
    assert not {str(one.dash) for one in lines} & {str(replace(one, bounded=not is_bounded).dash) for one in lines}


@pytest.mark.parametrize(("colours", "paper"), [(SERIES_LIGHT, "#fdfdfb"), (SERIES_DARK, "#17181a")])
def test_lines_stand_out_from_the_paper(colours: Sequence[str], paper: str) -> None:
    """WCAG 2.1, 1.4.11: a ratio of at least 3."""
    for colour in colours:
        first, second = sorted((_luminance(colour), _luminance(paper)))
        assert (second + 0.05) / (first + 0.05) >= 3, colour


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def plain(page: str) -> str:
    return " ".join(re.sub(r"<.*?>", " ", html.unescape(page)).split())


UNTRAINED = [{"method": "base"}, {"method": "best-of-n", "scorer": "sentiment", "strengths": [2, 8]}]
ROLES = {
    "a default is no claim": ({}, {}, "Rewards measured good"),
    "a guide was trained": ({"role": "trained_on"}, {}, "Rewards trained on good"),
    "nothing was trained": ({"role": "trained_on"}, {"methods": UNTRAINED}, "Rewards measured good"),
}


@pytest.mark.parametrize("case", ROLES)
def test_a_reward_is_trained_on_only_where_something_was(case: str, tmp_path: Path) -> None:
    role, changes, wanted = ROLES[case]
    rewards = {"good": {"scorer": "sentiment", **role}, "brief": {"scorer": "offence", "role": "judged_by"}}
    run(tmp_path, fakes.recipe(rewards=rewards, **changes))
    text = plain(write_report(tmp_path, read_results(tmp_path, fakes.METHODS)).read_text(encoding="utf-8"))
    assert wanted in text
    assert ("trained on" in text) == ("trained on" in wanted)
    assert "best-of-n: chooses among answers by this very reward" in text


def test_a_claim_that_cannot_be_true_is_a_problem() -> None:
    rewards = {"good": {"scorer": "sentiment", "role": "trained_on"}, "other": {"scorer": "offence"}}
    (trained,) = role_problems(fakes.recipe(rewards=rewards, methods=UNTRAINED))
    assert trained.startswith("rewards.good.role: is trained_on, and none of the methods (base, best-of-n) was trained")
    assert role_problems(fakes.recipe(rewards=rewards)) == []
    rewards["good"]["role"] = "judged_by"
    (judged,) = role_problems(fakes.recipe(rewards=rewards))
    assert judged == (
        "rewards.good.role: is judged_by, and best-of-n chooses its answers by that scorer; leave it out."
    )


def test_roles_and_settings_are_said(page: str) -> None:
    text = plain(page)
    for wanted in (
        "Rewards measured good: sentiment; best-of-n: chooses among answers by this very reward",
        "Rewards judging brief: offence, times -1 so that higher is better",
        "14 of trimtab's own list 'demo', from number 13 on",
        "max new tokens 12, temperature 1.0",
        "Some methods cost much and answer only the first prompts of each split: best-of-n (10).",
        "base, arm: exact",
        "best-of-n: an upper bound",
        "aligner: unknown",
    ):
        assert wanted in text, wanted


def test_samples_are_spread_evenly_over_what_all_answered(page: str) -> None:
    assert "Test prompts 1, 4 and 7 of 14" in page
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["Test prompt 0?", "Test prompt 3?", "Test prompt 6?"]
    assert page.count("<article>") == 3 * 4


def test_the_numbers_as_files(directory: Path, results: Results) -> None:
    with (directory / "methods.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(one["method"], one["strength"]) for one in rows] == [
        *(("base", "0"), ("arm", "0.5"), ("arm", "1"), ("arm", "2")),
        *(("best-of-n", "2"), ("best-of-n", "8"), ("aligner", "1")),
    ]
    assert [one["chosen"] for one in rows] == ["True", "False", "False", "True", "False", "True", "True"]
    arm = results.measured[3]
    assert float(rows[3]["reward_good"]) == pytest.approx(arm.rewards["good"].value, rel=1e-4)
    assert float(rows[3]["gain_good_low"]) == pytest.approx(arm.gains["good"].low, rel=1e-4)
    assert rows[6]["kl"] == ""
    assert len((directory / "costs.csv").read_text().splitlines()) == 5
    for name in ("frontier-good.png", "frontier-brief.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    summary = json.loads(json.dumps(summary_of(results)))
    assert [one["method"] for one in summary["methods"]] == ["base", "arm", "best-of-n", "aligner"]
    assert summary["num_missing"] == 0


def test_what_is_missing_is_said(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "run")
    answers = tmp_path / "run" / "answers.jsonl"
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:150]))
    results = read_results(tmp_path / "run", fakes.METHODS)
    page = write_report(tmp_path / "run", results).read_text(encoding="utf-8")
    assert "This run is not finished: 190 of 340 answers are missing." in page
    answers.write_bytes(b"")
    with pytest.raises(DataError, match="no test prompt has an answer"):
        read_results(tmp_path / "run", fakes.METHODS)


def test_too_few_prompts_are_said(tmp_path: Path) -> None:
    methods = [{**one, "max_prompts": 4} for one in fakes.source()["methods"]]
    run(tmp_path, fakes.recipe(methods=methods))
    page = write_report(tmp_path, read_results(tmp_path, fakes.METHODS)).read_text(encoding="utf-8")
    text = " ".join(read(page).text.split())
    assert "Fewer than 10 prompts are too few for an interval; these have none: aligner, arm, base, best-of-n" in text
    assert "(no interval: 4 prompts are too few)" in text
    assert "no interval" in page[page.index("<table>") :]


def test_without_validation_prompts_every_strength_is_shown(tmp_path: Path) -> None:
    run(tmp_path, fakes.recipe(prompts={"test": {"builtin": "demo"}}, batch_size=50))
    kept = [line for line in (tmp_path / "answers.jsonl").read_text().splitlines() if '"split": "test"' in line]
    (tmp_path / "answers.jsonl").write_text("".join(line + "\n" for line in kept))
    results = read_results(tmp_path, fakes.METHODS)
    assert len(results.shown) == 7
    page = write_report(tmp_path, results).read_text(encoding="utf-8")
    assert "The recipe has no validation prompts, so no strength is chosen" in page
    assert "Of 6 methods" not in page
    assert results.lead.count(" gains ") == 6


def test_what_an_answer_says_is_text(tmp_path: Path) -> None:
    class Hostile(fakes.FakePolicy):
        def answer(self, *rest: Any) -> Any:
            from dataclasses import replace

            return (replace(answer, text=HOSTILE) for answer in super().answer(*rest))

    methods = [{"method": "base"}, {"name": HOSTILE, "method": "aligner", "model": HOSTILE}]
    run(tmp_path, fakes.recipe(title=HOSTILE, methods=methods), lambda spec: Hostile(spec.method))
    page = write_report(tmp_path, read_results(tmp_path, fakes.METHODS)).read_text(encoding="utf-8")
    assert outside(page) == []
    assert "<script" not in page
    assert read(page).text.count('alert("x")') > 10


def test_two_objectives_have_a_front(pareto: Path) -> None:
    results = read_results(pareto, fakes.METHODS)
    two, one_dial = (next(one for one in results.fronts if one.label == name) for name in ("two guides", "aligner"))
    assert two.num_strengths == 3
    assert two.inner_product is not None
    assert one_dial.inner_product is None
    # The fake's two objectives are the shares of good words and their number, so a front is one point: a rectangle.
    for front in (two, one_dial):
        assert front.hypervolume.low is not None
        assert front.hypervolume.high is not None
        assert front.hypervolume.low <= front.hypervolume.value <= front.hypervolume.high
    cells = [cell for cell in results.cells if cell.spec.name == "aligner"]
    good, brief = cells[0].mean(reward_of("good")), cells[0].mean(reward_of("brief"))
    assert good is not None
    assert brief is not None
    assert one_dial.hypervolume.value == pytest.approx(good * (brief + 13.0))
    page = (pareto / "report.html").read_text(encoding="utf-8")
    text = " ".join(read(page).text.split())
    assert "Reference point: good 0, brief -13." in text
    for front in results.fronts:  # all of them: which covers the most is itself read off these prompts
        assert f"{front.label} {front.hypervolume.value:.3f} (95 % interval " in text
    assert len(re.findall("<svg", page)) == 3
    assert (pareto / "pareto.png").is_file()
    assert len((pareto / "fronts.csv").read_text().splitlines()) == 1 + len(results.fronts)


@pytest.mark.parametrize(
    ("label", "preferences"),
    [("two guides", ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))), ("runs", ((0.75, 0.25), (0.0, 1.0)))],
)
def test_the_mean_inner_product_is_that_of_the_shares(
    pareto: Path, label: str, preferences: Sequence[tuple[float, float]]
) -> None:
    results = read_results(pareto, fakes.METHODS)
    cells = [cell for cell in results.cells if cell.spec.name == label]
    expected = 0.0
    for cell, shares in zip(cells, preferences, strict=True):
        means = (cell.mean(reward_of("good")), cell.mean(reward_of("brief")))
        expected += sum(share * (mean or 0.0) for share, mean in zip(shares, means, strict=True)) / len(cells)
    (front,) = (one for one in results.fronts if one.label == label)
    assert front.inner_product is not None
    assert front.inner_product.value == pytest.approx(expected)


def test_nobody_judged_and_nothing_is_said(directory: Path) -> None:
    assert win_rate_sections(directory) == []


@pytest.mark.parametrize("name", ["directory", "pareto"])
def test_a_browser_shows_it(name: str, request: pytest.FixtureRequest) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium to open the page")
    path = request.getfixturevalue(name) / "report.html"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<h1>Good words</h1>" in done.stdout
    assert done.stdout.count("<svg") == done.stdout.count("</svg>") >= 2
    assert "Content Security Policy" not in done.stderr
