"""Guides that read the states of the model that they steer: an agent after each candidate, a head before the token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trimtab.core import Guide
from trimtab.storage.cards import GuideCard
from trimtab.storage.guide_options import GuideOptions, refuse_form, refuse_preference, refuse_prompt, refuse_rule


def build_agent(directory: Path, card: GuideCard, options: GuideOptions) -> Guide:
    """An accept-reject agent. Raises CheckpointError for damaged files, OptionError for what means nothing to it."""
    from trimtab.guides.agent import Agent

    refuse_form(directory, options)
    refuse_prompt(directory, options)
    refuse_preference(directory, options)
    agent = Agent.of_directory(directory, card.written)
    if options.rule is not None:
        agent = agent.ruled_by(options.rule)
    weight = card.strength_alone(options.weight, rule=options.rule, otherwise=agent.weight)
    agent.selection.rule.check_weight(weight)
    agent = replace(agent, weight=weight)
    return agent if options.model is None else agent.bind(options.model)


def build_head(directory: Path, card: GuideCard, options: GuideOptions) -> Guide:
    """A head. Raises CheckpointError for damaged files, OptionError for what means nothing to it."""
    from trimtab.guides.head import Head
    from trimtab.models.adapters.low_rank_head import LowRankHead

    refuse_form(directory, options)
    refuse_rule(directory, options)
    refuse_preference(directory, options)
    refuse_prompt(directory, options)
    head = LowRankHead.load(directory, card.trained_on)
    guide = Head(head, weight=card.strength_alone(options.weight), card=card.written)
    return guide if options.model is None else guide.bind(options.model)
