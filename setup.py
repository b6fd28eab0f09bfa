"""What pyproject.toml cannot say: README.md as a package's page shows it, where no file of the repository is beside it.

Links to files become links into the repository that `[project.urls]` names, at this version. Where it names none, their
words stay and their targets go, and a picture becomes its description.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#)([^)\s]+)\)")


def package_page(readme: str, repository: str | None, version: str) -> str:
    """README.md without links that lead nowhere from a package's page."""

    def there(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if repository is None:
            return words
        return f"{picture}[{words}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/v{version}/{target})"

    return LINK.sub(there, readme)


def main() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    page = package_page(readme, project.get("urls", {}).get("Repository"), project["version"])
    setup(long_description=page, long_description_content_type="text/markdown")


if __name__ == "__main__":
    main()
