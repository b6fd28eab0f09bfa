"""The model card of an accept-reject agent, from the same facts as its `guide.json`."""

from __future__ import annotations

import json

from trimtab.training.run import card as run_card
from trimtab.training.run.identity import Facts

_PACKAGES = ("trimtab", "torch", "transformers", "torchrl", "tensordict")


def versions() -> dict[str, str]:
    """Versions of what trained the agent."""
    return run_card.versions(_PACKAGES)


def agent_card(card: Facts) -> str:
    """`README.md`."""
    base, data, metrics = card["base"], card["data"], card["metrics"]
    rewards = ", ".join(f"{term['multiplier']:g} × {term['name']} (`{term['source']}`)" for term in card["rewards"])
    lines = [
        "---",
        f"tags: {json.dumps(['trimtab', 'reward-guided-decoding', 'accept-reject'])}",
        "---",
        "",
        "# A guide for trimtab",
        "",
        f"An accept-reject agent (MARA, arXiv 2505.19743) trained on `{base['name']}`: a small network that reads the "
        "model's state after each candidate token and accepts or rejects it. It runs on any model of the same hidden "
        f"size ({base['hidden_size']}).",
        "",
        "```python",
        "import trimtab",
        "",
        f"model = trimtab.load_model({json.dumps(base['name'])})",
        'agent = trimtab.load_guide("path/to/this/directory")',
        'decoder = trimtab.Decoder(model, guides={"agent": agent})',
        "```",
        "",
        "## Training",
        "",
        f"Reward: {rewards}. {metrics['num_episodes']} episodes over {data['num_prompts']} prompts "
        f"({', '.join(data['files']) or 'given in Python'}; fingerprint `{data['fingerprint'][:16]}`), "
        f"{metrics['num_updates']} updates. Left out: {metrics['num_dropped']} episodes without a finite reward and "
        f"{metrics['num_empty']} in which every step had a single candidate.",
        "",
        *_measured(metrics),
        "",
        *run_card.settings_and_versions(card),
    ]
    return "\n".join(lines) + "\n"


def _measured(metrics: Facts) -> list[str]:
    if "reward" not in metrics:
        return ["No episode of the last window of training had a reward."]
    return [
        f"In the last {metrics['last_window']} episodes of training, in which it draws its decisions: mean reward "
        f"{metrics['reward']:.4g}, {metrics.get('acceptance', 0):.3f} of the candidates accepted, KL to the base over "
        f"the candidates {metrics['kl']:.4g} nats an answer. These are training answers, not a measurement of what the "
        "agent does to others."
    ]
