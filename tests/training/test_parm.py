"""One model for several objectives: its forward pass, its loss, what it learns, and going on after the worst."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

import safetensors.torch

from trimtab.errors import CheckpointError, DataError, OptionError
from trimtab.guides.arm import AdapterARM
from trimtab.guides.parm import corner
from trimtab.storage.loading import load_guide, load_model, load_parm
from trimtab.testing import check_guide
from trimtab.training.pairs.data import PairData
from trimtab.training.pairs.formats import PreferencePair
from trimtab.training.pairs.losses import arm_loss
from trimtab.training.pairs.tokens import TokenData, TokenPair
from trimtab.training.parm.train import ParmSettings, train_parm
from trimtab.training.parm.trainer import ParmTrainer, interleaved, parm_config, parm_parts
from trimtab.training.run import checkpoints
from trimtab.training.run.arguments import RunArguments
from trimtab.training.run.settings import TrainProgress
from trimtab.training.run.trainer import build_trainer


def vowel_pairs(count: int, *, seed: int = 0) -> list[PreferencePair]:
    """Eight vowels are preferred to eight consonants; of one length, so that every pair can be told apart."""
    rng = random.Random(seed)
    return [
        PreferencePair(
            ({"role": "user", "content": f"say {rng.randrange(10**6)}"},),
            "".join(rng.choices("aeiou", k=8)),
            "".join(rng.choices("bcdfg", k=8)),
        )
        for _ in range(count)
    ]


def turned(pairs: list[PreferencePair]) -> list[PreferencePair]:
    return [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]


VOWELS, HELD = vowel_pairs(48), vowel_pairs(24, seed=1)
PAIRS = {"vowels": VOWELS, "consonants": turned(vowel_pairs(32, seed=2))}
"""Two objectives that want the opposite of each other."""
EVAL = {"vowels": HELD, "consonants": turned(HELD)}
SETTINGS = ParmSettings(
    beta=0.5,
    learning_rate=0.01,
    batch_size=4,
    gradient_accumulation=2,
    epochs=4,
    max_length=64,
    max_prompt_length=32,
    logging_steps=4,
    save_steps=8,
    lora_dropout=0.1,
)
"""Twenty-four steps of eight pairs of each objective, checkpoints after 8, 16 and 24."""


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide of a run from its beginning to its end."""
    out = tmp_path_factory.mktemp("guides") / "letters"
    train_parm(tiny, PAIRS, eval_pairs=EVAL, out=out, settings=SETTINGS)
    return out


def metrics(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "guide.json").read_text())["metrics"])


def tensors(directory: Path) -> dict[str, Tensor]:
    return dict(safetensors.torch.load_file(directory / "parm.safetensors"))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_corner_prefers_what_its_objective_wants(finished: Path) -> None:
    found = metrics(finished)["objectives"]
    for name, other in (("vowels", "consonants"), ("consonants", "vowels")):
        accuracy = found[name]["accuracy_at"]
        assert accuracy[name][0] >= 0.9
        assert accuracy[other][0] <= 0.1, "the other corner wants the opposite"
        assert accuracy[name][1] <= accuracy[name][0] <= accuracy[name][2]
    assert metrics(finished)["eval_accuracy"] >= 0.9
    assert metrics(finished)["num_eval_pairs"] == 48


def test_the_guide_that_is_loaded_does_what_was_measured(finished: Path, tiny: str) -> None:
    """Read off the decoder's own road at each vector, not off the trainer."""
    model = load_model(tiny)
    assert model.tokenizer is not None
    parm = load_parm(finished)
    assert parm.objectives == ("vowels", "consonants")
    found = metrics(finished)["objectives"]["vowels"]["accuracy_at"]
    for probe, vector in (*parm.corners().items(), ("middle", (0.5, 0.5))):
        adapted = parm.at(vector).bind(model).model
        right = 0
        for pair in HELD:
            prompt = model.tokenizer.encode_chat(pair.prompt)  # type: ignore[arg-type]
            rewards = []
            for response in (pair.chosen, pair.rejected):
                answer = [*model.tokenizer.hf(response, add_special_tokens=False)["input_ids"], 3]
                session = adapted.open()
                session.admit([[*prompt, *answer[:start]] for start in range(len(answer))])
                rewards.append(float(session.logprobs()[torch.arange(len(answer)), torch.tensor(answer)].sum()))
            right += rewards[0] > rewards[1]
        assert right / len(HELD) == found[probe][0]


