"""Rollouts in batch against an episode told step by step, in plain Python, from the description of the method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from trimtab.core import Candidates, LanguageModel
from trimtab.decoding.decoder import Decoder
from trimtab.errors import CheckpointError, ModelError, NotFiniteError, PromptError
from trimtab.guides.agent import AgentNetwork
from trimtab.mixing.noise import step_key, uniforms
from trimtab.models.tabular import TabularModel
from trimtab.training.agent import recorder as agent_recorder
from trimtab.training.agent.recorder import Episode, Recorder, seed_of
from trimtab.training.agent.rollouts import LocalRollouts, Plan, Rollout, split
from trimtab.training.agent.settings import AgentSettings

MODEL = TabularModel.random(9, seed=3, scale=2.5)
"""Peaked: some steps have one survivor, others several; 0 ends an answer."""
PROMPTS: Sequence[Sequence[int]] = ([1], [2, 3], [4, 5, 6], [7], [8, 8, 1], [3, 1], [5])
SETTINGS = AgentSettings(
    hidden_dim=8, top_k=9, top_p=0.97, temperature=0.7, kl_weight=0.3, max_new_tokens=7, seed=11, warmup_batches=0
)


def weights(bias: float = 0.0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = AgentNetwork(MODEL.hidden_size, SETTINGS.hidden_dim)
    with torch.no_grad():
        network.output_linear.weight.mul_(4)
        network.output_linear.bias[1] += bias
    return network.state_dict()


def plans(first: int = 0, count: int = len(PROMPTS)) -> list[Plan]:
    return [Plan(index, PROMPTS[index % len(PROMPTS)]) for index in range(first, first + count)]


def roll(some: Sequence[Plan], *, bias: float = 0.0, settings: AgentSettings = SETTINGS, parts: int = 1) -> Rollout:
    return LocalRollouts(MODEL, settings, parts=parts).collect(some, weights(bias), ())


def told(plan: Plan, bias: float) -> tuple[list[int], list[tuple[list[float], int, float]], int, float]:
    """An episode as one would act it out: tokens, transitions (state, action, reward), forced steps, KL."""
    network = AgentNetwork(MODEL.hidden_size, SETTINGS.hidden_dim)
    network.load_state_dict(weights(bias))
    seed = seed_of(SETTINGS.seed, "episode", plan.index)
    prefix, tokens, transitions, forced, kl = list(plan.prompt), [], [], 0, 0.0
    while len(tokens) < SETTINGS.max_new_tokens and 0 not in tokens:
        scores = MODEL.next_logprobs(prefix).tolist()
        best = sorted(range(len(scores)), key=lambda token: -scores[token])[: SETTINGS.top_k]
        total, mass, survivors = sum(math.exp(scores[token]) for token in best), 0.0, []
        for token in best:
            if mass >= SETTINGS.top_p * total:
                break
            survivors.append(token)
            mass += math.exp(scores[token])
        chosen = survivors[0]
        if len(survivors) > 1:
            states = [MODEL.state([*prefix, token]) for token in survivors]
            with torch.no_grad():
                accept = [float(network(state).softmax(-1)[1]) for state in states]
            key = torch.tensor([step_key(seed, len(tokens))])
            [drawn] = uniforms(key, torch.tensor([survivors])).tolist()
            actions = [uniform < p for uniform, p in zip(drawn, accept, strict=True)]
            forced += not any(actions)
            at = actions.index(True) if any(actions) else len(survivors) - 1
            joint = [p * math.prod(1 - q for q in accept[:i]) for i, p in enumerate(accept)]
            heated = [math.exp(scores[token] / SETTINGS.temperature) for token in survivors]
            gaps = [math.log(a / sum(joint)) - math.log(b / sum(heated)) for a, b in zip(joint, heated, strict=True)]
            kl += sum(a / sum(joint) * gap for a, gap in zip(joint, gaps, strict=True))
            transitions += [(states[i].tolist(), int(i == at), -SETTINGS.kl_weight * gaps[i]) for i in range(at + 1)]
            chosen = survivors[at]
        tokens.append(chosen)
        prefix.append(chosen)
    return tokens, transitions, forced, kl


@pytest.mark.parametrize("bias", [-2.5, 0.0, 2.5])
def test_a_batch_is_its_episodes_one_by_one(bias: float) -> None:
    """Actors that reject nearly everything, that waver, and that accept nearly everything."""
    found = roll(plans(), bias=bias)
    assert [episode.index for episode in found.episodes] == list(range(len(PROMPTS)))
    assert MODEL.tokenizer is not None
    for plan, episode in zip(plans(), found.episodes, strict=True):
        tokens, transitions, forced, kl = told(plan, bias)
        assert (episode.text, episode.num_tokens) == (MODEL.tokenizer.decode(tokens), len(tokens))
        assert episode.actions.tolist() == [action for _, action, _ in transitions]
        expected = torch.tensor([state for state, _, _ in transitions]).view(-1, MODEL.hidden_size)
        torch.testing.assert_close(episode.states, expected)
        assert episode.kl_rewards.tolist() == pytest.approx([reward for *_, reward in transitions], abs=1e-4)
        assert episode.num_forced == forced
        assert episode.kl == pytest.approx(kl, abs=1e-4)
    assert sum(len(episode.states) for episode in found.episodes) >= 20
    if bias < 0:
        assert sum(episode.num_forced for episode in found.episodes) > 5


def assert_same(one: Sequence[Episode], other: Sequence[Episode]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert (left.index, left.text, left.num_forced) == (right.index, right.text, right.num_forced)
        assert torch.equal(left.actions, right.actions)
        torch.testing.assert_close(left.states, right.states)
        torch.testing.assert_close(left.kl_rewards, right.kl_rewards)


def test_an_episode_does_not_depend_on_its_company() -> None:
    together = roll(plans()).episodes
    alone = [episode for plan in plans() for episode in roll([plan]).episodes]
    assert_same(together, alone)
    assert_same(together, roll(plans(), parts=3).episodes)


def test_rows_that_come_later_are_the_later_episodes() -> None:
    network = AgentNetwork(MODEL.hidden_size, SETTINGS.hidden_dim)
    network.load_state_dict(weights())
    recorder = Recorder(network, SETTINGS, range(len(PROMPTS)))
    narrow = Decoder(MODEL, {"agent": recorder}, max_rows=2).generate(PROMPTS, max_new_tokens=7)
    assert_same(recorder.episodes([(answer.text, len(answer.token_ids)) for answer in narrow]), roll(plans()).episodes)


@pytest.mark.parametrize("looks", [(), (1,), (2, 3)])
def test_how_the_looks_are_cut_changes_nothing(looks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = roll(plans()).episodes
    monkeypatch.setattr(agent_recorder, "CPU_LOOKS", looks)
    found = roll(plans()).episodes
    assert_same(expected, found)
    assert [episode.kl for episode in found] == pytest.approx([episode.kl for episode in expected], abs=1e-5)


def test_the_same_prompt_is_answered_anew_in_another_episode() -> None:
    found = roll([Plan(index, [1]) for index in range(12)]).episodes
    assert len({episode.text for episode in found}) > 3
    other = roll([Plan(0, [1])], settings=dataclasses.replace(SETTINGS, seed=12)).episodes[0]
    assert [episode.actions.tolist() for episode in found[:1]] != [other.actions.tolist()]


def test_actions_are_drawn_with_the_actors_probability() -> None:
    """A network that gives 0.3 whatever it sees; the first candidate's action says how often it accepts."""
    settings = dataclasses.replace(SETTINGS, max_new_tokens=1)
    flat = {name: torch.zeros_like(value) for name, value in weights().items()}
    flat["output_linear.bias"] = torch.tensor([0.0, math.log(0.3 / 0.7)])
    rollouts = LocalRollouts(MODEL, settings)
    some = [Plan(index, [5]) for index in range(1500)]
    found = [rollouts.collect(part, flat, ()).episodes for part in split(some, 15)]
    asked = [episode for episodes in found for episode in episodes if len(episode.actions)]
    assert len(asked) == 1500
    share = sum(int(episode.actions[0]) for episode in asked) / len(asked)
    assert share == pytest.approx(0.3, abs=0.06)
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert asked[0].entropy / len(asked[0].actions) == pytest.approx(entropy, abs=1e-5)


