"""lm-eval over the guided policy: scores by the formula, the unguided model against lm-eval's own, a whole task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tests.tiny import tiny_module, tiny_tokenizer
from trimtab.errors import OptionError, PromptError
from trimtab.guides.arm import ARM
from trimtab.models.hf import HFModel
from trimtab.storage.loading import load_model

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from trimtab.evaluation.lm_eval import GuidedLM

PAIRS = [
    ("w1 w2 w3", " w4 w5"),
    ("w1 w2 w3", " w7"),
    ("w40", " w4 w5 w6 w7 w8 w9"),
    ("", "w11 w12"),
    ("w1 w2 ", "w3"),
    ("<s> w5", " w6"),
]


@pytest.fixture(scope="module")
def base() -> HFModel:
    return HFModel(tiny_module(), tiny_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def reward() -> HFModel:
    return HFModel(tiny_module(seed=1), tiny_tokenizer(), name="reward")


@pytest.fixture(scope="module")
def guided(base: HFModel, reward: HFModel) -> GuidedLM:
    return GuidedLM(base, {"arm": ARM(reward)}, weight=0.7, batch_size=3)


def _instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index)  # type: ignore[arg-type]
        for index, one in enumerate(arguments)
    ]


def _table(model: HFModel, token_ids: list[int]) -> torch.Tensor:
    """[T, V] log-probabilities after each token, by a plain forward pass."""
    with torch.inference_mode():
        return torch.log_softmax(model.module(torch.tensor([token_ids])).logits[0].float(), dim=-1)


def _formula(
    base: HFModel, reward: HFModel, weight: float, context: list[int], wanted: list[int]
) -> tuple[float, bool]:
    ids = [*context, *wanted]
    mixed = torch.log_softmax(_table(base, ids) + weight * _table(reward, ids), dim=-1)[len(context) - 1 : -1]
    chosen = mixed.gather(1, torch.tensor(wanted)[:, None]).sum()
    return float(chosen), mixed.argmax(dim=-1).tolist() == wanted


def test_a_continuation_scores_as_the_formula_says(guided: GuidedLM, base: HFModel, reward: HFModel) -> None:
    found = guided.loglikelihood(_instances("loglikelihood", PAIRS), disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(PAIRS, found, strict=True):
        whole = guided.tok_encode(context + continuation)
        split = len(guided.tok_encode(context.rstrip())) if context else 0
        before, after = (whole[:split], whole[split:]) if context else ([guided.prefix_token_id], whole)
        expected, is_greedy = _formula(base, reward, 0.7, before, after)
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert greedy == is_greedy


def test_a_greedy_continuation_is_called_so(guided: GuidedLM) -> None:
    (text,) = guided.generate_until(_instances("generate_until", [("w1 w2 w3", {"until": [], "max_gen_toks": 4})]))
    assert len(text.split()) == 4
    words = text.split()
    others = [*words[:3], "w0" if words[3] != "w0" else "w1"]
    pairs = [("w1 w2 w3", f" {' '.join(one)}") for one in (words, others)]
    found = guided.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


@pytest.fixture(scope="module")
def theirs(base: HFModel) -> Any:
    """lm-eval's own model over the same transformers model."""
    from lm_eval.models.huggingface import HFLM

    assert base.tokenizer is not None
    return HFLM(pretrained=base.module, tokenizer=base.tokenizer.hf, batch_size=2, device="cpu")


@pytest.fixture(scope="module")
def unguided(base: HFModel, reward: HFModel) -> GuidedLM:
    return GuidedLM(base, {"arm": ARM(reward)}, weight=0.0, batch_size=2)


def test_at_weight_0_scores_are_those_of_their_own_model(unguided: GuidedLM, theirs: Any) -> None:
    requests = _instances("loglikelihood", PAIRS)
    ours = unguided.loglikelihood(requests, disable_tqdm=True)
    reference = theirs.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in reference]
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in reference], abs=1e-4)


def test_at_weight_0_whole_texts_score_as_theirs(unguided: GuidedLM, theirs: Any) -> None:
    texts = [" ".join(f"w{(7 * k) % 50}" for k in range(length)) for length in (1, 5, 30)]
    requests = _instances("loglikelihood_rolling", [(text,) for text in texts])
    ours = unguided.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(requests, disable_tqdm=True), abs=1e-3)