def test_a_trained_vector_keeps_the_laws(finished: Path, tiny: str) -> None:
    check_guide(load_guide(finished, preference=(0.7, 0.3)), load_model(tiny), [[1, 40, 41], [9]], num_steps=3)


def test_guide_json_and_the_card_say_what_it_is(finished: Path) -> None:
    card = json.loads((finished / "guide.json").read_text())
    assert (card["format"], card["kind"], card["form"]) == (1, "parm", "bilinear")
    assert card["parm"] == {"objectives": ["vowels", "consonants"], "scale": 2.0}
    assert card["data"]["num_pairs"] == 80
    assert {name: own["num_pairs"] for name, own in card["data"]["objectives"].items()} == {
        "vowels": 48,
        "consonants": 32,
    }
    readme = (finished / "README.md").read_text()
    assert "preference=(1/2, 1/2)" in readme
    assert "| vowels | 24 |" in readme
    assert sorted(path.name for path in finished.iterdir()) == [
        *("README.md", "guide.json", "metrics.jsonl", "parm.safetensors"),
    ]
    assert [path.name for path in finished.parent.iterdir()] == ["letters"]


def test_the_curve_tells_the_objectives_apart(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24, 24]
    assert all({"loss", "accuracy", "loss_vowels", "accuracy_consonants"} <= line.keys() for line in lines[:-1])
    assert {line["num_pairs"] for line in lines[:-1]} == {64}
    assert {f"eval_accuracy_{name}_at_{probe}" for name in PAIRS for probe in (*PAIRS, "middle")} <= lines[-1].keys()


PAIRS_AS_IDS = (
    TokenPair((1, 40, 41), (50, 51, 3), (60, 61, 62, 63, 3)),
    TokenPair((1, 40, 41), (50, 51, 3), (70, 3)),
    TokenPair((1, *range(80, 110)), (52, 53, 3), (50, 3)),
    TokenPair((1, 42), (60, 3), (50, 51, 3)),
)
IDS = {"a": TokenData(PAIRS_AS_IDS[:2], 0, 0, 0), "b": TokenData(PAIRS_AS_IDS[2:], 0, 0, 0)}
SMALL = ParmSettings(
    betas={"a": 0.5, "b": 0.2},
    gamma=0.1,
    batch_size=2,
    gradient_accumulation=1,
    epochs=1,
    lora_rank=5,
    lora_alpha=7,
    preference_rank=2,
)


@pytest.fixture
def make(host: Callable[[str], Any], tmp_path: Path) -> Callable[..., ParmTrainer]:
    def build(model: str, settings: ParmSettings = SMALL) -> ParmTrainer:
        config = parm_config(settings, 2, tmp_path / "work")
        parts = parm_parts(host(model), IDS, IDS, settings, config.world_size)
        return build_trainer(parts, settings, config, RunArguments(out=tmp_path))

    return build


def shake(trainer: ParmTrainer) -> None:
    """B is 0 to begin with, so nothing would be seen of the rest."""
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(0))


def batch(trainer: ParmTrainer, name: str) -> dict[str, Tensor]:
    rows = trainer.eval_dataset[name]
    return dict(trainer.data_collator([rows[i] for i in range(len(rows))]))


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=torch.tensor([ids])).logits[0])


def test_nothing_is_changed_before_training(tiny: str, make: Callable[..., ParmTrainer]) -> None:
    trainer = make(tiny)
    ids = [1, 40, 41, 50, 51, 3]
    with trainer.model.disable_adapter():
        base = logits(trainer.model, ids)
    for vector in (corner(0, 2), corner(1, 2)):
        with trainer.cores.inserted(), trainer.cores.at(vector):
            assert torch.equal(logits(trainer.model, ids), base)


