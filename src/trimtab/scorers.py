"""The name under which the model cards of reward models written by version 0.1 import `load_reward_model`."""

from trimtab.storage.scorers import load_reward_model

__all__ = ["load_reward_model"]
