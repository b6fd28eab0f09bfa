"""The prompts of the sentiment demo: 64 to measure on and 400 others to train on, all of our own writing.

The 64 are package data, so that anybody can read them; the training prompts are templates filled with subjects.
No training subject occurs in the 64.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import resources

from trimtab.core import Message
from trimtab.errors import unknown_name

_SUBJECTS = {
    "thing": (
        "a wooden desk",
        "a second-hand camera",
        "a rain jacket",
        "an alarm clock",
        "a washing machine",
        "a pair of headphones",
        "a folding chair",
        "a coffee machine",
        "a board game",
        "a cookbook",
        "a tent for two people",
        "a leather wallet",
        "a desk lamp",
        "a box of chocolates",
        "a vacuum cleaner",
        "a laptop bag",
        "a garden hose",
        "a set of kitchen knives",
        "a jigsaw puzzle",
        "a frozen pizza",
    ),
    "place": (
        "a harbour town",
        "a shopping centre",
        "a swimming pool",
        "a mountain hut",
        "a hospital waiting room",
        "a public park",
        "a student dormitory",
        "an airport lounge",
        "a car park",
        "a farm in the hills",
        "a dentist's practice",
        "an art gallery",
        "a fish restaurant",
        "a motorway service station",
        "a zoo",
        "a courthouse",
        "a playground",
        "a desert village",
        "a barber's shop",
        "a factory floor",
    ),
    "event": (
        "a company picnic",
        "a house move",
        "a piano lesson",
        "a parents' evening",
        "a road trip",
        "a driving test",
        "a town council meeting",
        "a class reunion",
        "a fishing trip",
        "a funeral",
        "a cooking contest",
        "a visit to the vet",
        "a tax inspection",
        "a poetry reading",
        "a storm at sea",
        "a flat tyre",
        "a graduation",
        "a garage sale",
        "a ski holiday",
        "a trial shift",
    ),
    "work": (
        "a taxi driver",
        "a librarian",
        "a waiter",
        "a plumber",
        "a primary school pupil",
        "a security guard",
        "a florist",
        "a software tester",
        "a lorry driver",
        "a hotel cleaner",
        "a young doctor",
        "a referee",
        "a beekeeper",
        "a bank clerk",
        "a fire fighter",
        "a retired sailor",
        "a street musician",
        "a call centre agent",
        "a new parent",
        "a tour guide",
    ),
}

_TEMPLATES = {
    "thing": (
        "Write a short review of {}.",
        "Tell me about {} that you bought last year.",
        "What do people say about {} like this one?",
        "Describe {}.",
        "Write a few lines about {} and its owner.",
    ),
    "place": (
        "Describe {}.",
        "What is it like to spend an afternoon at {}?",
        "Write a visitor's review of {}.",
        "Tell a short story that takes place in {}.",
        "Write a postcard from {}.",
    ),
    "event": (
        "Tell me about {}.",
        "Describe {} from start to end.",
        "Write a diary entry about {}.",
        "What would you remember of {}?",
        "Write a message to a friend about {}.",
    ),
    "work": (
        "Describe a day in the life of {}.",
        "What is it like to be {}?",
        "Tell a story about {} and a stranger.",
        "Write two sentences about {}.",
        "What would {} say about the past year?",
    ),
}


def demo_prompts() -> list[list[Message]]:
    """The 64 prompts that `trimtab demo` measures on, as chat messages."""
    text = resources.files("trimtab").joinpath("shipped").joinpath("demo_prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in text.splitlines()]


def training_prompts() -> list[list[Message]]:
    """The 400 prompts to train on, `builtin:training`, as chat messages.

    Neighbours differ in kind, so that any stretch of the list is a fair sample of it.
    """
    texts = [
        template.format(subjects[index])
        for index in range(20)
        for turn in range(5)
        for subjects, template in ((_SUBJECTS[kind], _TEMPLATES[kind][turn]) for kind in _SUBJECTS)
    ]
    return [[{"role": "user", "content": text}] for text in texts]


PROMPT_SETS: Mapping[str, Callable[[], list[list[Message]]]] = {"demo": demo_prompts, "training": training_prompts}
"""Name -> the prompts that ship under it."""


def builtin_prompts(name: str) -> list[list[Message]]:
    """Prompts that ship with trimtab, as chat messages: `demo`, 64 to measure on, or `training`, 400 others.

    A command reads them as `builtin:demo` and `builtin:training`. Raises OptionError for another name.

    >>> from trimtab import builtin_prompts
    >>> len(builtin_prompts("demo"))
    64
    """
    if not isinstance(name, str) or name not in PROMPT_SETS:
        raise unknown_name("list of prompts that ships", str(name), PROMPT_SETS)
    return PROMPT_SETS[name]()


def training_subjects() -> list[str]:
    """What the training prompts are about, without articles."""
    return [_bare(subject) for subjects in _SUBJECTS.values() for subject in subjects]


def _bare(subject: str) -> str:
    """`a road trip` -> `road trip`."""
    return subject.removeprefix("a ").removeprefix("an ")