@pytest.mark.parametrize("family", ["tiny", "gemma"])
@pytest.mark.parametrize("vector", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_the_guide_at_a_vector_is_the_trained_model_at_it(
    family: str,
    vector: tuple[float, ...],
    make: Callable[..., ParmTrainer],
    host: Callable[[str], Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    from trimtab.models.adapters.bilinear import PreferenceLoRA, write

    name = request.getfixturevalue(family)
    trainer = make(name)
    shake(trainer)
    trainer.model.eval()
    write(tmp_path, trainer.cores.tensors(), dtype=torch.float32)
    card = {"parm": {"objectives": ["a", "b"], "scale": trainer.cores.scale}}
    base = host(name)
    adapted = PreferenceLoRA.load(tmp_path, card)[1].at(vector).on(base)
    ids = [1, 40, 41, 50, 51, 3]
    with trainer.cores.inserted(), trainer.cores.at(vector):
        expected = logits(trainer.model, ids).log_softmax(-1)
    session = adapted.open()
    session.admit([ids[: end + 1] for end in range(len(ids))])
    torch.testing.assert_close(session.logprobs(), expected, rtol=1e-5, atol=1e-5)
    plain = base.open()
    plain.admit([ids])
    assert not torch.allclose(plain.logprobs()[0], expected[-1], atol=0.1), "else the adapter would do nothing"


def sum_of_logprobs(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """One sequence, no padding, every logit."""
    ids = torch.tensor([[*prompt, *response]])
    logprobs = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response)]).sum()


def test_a_steps_loss_and_gradient_are_those_of_the_formula(tiny: str, make: Callable[..., ParmTrainer]) -> None:
    """Σ_k p_k · mean of −log σ(β_k · (…) − γ), all of it at the step's vector."""
    trainer = make(tiny)
    shake(trainer)
    model = trainer.model
    trainer.state.global_step = 5
    vector = trainer.preference(5)
    model.train()
    with trainer.cores.inserted():
        total = sum(trainer.compute_loss(model, batch(trainer, name)) for name in ("a", "b")) / 2
        total.backward()
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == set(names)
    model.zero_grad()
    expected = torch.zeros(())
    with trainer.cores.inserted(), trainer.cores.at(vector):
        for share, beta, name in zip(vector, (0.5, 0.2), ("a", "b"), strict=True):
            pairs = IDS[name].pairs
            chosen = torch.stack([sum_of_logprobs(model, pair.prompt_ids, pair.chosen_ids) for pair in pairs])
            rejected = torch.stack([sum_of_logprobs(model, pair.prompt_ids, pair.rejected_ids) for pair in pairs])
            expected = expected + share * arm_loss(chosen, rejected, beta=beta, gamma=0.1).mean()
        expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    for name, weight in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)


def test_only_the_adapter_learns_its_inner_matrices_too(tiny: str, make: Callable[..., ParmTrainer]) -> None:
    learns = [name for name, weight in make(tiny).model.named_parameters() if weight.requires_grad]
    assert any("preference_cores.shared" in name for name in learns)
    assert any("preference_cores.per_objective" in name for name in learns)
    assert all("lora_" in name or "preference_cores" in name for name in learns)


def test_the_inner_matrices_are_in_the_model_while_it_trains_and_no_longer(
    tiny: str, make: Callable[..., ParmTrainer]
) -> None:
    def hooks(trainer: ParmTrainer) -> list[int]:
        return [len(part._forward_hooks) for part in trainer.model.modules()]

    trainer = make(tiny)
    before, during = hooks(trainer), []
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda *given, **options: (
        during.append(sum(hooks(trainer))),
        compute_loss(*given, **options),
    )[1]
    trainer.train()
    trainer.evaluate()
    layers = len(trainer.cores.tensors())
    assert set(during) == {sum(before) + layers}, "once, in training and in evaluation"
    assert hooks(trainer) == before
    with pytest.raises(ZeroDivisionError), trainer.cores.inserted():
        raise ZeroDivisionError
    assert hooks(trainer) == before


