"""The tables of reference/cli.md that are made from the fields of dataclasses: `python docs/field_tables.py` writes them.

A table stands below a comment that names it, `<!-- fields: NAME -->`, and ends at the first empty line.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from trimtab.cli import flags
from trimtab.cli.options import NOT_SAMPLING_FLAGS
from trimtab.cli.train.parm import NOT_FLAGS
from trimtab.cli.train.run_options import NOT_SETTINGS
from trimtab.params import SamplingParams
from trimtab.serving.limits import Limits
from trimtab.training.agent.settings import AgentSettings
from trimtab.training.dpo.settings import DpoSettings
from trimtab.training.parm.settings import ParmSettings
from trimtab.training.reward.settings import RewardSettings
from trimtab.training.rl.settings import RLSettings
from trimtab.training.run.settings import ArmSettings, PairSettings, RunSettings

PAGE = Path(__file__).parent / "reference" / "cli.md"
MARK = re.compile(r"^<!-- fields: (\w+) -->\n(?:\|.*\n)*", flags=re.MULTILINE)

Row = tuple[str, str, str]


def tables() -> dict[str, str]:
    """Name -> the table in Markdown."""
    run = list(flags.rows(RunSettings(), but=NOT_SETTINGS))
    pairs = [row for row in flags.rows(PairSettings(), but=NOT_SETTINGS) if row not in run]
    shared = [*run, *pairs]
    rows: dict[str, Iterable[Row]] = {
        "sampling": flags.rows(SamplingParams(), but=NOT_SAMPLING_FLAGS),
        "run": run,
        "pairs": pairs,
        "arm": _beyond(shared, flags.rows(ArmSettings(), but=NOT_SETTINGS)),
        "reward": _beyond(shared, flags.rows(RewardSettings(), but=NOT_SETTINGS)),
        "dpo": _beyond(shared, flags.rows(DpoSettings(), but=NOT_SETTINGS)),
        "parm": _beyond(shared, flags.rows(ParmSettings(), but=(*NOT_SETTINGS, *NOT_FLAGS))),
        "rl": _beyond(run, flags.rows(RLSettings(), but=NOT_SETTINGS)),
        "agent": flags.rows(AgentSettings()),
        "limits": flags.rows(Limits()),
    }
    return {name: "".join(_lines(each)) for name, each in rows.items()}


def written(page: str) -> str:
    """The page with its tables as they should be."""
    made = tables()
    return MARK.sub(lambda found: f"<!-- fields: {found[1]} -->\n{made[found[1]]}", page)


def _beyond(shared: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """The rows that a shared table does not have, word for word."""
    known = set(shared)
    return [row for row in rows if row not in known]


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    yield "| flag | default | meaning |\n|---|---|---|\n"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
