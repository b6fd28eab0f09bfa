"""One repair of Triton's interpreter: a mask made with integer arithmetic counts as a mask, as it does when compiled.

vLLM's n-gram drafter makes such masks; unrepaired, the interpreter's load reads them byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def cast_masks() -> None:
    """Make the interpreter's masked loads and stores cast their mask to bool. Once is enough; twice does no harm."""
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(InterpreterBuilder, name, _casting(getattr(InterpreterBuilder, name), place))


def _casting(method: Callable[..., Any], place: int) -> Callable[..., Any]:
    @wraps(method)
    def cast(self: InterpreterBuilder, *values: Any) -> Any:
        mask = values[place]
        return method(self, *values[:place], TensorHandle(mask.data.astype(bool), mask.dtype), *values[place + 1 :])

    return cast