def test_at_weight_0_answers_are_theirs(unguided: GuidedLM, theirs: Any) -> None:
    options = {"until": ["w13"], "max_gen_toks": 12, "do_sample": False}
    requests = _instances("generate_until", [(context, dict(options)) for context in ("w1 w2 w3", "w40", "w9 w8")])
    ours = unguided.generate_until(requests)
    reference = [theirs.generate_until([request], disable_tqdm=True)[0] for request in requests]
    assert [text.split() for text in ours] == [text.split() for text in reference]


def test_the_weight_matters(guided: GuidedLM, unguided: GuidedLM) -> None:
    requests = _instances("loglikelihood", PAIRS[:1])
    assert abs(guided.loglikelihood(requests)[0][0] - unguided.loglikelihood(requests)[0][0]) > 0.05


def test_a_long_text_is_scored_once_a_token(unguided: GuidedLM, base: HFModel) -> None:
    """150 tokens through a context of 64: windows of 63, each after the token before it."""
    ids = unguided.tok_encode(" ".join(f"w{(11 * k) % 50}" for k in range(150)))
    (ours,) = unguided.loglikelihood_rolling(
        _instances("loglikelihood_rolling", [(" ".join(f"w{(11 * k) % 50}" for k in range(150)),)])
    )
    expected, before, start = 0.0, [unguided.prefix_token_id], 0
    window = unguided.max_length - 1
    while start < len(ids):
        end = min(start + window, len(ids))
        if end < start + window:  # the last window is filled from the left
            before = ids[end - window - 1 : start] if start else before
        wanted = ids[start:end]
        table = _table(base, [*before, *wanted])[len(before) - 1 : -1]
        expected += float(table.gather(1, torch.tensor(wanted)[:, None]).sum())
        before, start = ids[end - 1 : end], end
    assert ours == pytest.approx(expected, abs=1e-2)


def test_a_context_that_is_too_long_loses_its_beginning(unguided: GuidedLM) -> None:
    words = [f"w{k % 50}" for k in range(100)]
    kept = unguided.max_length - 2
    pairs = [(" ".join(words), " w3 w4"), (" ".join(words[-kept:]), " w3 w4")]
    first, second = unguided.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)
    assert first[0] == pytest.approx(second[0], abs=1e-4)
    with pytest.raises(PromptError, match="A continuation has 70 tokens"):
        unguided.loglikelihood(_instances("loglikelihood", [("w1", " w2" * 70)]), disable_tqdm=True)


