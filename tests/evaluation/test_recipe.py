"""Recipes: what is read, and every problem at once with its place and the nearest known name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluation.comparison_fakes import METHODS, check, recipe, source
from trimtab.errors import DataError, OptionError
from trimtab.evaluation.comparison.catalogued import known_methods
from trimtab.evaluation.comparison.fingerprints import option_contents
from trimtab.evaluation.comparison.recipe import Recipe, leads_nowhere, resolved, strength_text
from trimtab.evaluation.comparison.recipe_reader import parse_recipe, read_recipe
from trimtab.methods.catalogue import check_method
from trimtab.storage.calibrated import Calibration
from trimtab.storage.cards import read_card, write_card


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, METHODS, check)


BOTH_SPLITS = {"test": {"builtin": "demo"}, "validation": {"builtin": "training"}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"headline": "none"}, "headline: .*none"),
        ({"headline": "base"}, "method beside the base"),
        ({"headline": "sharpened"}, "has 2 strengths; name one of a single one"),
        (
            {
                "headline": "one",
                "prompts": {p: {"builtin": b} for p, b in (("test", "demo"), ("validation", "training"))},
            },
            "leave",
        ),
    ],
)
def test_a_headline_is_a_method_of_one_strength_chosen_elsewhere(changes: dict[str, Any], problem: str) -> None:
    source = {
        "model": "demo",
        "prompts": {"test": {"builtin": "demo"}},
        "rewards": {"kind": {"scorer": "sentiment"}},
        "methods": [
            {"method": "base"},
            {"method": "sharpened", "strengths": [1, 2]},
            {"name": "one", "method": "sharpened", "strengths": [1]},
        ],
    }
    assert parse_recipe({**source, "headline": "one"}, Path(), known_methods(), check_method).headline == "one"
    with pytest.raises(OptionError, match=problem):
        parse_recipe({**source, **changes}, Path(), known_methods(), check_method)


def test_a_file_of_one_s_own_may_be_named_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    assert leads_nowhere(f"{tmp_path}/mine.py:score", Path("/")) == []
    assert leads_nowhere(f"{tmp_path}:0.5", Path("/")) == []
    assert leads_nowhere({"a": [f"{tmp_path}/other.py:score", 1]}, Path("/")) == [
        f"there is no {tmp_path}/other.py:score; paths start from /."
    ]


def test_a_calibration_is_not_part_of_a_run_whose_method_says_form_and_strength(tmp_path: Path) -> None:
    directory = tmp_path / "guide"
    directory.mkdir()
    write_card(directory, {"format": 1, "kind": "arm", "guide_form": "product"})
    methods = {"genarm": {"guides": {"g": str(directory)}}, "aligner": {"guide": str(directory)}}
    before = {name: option_contents(name, options) for name, options in methods.items()}
    calibration = Calibration(form="shift", strength=2.0, strength_low=1.0, strength_high=4.0)
    write_card(directory, read_card(directory).with_calibration(calibration))
    assert option_contents("genarm", methods["genarm"]) == before["genarm"] != {}
    assert option_contents("aligner", methods["aligner"]) != before["aligner"]
    write_card(directory, {**read_card(directory).written, "guide_form": "shift"})
    assert option_contents("genarm", methods["genarm"]) != before["genarm"]


def test_a_recipe_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, yaml.safe_dump(source(kl_budget=12), sort_keys=False))
    assert (found.title, found.model, found.dtype, found.seeds, found.batch_size) == (
        "Good words",
        "demo",
        "auto",
        (0, 1),
        5,
    )
    assert found.directory == tmp_path
    assert found.params.max_new_tokens == 12
    assert found.params.trace
    assert [spec.name for spec in found.methods] == ["base", "arm", "best-of-n", "aligner"]
    assert [spec.strengths for spec in found.methods] == [(0.0,), (0.5, 1.0, 2.0), (2.0, 8.0), (1.0,)]
    assert found.methods[1].options == {"guides": {"good": "builtin:sentiment"}}
    assert found.methods[2].max_prompts == 10
    assert found.baseline.name == "base"
    assert found.main_reward.name == "good"
    assert (found.rewards[1].weight, found.rewards[1].role) == (-1.0, "judged_by")
    assert found.kl_budget == 12
    assert (found.prompts["test"].start, found.prompts["test"].num) == (12, 14)


def test_the_main_reward_is_the_first_that_was_trained_on() -> None:
    judge = {"brief": {"scorer": "offence", "role": "judged_by"}}
    rewards = {**judge, "good": {"scorer": "sentiment"}}
    assert recipe(rewards=rewards).main_reward.name == "good"
    rewards = {**judge, "plain": {"scorer": "sentiment"}, "good": {"scorer": "offence", "role": "trained_on"}}
    assert recipe(rewards=rewards).main_reward.name == "good"
    assert recipe(rewards=judge).main_reward.name == "brief"


def test_a_recipe_sets_penalties_biases_and_ends() -> None:
    decoding = {
        "max_new_tokens": 300,
        "min_tokens": 200,
        "presence_penalty": 0.5,
        "logit_bias": {"50": -100, "7": 1.5},  # keys of YAML are texts
        "stop_token_ids": [7, 8],
    }
    params = recipe(decoding=decoding).params
    assert (params.min_tokens, params.logit_bias, params.stop_token_ids) == (200, {50: -100, 7: 1.5}, (7, 8))
    for wrong, words in (
        ({"min_tokens": 20, "max_new_tokens": 10}, "min_tokens is 20, and max_new_tokens 10"),
        ({"logit_bias": {"a": 1}}, "decoding.logit_bias: is"),
        ({"logit_bias": {"5": 101}}, "decoding.logit_bias: logit_bias is"),
        ({"stop_token_ids": [-1]}, "decoding.stop_token_ids: is -1"),
    ):
        with pytest.raises(OptionError, match=words):
            recipe(decoding=wrong)


def test_every_problem_comes_at_once_with_its_place_and_the_nearest_name() -> None:
    broken = source(
        modle="demo",
        dtype="float8",
        decoding={"temprature": 1, "top_p": 3, "max_new_tokens": "many"},
        seeds=[0, 0],
        rewards={"good": {"scorer": "sentiment", "rol": "trained_on"}, "brief": {"role": "judge"}},
        prompts={"test": {"path": "a.jsonl", "builtin": "demo"}, "tset": {}},
    )
    broken["methods"] = [
        {"method": "base"},
        {"method": "genram"},
        {"method": "genarm", "guide": {}, "strengths": [-1]},
        {"method": "best-of-n", "name": "base", "max_prompts": 0},
        "aligner",
    ]
    del broken["model"]
    with pytest.raises(OptionError) as caught:
        parse_recipe(broken, Path(), METHODS, check, name="my.yaml")
    lines = str(caught.value).splitlines()
    wanted = [
        "my.yaml has 19 problems:",
        "modle: Unknown key 'modle'. Did you mean 'model'?",
        "model: is missing",
        "dtype: Unknown dtype 'float8'. Did you mean",
        "decoding.temprature: Unknown key 'temprature'. Did you mean 'temperature'?",
        "decoding.top_p: top_p is 3",
        "decoding.max_new_tokens: is 'many'",
        "seeds: is empty or names a seed twice",
        "rewards.good.rol: Unknown key 'rol'. Did you mean 'role'?",
        "rewards.brief.scorer: is missing",
        "rewards.brief.role: Unknown role 'judge'. Did you mean 'judged_by'?",
        "prompts.test: has a path and a builtin list",
        "prompts.tset: Unknown split 'tset'. Did you mean 'test'?",
        "methods[1].method: Unknown method 'genram'. Did you mean 'genarm'?",
        "methods[2].guide: Unknown option of genarm 'guide'. Did you mean 'guides'?",
        "methods[2]: guides is missing",
        "methods[2]: strength -1.0 is below 0",
        "methods[3].max_prompts: is 0",
        "methods[4]: is 'aligner'; give a mapping",
        "methods: 2 of them are named 'base'",
    ]
    for sentence in wanted:
        assert sum(sentence in line for line in lines) == 1, (sentence, lines)
    assert len(lines) == len(wanted)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"methods": [{"method": "aligner"}]}, "none of them is `base`"),
        ({"methods": []}, "methods: is a list"),
        ({"prompts": {"validation": {"builtin": "demo"}}}, "prompts.test: is missing"),
        ({"prompts": None}, "prompts.test: is missing"),
        ({"rewards": {}}, "rewards: is missing"),
        ({"rewards": {"good": {"scorer": "sentiment", "weight": 0}}}, "rewards.good.weight: is 0"),
        ({"rewards": {"a": {"scorer": "x"}, "A": {"scorer": "x"}}}, "rewards.A: has the same file name"),
        ({"rewards": ["good"]}, "rewards: is a list; give a mapping"),
        ({"objectives": ["good", "nice"]}, "objectives: Unknown reward 'nice'"),
        ({"objectives": ["good", "brief"]}, "reference.good: is missing"),
        ({"objectives": ["good", "brief"], "reference": {"good": 0, "breif": 1}}, "Did you mean 'brief'"),
        ({"seeds": [True]}, "seeds: is True"),
        ({"batch_size": 1.5}, "batch_size: is 1.5"),
        ({"kl_budget": ".inf"}, "kl_budget: is '.inf'"),
        (
            {"methods": [{"method": "base"}, {"method": "aligner", "model": "m", "strengths": []}]},
            "strengths: is a list",
        ),
        ({"methods": [{"method": "base"}, {"method": "aligner", "strengths": [1, 1]}]}, "names a strength twice"),
    ],
)
def test_one_problem(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(OptionError, match="The recipe has") as caught:
        recipe(**changes)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1", r"recipe.yaml, line \d: not YAML"),
        ("- a\n", "a recipe is a mapping"),
        ("", "this is nothing"),
        ("title: a\nmodel: demo\ntitle: b\n", "line 3: the key 'title' is given twice"),
        ("rewards:\n  good: {scorer: a, scorer: b}\n", "the key 'scorer' is given twice"),
        ("a: !!python/object/apply:os.getcwd []", "the tag .*getcwd' is not read"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(tmp_path, text)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give a recipe"):
        read_recipe(tmp_path / "recipe.yaml", METHODS, check)
    with pytest.raises(DataError, match="--report-only"):
        read_recipe(tmp_path, METHODS, check)


def test_a_number_that_yaml_takes_for_text(tmp_path: Path) -> None:
    assert read(tmp_path, yaml.safe_dump(source()) + "kl_budget: 1e1\n").kl_budget == 10.0


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "sentiment").mkdir()
    inside = str((tmp_path / "runs" / "a").resolve())
    options = {"paths": ["runs/a:0.5", "runs/a"], "guides": {"x": "./runs/a"}, "n": 3}
    assert resolved(options, tmp_path) == {"paths": [f"{inside}:0.5", inside], "guides": {"x": inside}, "n": 3}
    for name in ("sentiment", "builtin:sentiment", "owner/model", "./nothing", "module:function"):
        assert resolved(name, tmp_path) == name
    assert resolved("./sentiment", tmp_path) == str((tmp_path / "sentiment").resolve())


def test_preferences_are_one_for_each_strength() -> None:
    policies = {"name": "morl", "method": "aligner", "model": "m", "strengths": [0, 1], "preferences": [[1, 0], [0, 1]]}
    assert recipe(methods=[{"method": "base"}, policies]).methods[1].preferences == ((1.0, 0.0), (0.0, 1.0))
    for wrong in ([[1, 0]], [1, 0], [[1, 0], 1]):
        with pytest.raises(
            OptionError, match=r"methods\[1\].preferences: is not one list of numbers for each strength"
        ):
            recipe(methods=[{"method": "base"}, {**policies, "preferences": wrong}])


def test_strengths_for_readers() -> None:
    assert [strength_text(one) for one in (1.0, 0.25, (0.5, 1.0))] == ["1", "0.25", "0.5, 1"]


def test_options_of_the_chat_template_and_columns_to_be_ignored_are_read() -> None:
    prompts = {"test": {"path": "p.jsonl", "ignore_columns": ["context"]}}
    found = recipe(template_options={"enable_thinking": False, "effort": "low"}, prompts=prompts)
    assert found.template_options == {"enable_thinking": False, "effort": "low"}
    assert found.prompts["test"].ignore_columns == ("context",)
    assert recipe().template_options == {}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"template_options": ["a"]}, "template_options: is a list; give a mapping of options"),
        ({"template_options": {"a b": 1}}, "template_options: is a mapping; give a mapping of options"),
        ({"template_options": {"a": float("inf")}}, "template_options: holds a value that is no JSON"),
        ({"template": "raw", "template_options": {"a": 1}}, "template_options"),
    ],
)
def test_options_that_cannot_reach_a_template_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        recipe(**changes)
    assert problem in str(caught.value)


def test_sentences_of_methods_are_read_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "glad.txt").write_text("Be glad, he/she said: now.\n")
    assert resolved("prompt:@glad.txt", tmp_path) == 'prompt:"Be glad, he/she said: now."'
    assert resolved(f"prompt:{'very ' * 99}glad/sad.", tmp_path) == f'prompt:"{"very " * 99}glad/sad."'
    assert leads_nowhere(["prompt:@glad.txt", "prompt:Be glad/sad, and/or short."], tmp_path) == []
    (why,) = leads_nowhere("prompt:@none.txt", tmp_path)
    assert why.startswith("There is no file")
    contents = option_contents("prompt", {"guide": resolved("prompt:@glad.txt", tmp_path)})
    assert contents == option_contents("prompt", {"guide": "prompt:Be glad, he/she said: now."}) != {}