def test_preferences_are_drawn_evenly_and_the_same_again(tiny: str, make: Callable[..., ParmTrainer]) -> None:
    trainer = make(tiny)
    drawn = torch.tensor([trainer.preference(step) for step in range(2000)])
    assert torch.allclose(drawn.sum(1), torch.ones(2000))
    assert bool((drawn >= 0).all())
    # Dirichlet(½, ½): mean ½, variance 1/8; three standard errors of the mean are 0.024.
    assert abs(float(drawn[:, 0].mean()) - 0.5) < 0.024
    assert abs(float(drawn[:, 0].var()) - 0.125) < 0.015
    assert trainer.preference(7) == make(tiny).preference(7)
    assert trainer.preference(7) != make(tiny, dataclasses.replace(SMALL, seed=1)).preference(7)


def test_objectives_take_turns_within_a_step_and_the_smaller_is_gone_through_again() -> None:
    pairs = [
        [TokenPair((1,), (40 + i,), (90, 3)) for i in range(12)],
        [TokenPair((2,), (40 + i,), (90, 3)) for i in range(5)],
    ]
    settings = ParmSettings(batch_size=2, gradient_accumulation=2, epochs=1)
    order = interleaved(pairs, settings, 1)
    assert [objective for objective, _ in order] == [0, 0, 1, 1] * 6
    assert {pair for objective, pair in order if objective == 0} == set(pairs[0])
    assert {pair for objective, pair in order if objective == 1} == set(pairs[1])
    assert [objective for objective, _ in interleaved(pairs, settings, 2)] == [0, 0, 0, 0, 1, 1, 1, 1] * 4


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("when", [3, 10, 20])
def test_a_resumed_run_ends_in_the_same_guide(when: int, finished: Path, tiny: str, tmp_path: Path) -> None:
    """Stopped before the first, after the first, and after the second checkpoint."""
    out = tmp_path / "again"

    def stop(at: TrainProgress) -> None:
        if at.step == when:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_parm(tiny, PAIRS, eval_pairs=EVAL, out=out, settings=SETTINGS, progress=stop)
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(out))) == when // 8 * 8
    train_parm(tiny, PAIRS, eval_pairs=EVAL, out=out, settings=SETTINGS, resume=True)
    assert same(tensors(out), tensors(finished))
    assert curve(out) == curve(finished)