def test_sampling_is_seeded(base: HFModel) -> None:
    options = {"do_sample": True, "temperature": 1.0, "top_k": 20, "max_gen_toks": 10}
    request = [("w1 w2", options)]
    texts = [GuidedLM(base, seed=seed).generate_until(_instances("generate_until", request))[0] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_kept_answers_are_of_the_same_model_guides_and_weights(base: HFModel, reward: HFModel, tmp_path: Path) -> None:
    """lm-eval knows a kept answer by its question alone (`--use_cache`)."""
    from lm_eval.api.model import CachingLM

    requests = _instances("loglikelihood", [PAIRS[0]])

    def scored(place: str, **options: Any) -> list[Any]:
        model = GuidedLM(base, {"arm": ARM(reward)}, **options)
        return CachingLM(model, str(tmp_path / f"{place}.db")).loglikelihood(requests)

    first = scored("kept", weight=0.7)
    assert scored("kept", weight=0.7) == first
    with pytest.raises(OptionError, match=r"kept\.db cannot be used: weights\.arm was 0\.7, is 0\.2"):
        scored("kept", weight=0.2)
    assert scored("other", weight=0.2) != first
    other = GuidedLM(HFModel(tiny_module(seed=3), tiny_tokenizer(), name="tiny"), {"arm": ARM(reward)}, weight=0.7)
    with pytest.raises(OptionError, match=r"model\.weights was"):
        CachingLM(other, str(tmp_path / "kept.db"))

    kept = pytest.importorskip("sqlitedict")  # lm-eval's own

    with kept.SqliteDict(str(tmp_path / "strange.db"), autocommit=True) as strange:
        strange["x"] = 1.0
    with pytest.raises(OptionError, match="does not say which model"):
        scored("strange", weight=0.7)


def test_what_cannot_be_honoured_is_refused(base: HFModel) -> None:
    model = GuidedLM(base)
    with pytest.raises(OptionError, match="asks for num_beams"):
        model.generate_until(_instances("generate_until", [("w1", {"num_beams": 4})]))
    with pytest.raises(OptionError, match="256 new tokens"):
        model.generate_until(_instances("generate_until", [("w1", {})]))
    with pytest.raises(OptionError, match="give one number for each"):
        GuidedLM(base, weight="1;2")


def test_a_task_runs_from_the_command_line(tmp_path: Path) -> None:
    """Offline: a task of our own over a file, the model and a guide from directories."""
    model = tmp_path / "model"
    for seed, name in ((0, "model"), (1, "guide")):
        tiny_module(seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    docs = [{"question": f"w{k} w{k + 1}", "choices": ["w3", "w4 w5"], "label": k % 2} for k in range(8)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "ours.yaml").write_text(
        f"""task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "docs.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
    )
    arguments = f"model={model},guide={tmp_path / 'guide'},weight=0.5"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trimtab.evaluation.lm_eval", "run", "--model", "trimtab"),
            *("--model_args", arguments, "--tasks", "ours", "--include_path", str(tmp_path / "tasks")),
            *("--batch_size", "4", "--output_path", str(tmp_path / "out"), "--log_samples"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = json.loads(found.read_text())["results"]["ours"]["acc,none"]
    (samples,) = (tmp_path / "out").rglob("samples_ours_*.jsonl")
    base, guide = (HFModel(tiny_module(seed=seed), tiny_tokenizer(), name="x") for seed in (0, 1))
    ours = GuidedLM(base, {"g": ARM(guide)}, weight=0.5)
    right = 0
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        pairs = [(sample["doc"]["question"], f" {choice}") for choice in sample["doc"]["choices"]]
        expected = [score for score, _ in ours.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)]
        assert [float(one[0][0]) for one in sample["resps"]] == pytest.approx(expected, abs=1e-3)
        right += expected.index(max(expected)) == sample["doc"]["label"]
    assert accuracy == pytest.approx(right / 8)


def test_forms_and_bases_are_given_for_each_guide(base: HFModel, reward: HFModel, tmp_path: Path) -> None:
    """A whole model as a shift from another one, beside a product; a part left empty is what the card says."""
    for name, model in (("tuned", HFModel(tiny_module(seed=2), tiny_tokenizer())), ("reward", reward)):
        model.module.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    tuned, other = str(tmp_path / "tuned"), str(tmp_path / "reward")
    model = GuidedLM(base, f"{tuned};{other}", "-1;0.5", form="shift;", guide_base=f"{other};", device="cpu")
    context, wanted = "w1 w2", " w3 w4"
    [(found, _)] = model.loglikelihood(_instances("loglikelihood", [(context, wanted)]), disable_tqdm=True)
    ids = model.tok_encode(context + wanted)
    tables = {name: _table(load_model(name, device="cpu"), ids) for name in (tuned, other)}
    mixed = _table(base, ids) - (tables[tuned] - tables[other]) + 0.5 * tables[other]
    start = len(model.tok_encode(context))
    chosen = torch.log_softmax(mixed, dim=-1)[start - 1 : -1].gather(1, torch.tensor(ids[start:])[:, None])
    assert found == pytest.approx(float(chosen.sum()), abs=1e-4)
    with pytest.raises(OptionError, match="form=shift is not accepted with 2 guides"):
        GuidedLM(base, f"{tuned};{other}", form="shift")
    with pytest.raises(OptionError, match="have their form and base; leave both out"):
        GuidedLM(base, {"g": ARM(reward)}, form="shift")


def test_nothing_stands_behind_a_context_and_a_template_that_fails_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    model = GuidedLM(HFModel(tiny_module(), tokenizer), {})
    assert model.tok_encode("w3 w4") == [0, 5, 6]
    assert model.tok_encode("w3 w4", add_special_tokens=False) == [5, 6]
    assert model.apply_chat_template([{"role": "user", "content": "w3"}]) == "<s> w3 w9"
    said = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4 "}]
    assert model.apply_chat_template(said, add_generation_prompt=False) == "<s> w3 w4 "
    tokenizer.chat_template = "{{ messages[0]['content'] + 1 }}"
    with pytest.raises(PromptError, match="refuses these messages"):
        model.apply_chat_template(said)


def test_a_model_argument_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"Unknown model argument 'wieght'\. Did you mean 'weight'"):
        GuidedLM.create_from_arg_string("model=demo,wieght=1", {"batch_size": 4, "device": None})
    with pytest.raises(OptionError, match="Unknown model argument 'foo'"):
        GuidedLM.create_from_arg_obj({"model": "demo", "foo": 1})