def test_a_base_that_leaves_no_choice_gives_no_transitions() -> None:
    settings = dataclasses.replace(SETTINGS, top_k=1)
    episode = roll(plans(count=1), settings=settings).episodes[0]
    assert (len(episode.actions), episode.states.shape, episode.num_asked) == (0, (0, MODEL.hidden_size), 0)
    assert episode.num_tokens > 0


def test_the_bases_own_answer_is_the_greedy_one() -> None:
    found = LocalRollouts(MODEL, SETTINGS).collect(plans(), weights(), {1, 4})
    assert set(found.base_texts) == {1, 4}
    prefix, tokens = list(PROMPTS[4]), []
    while len(tokens) < SETTINGS.max_new_tokens and 0 not in tokens:
        tokens.append(int(MODEL.next_logprobs([*prefix, *tokens]).argmax()))
    assert MODEL.tokenizer is not None
    assert found.base_texts[4] == MODEL.tokenizer.decode(tokens)


def test_half_precision_states_on_request_and_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    half = dataclasses.replace(SETTINGS, state_dtype="float16")
    assert roll(plans(), settings=half).episodes[0].states.dtype == torch.float16
    monkeypatch.setattr(MODEL, "state", lambda prefix: torch.full((MODEL.hidden_size,), 1e6))
    with pytest.raises(NotFiniteError, match="not finite as float16"):
        roll(plans(), settings=half)


