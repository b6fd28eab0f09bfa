"""What a pass takes: which passes are timed, and that they leave no trace."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny import tiny_module
from trimtab.evaluation import passes
from trimtab.models.forward.trunk import Trunk
from trimtab.models.hf import HFModel


def test_each_pass_reads_so_many_tokens_of_so_many_rows_after_the_same_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HFModel(tiny_module("llama"))
    seen: list[tuple[int, int]] = []
    lengths: set[int] = set()
    run = Trunk._run

    def watched(trunk: Trunk, batch: Any, token_ids: Any, layout: Any) -> Any:
        seen.append(tuple(token_ids.shape))
        lengths.update(row.length for row in batch)
        return run(trunk, batch, token_ids, layout)

    monkeypatch.setattr(Trunk, "_run", watched)
    found = passes.measure(model, rows=[2, 1], tokens=[3], num_prompt_tokens=4, num_repeats=2)
    assert [(one.rows, one.tokens) for one in found] == [(1, 3), (2, 3)]
    assert seen == [(1, 4), (2, 4), *([(1, 1), (1, 3), (2, 1), (2, 3)] * 3)]
    assert lengths == {0, 4}, "what a pass has read is taken back"


def test_figures_are_medians_with_their_range_over_one_token_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([9.0, 9.0, 2.0, 6.0, 1.0, 30.0, 4.0, 5.0])
    monkeypatch.setattr(passes, "_seconds", lambda *_: next(turns))
    [one] = passes.measure(HFModel(tiny_module("llama")), rows=[1], tokens=[2], num_prompt_tokens=4, num_repeats=3)
    assert (one.milliseconds, one.low, one.high, one.ratio) == (6000.0, 5000.0, 30000.0, 3.0)
