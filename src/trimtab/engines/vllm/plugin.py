"""What vLLM calls in each of its processes: the architectures of packed directories, and the checks of settings."""

from __future__ import annotations

import logging

from trimtab.engines.vllm.manifest import AGENT_ARCHITECTURE, ARCHITECTURE
from trimtab.engines.vllm.versions import tested

log = logging.getLogger(__name__)

_ROOM = "trimtab.engines.vllm"


def register() -> None:
    """The entry point `vllm.general_plugins`. Importing and calling it changes nothing for other models.

    vLLM calls it for every model, so a version without what is needed here gets a line of log and goes on.
    """
    try:
        from vllm.model_executor.models import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        from trimtab.engines.vllm.startup import AgentConfig, GuidedConfig
    except ImportError as error:
        log.warning("directories that trimtab has packed cannot be served by this vLLM (%s); %s", error, tested())
        return

    ModelRegistry.register_model(ARCHITECTURE, f"{_ROOM}.network.composite:{ARCHITECTURE}")
    ModelRegistry.register_model(AGENT_ARCHITECTURE, f"{_ROOM}.agent.model:{AGENT_ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = GuidedConfig
    MODELS_CONFIG_MAP[AGENT_ARCHITECTURE] = AgentConfig
