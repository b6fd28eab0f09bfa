"""Whether what is to be continued is what is asked for now."""

from __future__ import annotations

import pytest

from trimtab.errors import OptionError
from trimtab.storage.same_run import check_same, differences

BEFORE = {"model": "demo", "decoding": {"top_k": 5, "stop": ["a"]}, "rewards": {"good": {"weight": 1.0}}}


def changed(now: dict[str, object], **options: object) -> list[str]:
    return [str(one) for one in differences(BEFORE, now, **options)]  # type: ignore[arg-type]


def test_what_json_gives_back_is_the_same() -> None:
    same = {"rewards": {"good": {"weight": 1}}, "decoding": {"stop": ("a",), "top_k": 5}, "model": "demo"}
    assert changed(same) == []


def test_each_fact_that_differs_is_named_with_both_values() -> None:
    now = {"decoding": {"top_k": 6, "stop": ["a"], "seed": 1}, "rewards": BEFORE["rewards"]}
    assert changed(now) == ["decoding.top_k was 5, is 6", "decoding.seed was null, is 1", 'model was "demo", is null']


def test_a_missing_section_is_an_empty_one() -> None:
    assert changed({**BEFORE, "files": {}}) == []
    assert changed({"model": "demo", "decoding": BEFORE["decoding"]}) == ['rewards.good was {"weight": 1.0}, is null']
    assert changed({**BEFORE, "decoding": "greedy"}) == ['decoding was {"top_k": 5, "stop": ["a"]}, is "greedy"']


def test_below_the_depth_a_section_is_one_value() -> None:
    now = {**BEFORE, "rewards": {"good": {"weight": 2.0}}}
    assert changed(now) == ["rewards.good.weight was 1.0, is 2.0"]
    assert changed(now, depth=2) == ['rewards.good was {"weight": 1.0}, is {"weight": 2.0}']


def test_of_a_partial_section_only_what_both_have_counts() -> None:
    now = {**BEFORE, "rewards": {"bad": {"weight": 1.0}}}
    assert len(changed(now)) == 2
    assert changed(now, partial=("rewards",)) == []
    assert changed({**BEFORE, "rewards": {"good": {"weight": 2.0}, "bad": {}}}, partial=("rewards",)) != []


def test_a_digest_is_shortened_and_so_is_a_long_value() -> None:
    now = {**BEFORE, "model": "ab" * 32}
    assert changed(now) == ['model was "demo", is abababababab…']
    assert changed({**BEFORE, "model": "x" * 100})[0].endswith("...")


def test_what_differs_ends_it_with_the_way_out() -> None:
    check_same(BEFORE, dict(BEFORE), problem="Cannot continue here", way_out="Give another path.")
    with pytest.raises(OptionError, match=r'^Cannot continue here: model was "demo", is "x"\. Give another path\.$'):
        check_same(BEFORE, {**BEFORE, "model": "x"}, problem="Cannot continue here", way_out="Give another path.")


@pytest.mark.parametrize("beginning", ["", "a" * 20, "a" * 200])
@pytest.mark.parametrize("ending", ["", "b" * 200])
def test_long_values_are_cut_to_where_they_differ(beginning: str, ending: str) -> None:
    before, now = f"{beginning}left{ending}", f"{beginning}right{ending}"
    (found,) = differences({"s": {"x": before}}, {"s": {"x": now}})
    assert "left" in str(found)
    assert "right" in str(found)
    assert len(str(found)) < 160
