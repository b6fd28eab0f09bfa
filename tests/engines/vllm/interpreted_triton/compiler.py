"""The half of the backend that would compile. It refuses to."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget, Language


class InterpretedBackend(BaseBackend):
    """Known to Triton, unable to compile."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: dict[str, Any]) -> object:
        return self.add_stages({}, options, Language.TRITON)

    def add_stages(self, stages: dict[str, Any], options: object, language: Language) -> None:
        raise NotImplementedError("A kernel is to be compiled. Set TRITON_INTERPRET=1 before triton is imported.")

    def load_dialects(self, context: Any) -> None:
        pass

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
