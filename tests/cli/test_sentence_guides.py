"""`--guide NAME=prompt:...`, wherever guides are named on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.decoding.decoder import Decoder
from trimtab.guides.prompt import PromptGuide
from trimtab.storage.loading import load_model, save_guide

from .conftest import Run, Tiny

SAMPLING = ("--max-new-tokens", "6", "--seed", "2")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "One"}\n{"prompt": [{"role": "user", "content": "Two"}], "weights": {"tone": -1}}\n')
    return str(path)


def test_answers_are_the_decoders_however_it_is_named(run: Run, tiny: Tiny, prompts: str, tmp_path: Path) -> None:
    (tmp_path / "glad.txt").write_text("Be glad: now.\n")
    saved = save_guide(PromptGuide("Be glad: now.", "Be sad.", weight=2.0), tmp_path / "tone")
    expected = None
    for number, name in enumerate(
        ("prompt:Be glad: now./Be sad.:2", f'prompt:@{tmp_path}/glad.txt/"Be sad.":2', str(saved))
    ):
        out = tmp_path / f"{number}.jsonl"
        outcome = run(
            *("generate", "--model", tiny.model, "--guide", f"tone={name}", "--prompts", prompts, "--out", str(out)),
            *SAMPLING,
        )
        assert outcome.code == 0, outcome.err
        said = "the sentence 'Be glad: now.', away from 'Be sad.', in the system message, weight 2"
        assert f"loaded guide tone from {said}" in outcome.err
        texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
        expected = expected or texts
        assert texts == expected
    decoder = Decoder(load_model(tiny.model), {"tone": PromptGuide("Be glad: now.", "Be sad.")})
    chats = [[{"role": "user", "content": text}] for text in ("One", "Two")]
    answers = decoder.generate(chats, weights=[{"tone": 2.0}, {"tone": -1.0}], seed=2, max_new_tokens=6)
    assert [answer.text for answer in answers] == expected


def test_explain_and_bench_take_one(run: Run, tiny: Tiny) -> None:
    guide = ("--model", tiny.model, "--guide", "glad=prompt:Be glad.:2")
    report = run("explain", *guide, "--prompt", "Hi", "--json", *SAMPLING)
    assert report.code == 0, report.err
    assert json.loads(report.out)["weights"] == {"glad": 2.0}
    bench = run(
        "bench",
        "decode",
        *guide,
        "--batch",
        "1",
        "--num-new-tokens",
        "4",
        "--num-prompt-tokens",
        "8",
        "--num-repeats",
        "1",
    )
    assert bench.code == 0, bench.err


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ("glad=prompt:", "no sentence behind the colon"),
        ("glad=prompt:@none.txt", "There is no file none.txt"),
        ('glad=prompt:" "', "empty"),
        (f"glad=prompt:{'glad! ' * 30}", "holds 96, prompt and answer included. Shorten the sentence"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_one_line(run: Run, tiny: Tiny, guide: str, message: str) -> None:
    outcome = run("generate", "--model", tiny.model, "--guide", guide, "--prompt", "Hi", *SAMPLING)
    assert outcome.code == 2
    assert message in outcome.err


def test_flags_that_mean_nothing_to_a_sentence_are_refused(run: Run, tiny: Tiny) -> None:
    guide = ("--model", tiny.model, "--guide", "glad=prompt:Be glad.", "--prompt", "Hi", *SAMPLING)
    for more, message in (
        (("--form", "glad=shift"), "has no form"),
        (("--guide-base", f"glad={tiny.separate}"), "runs on no base of its own"),
        (("--preference", "glad=1"), "takes no preference"),
    ):
        outcome = run("generate", *guide, *more)
        assert outcome.code == 2
        assert message in outcome.err


def test_a_comparison_has_sentences_as_arms(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Strength 0 of either is the base; a sentence may stand in a file beside the recipe."""
    pytest.importorskip("vaderSentiment")
    pytest.importorskip("matplotlib")
    from tests.cli.test_compare import answers, write

    (tmp_path / "glad.txt").write_text("Be glad.")
    methods = [
        {"method": "base"},
        {"method": "system", "guide": "prompt:@glad.txt", "strengths": [0, 1]},
        {"method": "prompt", "guide": 'prompt:"Be glad."/"Be sad, and/or so."', "strengths": [0, 2]},
    ]
    recipe = write(tmp_path, tiny, methods=methods, seeds=[0])
    outcome = run("compare", str(recipe), "--out", str(tmp_path / "run"), "--json")
    assert outcome.code == 0, outcome.err
    texts: dict[tuple[str, float], list[str]] = {}
    for row in answers(tmp_path / "run"):
        texts.setdefault((row["method"], row["strength"]), []).append(row["text"])
    assert texts["base", 0] == texts["system", 0] == texts["prompt", 0]
    assert len({tuple(texts[arm]) for arm in (("base", 0), ("system", 1), ("prompt", 2))}) == 3