def curve(directory: Path) -> list[tuple[Any, ...]]:
    """The lines of a curve without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [tuple(sorted((key, value) for key, value in line.items() if not key.endswith("_per_s"))) for line in lines]


def test_a_finished_run_is_not_begun_again(finished: Path, tiny: str) -> None:
    before = tensors(finished)
    result = train_parm(tiny, PAIRS, eval_pairs=EVAL, out=finished, settings=SETTINGS, resume=True)
    assert (result.num_pairs, result.num_eval_pairs) == (80, 48)
    assert same(tensors(finished), before)


QUICK = dataclasses.replace(SETTINGS, epochs=0.3, save_steps=0, lora_dropout=0.0)


def test_three_objectives_without_evaluation(tiny: str, tmp_path: Path) -> None:
    pairs = {**PAIRS, "both": PairData(tuple(vowel_pairs(8, seed=3)), ("both.jsonl",))}
    result = train_parm(tiny, pairs, out=tmp_path / "g", settings=dataclasses.replace(QUICK, eval_share=0))
    assert (result.num_pairs, result.num_eval_pairs, result.eval_accuracy) == (88, 0, None)
    guide = load_guide(tmp_path / "g", preference=(0.2, 0.3, 0.5))
    assert isinstance(guide, AdapterARM)
    assert "nothing was measured" in (tmp_path / "g" / "README.md").read_text()


def test_prompts_are_held_out_of_each_objective_and_measured_on_the_way(tiny: str, tmp_path: Path) -> None:
    heard: list[TrainProgress] = []
    settings = dataclasses.replace(QUICK, eval_share=0.25, eval_steps=1, logging_steps=1, gradient_accumulation=1)
    train_parm(tiny, PAIRS, out=tmp_path / "g", settings=settings, progress=heard.append)
    assert [at.step for at in heard if "eval_loss" in at.metrics] == [1, 2, 3]
    found = metrics(tmp_path / "g")["objectives"]
    assert {name: own["num_eval_pairs"] for name, own in found.items()} == {"vowels": 12, "consonants": 8}


def test_what_cannot_be_trained_is_refused(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "g"
    with pytest.raises(OptionError, match=r"one objective \(vowels\); a preference needs at least two"):
        train_parm(tiny, {"vowels": VOWELS}, out=out)
    with pytest.raises(OptionError, match="called 'middle'"):
        train_parm(tiny, {"vowels": VOWELS, "middle": VOWELS}, out=out)
    with pytest.raises(OptionError, match="Unknown objective 'vowel'"):
        train_parm(tiny, PAIRS, out=out, settings=ParmSettings(betas={"vowel": 0.1}))
    with pytest.raises(OptionError, match="to measure on for vowels"):
        train_parm(tiny, PAIRS, eval_pairs={"vowels": HELD}, out=out)
    with pytest.raises(DataError, match="no preference pair"):
        train_parm(tiny, {**PAIRS, "none": []}, out=out)
    assert not list(tmp_path.iterdir())


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "all weights": ({"full": True}, "is an adapter"),
    "no shared rank": ({"preference_rank": 8}, "a part of lora_rank 8"),
    "no concentration": ({"concentration": 0.0}, "concentration is 0.0"),
    "a beta of 0": ({"betas": {"a": 0.0}}, "The beta of a is 0.0"),
    "an infinite beta": ({"betas": {"a": float("inf")}}, "The beta of a is inf"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_out_of_range_are_refused(name: str) -> None:
    changes, problem = BAD_SETTINGS[name]
    with pytest.raises(OptionError, match=problem):
        ParmSettings(**changes)


def test_a_run_of_other_settings_is_not_continued(tiny: str, tmp_path: Path) -> None:
    def stop(at: TrainProgress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train_parm(tiny, PAIRS, eval_pairs=EVAL, out=tmp_path / "g", settings=QUICK, progress=stop)
    other = dataclasses.replace(QUICK, betas={"vowels": 0.3})
    with pytest.raises(OptionError, match="cannot be continued with other settings"):
        train_parm(tiny, PAIRS, eval_pairs=EVAL, out=tmp_path / "g", settings=other, resume=True)


def test_a_checkpoint_without_the_inner_matrices_is_not_gone_on_from(tiny: str, tmp_path: Path) -> None:
    """A checkpoint counts with all of its files: the one before it is used."""

    def stop(at: TrainProgress) -> None:
        if at.step == 18:
            raise Interrupted

    out = tmp_path / "g"
    with pytest.raises(Interrupted):
        train_parm(tiny, PAIRS, eval_pairs=EVAL, out=out, settings=SETTINGS, progress=stop)
    (checkpoints.workspace_of(out) / "checkpoint-16" / "cores.safetensors").unlink()
    assert checkpoints.step_of(checkpoints.last_good(checkpoints.workspace_of(out))) == 8


def test_a_guide_of_another_kind_is_not_taken_for_one(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"weighs 2 objectives \(vowels, consonants\)"):
        load_guide(finished)
    with pytest.raises(CheckpointError):
        load_parm(tmp_path)


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"gradient_checkpointing": True}], ids=str)
def test_less_memory_trains_the_same_matrices(changes: dict[str, Any], tiny: str, tmp_path: Path) -> None:
    train_parm(tiny, PAIRS, out=tmp_path / "plain", settings=QUICK)
    train_parm(tiny, PAIRS, out=tmp_path / "spared", settings=dataclasses.replace(QUICK, **changes))
    plain, spared = tensors(tmp_path / "plain"), tensors(tmp_path / "spared")
    moved = 0.0
    for name, tensor in plain.items():
        assert spared[name].dtype == torch.float32
        moved = max(moved, float((spared[name] - tensor).abs().max()))
    assert moved < (0.05 if "dtype" in changes else 1e-5), "a step moves a weight by 0.01"