def test_time_is_told_apart() -> None:
    found = roll(plans())
    assert found.agent_seconds > 0
    assert found.base_seconds > 0


def test_a_prompt_that_cannot_be_answered_is_found_before_anything_runs() -> None:
    model: LanguageModel = TabularModel.random(9, seed=3, max_length=4)
    rollouts = LocalRollouts(model, SETTINGS)
    rollouts.check([[1, 2, 3]])
    with pytest.raises(PromptError, match=r"Prompt 2 of 2: The prompt has 4 tokens"):
        rollouts.check([[1], [1, 2, 3, 4]])


def test_a_model_without_text_cannot_be_rewarded() -> None:
    bare = TabularModel(lambda prefix: torch.zeros(5), 5, has_tokenizer=False)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        LocalRollouts(bare, SETTINGS)


def test_parts_are_neighbours_and_nearly_equal() -> None:
    some = plans(count=7)
    assert [[plan.index for plan in part] for part in split(some, 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [len(part) for part in split(some[:2], 3)] == [1, 1]


def test_a_candidate_at_the_edge_changes_no_others_verdict() -> None:
    """Rounding in another batch moves a token over the nucleus' edge; the luck of the others is their own."""
    network = AgentNetwork(MODEL.hidden_size, SETTINGS.hidden_dim).requires_grad_(False)

    def margins(token_ids: list[int]) -> dict[int, float]:
        recorder = Recorder(network, SETTINGS, [3, 4])
        session = recorder.open()
        session.admit([[1], [2]])
        session.advance(torch.tensor([1]), torch.tensor([5]))
        states = torch.stack([MODEL.state([token]) for token in token_ids])[None]
        some = Candidates(
            torch.tensor([token_ids]), torch.zeros(1, len(token_ids)), hidden=states, rows=torch.tensor([1])
        )
        return dict(zip(token_ids, session.score(some)[0].tolist(), strict=True))

    whole, fewer = margins([7, 2, 5, 3]), margins([7, 5, 3])
    assert {token: whole[token] for token in fewer} == pytest.approx(fewer, abs=1e-6)


def test_a_batch_that_had_to_be_made_anew_is_no_recording() -> None:
    recorder = Recorder(AgentNetwork(MODEL.hidden_size, SETTINGS.hidden_dim), SETTINGS, [0])
    recorder.open()
    with pytest.raises(ModelError, match="Roll out anew"):
        recorder.open()
