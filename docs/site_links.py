"""For the built site: files of the repository that are no page are named there, and not linked to.

On the repository's own pages such a link leads to the file. The site has no such file, and mkdocs would end its build.
"""

import re
from pathlib import PurePosixPath
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with each link that leaves the folder of pages replaced by its text."""
    return leave_out(markdown, PurePosixPath(page.file.src_uri).parent)


def leave_out(markdown: str, folder: PurePosixPath) -> str:
    return LINK.sub(lambda found: found[1] if _leaves(folder, found[2]) else found[0], markdown)


def _leaves(folder: PurePosixPath, target: str) -> bool:
    """Whether a relative link climbs out of the pages' folder."""
    if "://" in target:
        return False
    depth = 0
    for part in (folder / target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
