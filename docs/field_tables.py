"""Writes the tables of reference/flags.md that are made from the fields of dataclasses: `python docs/field_tables.py`.

A table stands below a comment that names it, `<!-- fields: NAME -->`, and ends at the first empty line.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from trimtab.cli import flags
from trimtab.cli.options import NOT_SAMPLING_FLAGS
from trimtab.cli.train.parm import NOT_FLAGS
from trimtab.cli.train.run_options import NOT_SETTINGS
from trimtab.fields import shown, table
from trimtab.making.settings import ChoiceSettings, SampleSettings
from trimtab.models.llama.options import LlamaOptions
from trimtab.params import SamplingParams
from trimtab.serving.limits import Limits
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.parm.settings import ParmSettings
from trimtab.training.reward.settings import RewardSettings
from trimtab.training.rl.settings import RLSettings
from trimtab.training.run.settings import ArmSettings

PAGE = Path(__file__).parent / "reference" / "flags.md"
MARK = re.compile(r"^<!-- fields: (\w+) -->\n\n(?:\|.*\n)*\n?", flags=re.MULTILINE)

Row = tuple[str, str, str]


def written(page: str) -> str:
    """The page with its tables as they should be."""
    made = tables()
    return MARK.sub(lambda mark: f"<!-- fields: {mark[1]} -->\n\n{made[mark[1]]}\n", page).rstrip("\n") + "\n"


def tables() -> dict[str, str]:
    """Name -> the table in Markdown."""
    heading = ("flag", "default", "meaning")
    by_method = settings()
    agent = by_method.pop("agent")
    return {
        "sampling": _markdown(heading, flags.rows(SamplingParams(), but=NOT_SAMPLING_FLAGS)),
        "llama": _markdown(("option", *heading[1:]), _keys(LlamaOptions())),
        "pairs": _markdown(heading, (*flags.rows(SampleSettings()), *flags.rows(ChoiceSettings()))),
        "training": _markdown((*heading, "only"), _by_method(by_method)),
        "agent": _markdown(heading, agent),
        "limits": _markdown(heading, flags.rows(Limits())),
    }


def settings() -> dict[str, list[Row]]:
    """Method -> its settings."""
    meaning = f"{table(ParmSettings)['beta'].sentence()}; repeat for several"
    beta = ("`--beta [NAME=]X`", shown(ParmSettings().beta), meaning)
    return {
        "arm": list(flags.rows(ArmSettings(), but=NOT_SETTINGS)),
        "parm": [beta, *flags.rows(ParmSettings(), but=(*NOT_SETTINGS, *NOT_FLAGS))],
        "reward": list(flags.rows(RewardSettings(), but=NOT_SETTINGS)),
        "dpo": list(flags.rows(DpoSettings(), but=NOT_SETTINGS)),
        "rl": list(flags.rows(RLSettings(), but=NOT_SETTINGS)),
        "agent": list(flags.rows(AgentSettings())),
    }


def _keys(defaults: LlamaOptions) -> Iterator[Row]:
    """Settings that are written as KEY=VALUE."""
    for name, entry in table(type(defaults)).items():
        default = entry.unset or shown(getattr(defaults, name)) or "no"
        choices = f": {', '.join(f'`{choice}`' for choice in entry.choices)}" if entry.choices else ""
        yield f"`{name}`", default, entry.sentence() + choices


def _by_method(methods: Mapping[str, Iterable[Row]]) -> Iterator[tuple[str, ...]]:
    """A row for each flag; what is another in some methods than in the first one is given with their names."""
    of_flag: dict[str, dict[str, tuple[str, str]]] = {}
    for method, rows in methods.items():
        for flag, default, meaning in rows:
            of_flag.setdefault(flag, {})[method] = (default, meaning)
    # What nearly all methods have comes last, so that what a method is about is read first.
    for flag, said in sorted(of_flag.items(), key=lambda one: len(one[1]) >= len(methods) - 1):
        only = "" if len(said) == len(methods) else ", ".join(f"`{method}`" for method in said)
        defaults = _variants({method: default for method, (default, _) in said.items()})
        yield flag, defaults, _variants({method: meaning for method, (_, meaning) in said.items()}), only


def _variants(said: Mapping[str, str]) -> str:
    methods: dict[str, list[str]] = {}
    for method, text in said.items():
        methods.setdefault(text, []).append(f"`{method}`")
    first, *others = methods
    return "; ".join([first, *(f"{', '.join(methods[text])}: {text}" for text in others)])


def _markdown(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    drawn = [f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in map(_escaped, row))}|" for row in (heading, *rows)]
    return "\n".join([drawn[0], "|---" * len(heading) + "|", *drawn[1:]]) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
