"""The model that a guide was trained on, where that is not the base it is packed with: from weak to strong.

GenARM (arXiv 2410.08193, section 4.2) steers a large model with a guide that was trained on a small one. The guide's
card names the small one; only its directory and its outline are needed to pack it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.directories import resolve_model
from trimtab.errors import BaseMismatchError, CheckpointError, MissingExtraError, OptionError
from trimtab.forms import SHIFT
from trimtab.models.lora import LoRA
from trimtab.models.outline import Outline

_NAME_IT = "Name it: --guide-base {name}=MODEL."


def own_base(
    name: str,
    directory: Path,
    card: Mapping[str, Any],
    form: str,
    base: Outline,
    given: str | Path | None,
    *,
    trust_remote_code: bool = False,
) -> Outline | None:
    """The model that the guide in `directory` runs on, or is measured from, where that is not `base`; else None.

    `given` names it where the card is silent or wrong. Raises OptionError where one is given to a guide that has no use
    for it, BaseMismatchError where it is needed and cannot be had.
    """
    adapter = LoRA.load(directory, card) if (directory / "adapter_config.json").exists() else None
    if adapter is None and form != SHIFT:
        if given is None:
            return None
        raise OptionError(
            f"Guide {name} is a whole model of the form {form}: it runs on no other model and is measured from none. "
            f"Leave --guide-base {name}={given} out, or give it the form {SHIFT}."
        )
    foreign = _mismatch(adapter or LoRA({}, base=card.get("base", {}), vocabulary={}), base)
    if given is None and foreign is None:
        return None
    wanted = given or _named(directory, card)
    if not wanted:
        raise BaseMismatchError(
            f"Guide {name} was not trained on {base.name}, and does not say on which model it was. "
            f"{_NAME_IT.format(name=name)}"
        ) from foreign
    try:
        found = resolve_model(wanted).resolve()
        return (
            None if found == base.directory else Outline(found, name=str(wanted), trust_remote_code=trust_remote_code)
        )
    except (CheckpointError, MissingExtraError) as error:
        raise BaseMismatchError(
            f"Guide {name} was trained on {wanted}, and not on {base.name}; but that cannot be read: {error} "
            f"{_NAME_IT.format(name=name)}"
        ) from error


def _mismatch(adapter: LoRA, base: Outline) -> BaseMismatchError | None:
    """What tells an adapter's base from this one, as far as card and shapes say."""
    try:
        adapter.check(base)
    except BaseMismatchError as error:
        return error
    return None


def _named(directory: Path, card: Mapping[str, Any]) -> str | None:
    """What the card, or else peft's configuration, calls the model that a guide was trained on."""
    name = card.get("base", {}).get("name")
    if name:
        return str(name)
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("base_model_name_or_path") or None
