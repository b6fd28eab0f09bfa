"""The demo's prompts: how many, of what shape, and that none is trained on."""

from __future__ import annotations

from trimtab.evaluation.prompt_sets import demo_prompts, training_prompts, training_subjects


def _texts(prompts: list[list[dict[str, str]]]) -> list[str]:
    return [prompt[0]["content"] for prompt in prompts]


def test_there_are_64_different_ones() -> None:
    prompts = demo_prompts()
    assert len(prompts) == len(set(_texts(prompts))) == 64
    assert all(len(prompt) == 1 and prompt[0]["role"] == "user" for prompt in prompts)


def test_there_are_400_to_train_on() -> None:
    prompts = training_prompts()
    assert len(prompts) == len(set(_texts(prompts))) == 400
    assert all(len(prompt) == 1 and prompt[0]["role"] == "user" for prompt in prompts)
    assert not [text for text in _texts(prompts) if "{" in text or text[-1] not in ".?"]


def test_no_prompt_and_no_subject_is_in_both() -> None:
    measured = " ".join(_texts(demo_prompts())).lower()
    subjects = training_subjects()
    assert len(subjects) == len(set(subjects)) == 80
    assert not set(_texts(demo_prompts())) & set(_texts(training_prompts()))
    assert [subject for subject in subjects if subject in measured] == []


def test_the_last_ones_are_about_subjects_of_their_own() -> None:
    """They are held out of training."""
    rest, last = (" ".join(_texts(part)) for part in (training_prompts()[:-60], training_prompts()[-60:]))
    ours = [subject for subject in training_subjects() if subject in last]
    assert len(ours) == 12
    assert [subject for subject in ours if f" {subject} " in rest or f" {subject}." in rest] == []


def test_each_call_gives_lists_of_its_own() -> None:
    demo_prompts()[0][0]["content"] = "changed"
    training_prompts()[0][0]["content"] = "changed"
    assert "changed" not in _texts(demo_prompts()) + _texts(training_prompts())
