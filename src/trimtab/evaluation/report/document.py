"""The skeleton that every HTML page of an evaluation stands in: one file that may load nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping


def html_document(title: str, style: str, body: str, *, after: str = "", scripted: bool = False) -> str:
    """A whole page. `title` is plain text; `style` is CSS, and `body` and what stands `after` it are HTML of our own.

    A content policy lets the page load nothing; scripts that stand in it run only where it is `scripted`.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'" + ("; script-src 'unsafe-inline'" if scripted else "")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} - trimtab</title>
<style>{style}</style>
</head>
<body>
<main>
{body}</main>
{after}</body>
</html>
"""


def filled(template: str, fields: Mapping[str, str]) -> str:
    """A template with each {{name}} replaced.

    It is split rather than replaced one field after another: what an answer says must not be taken for a field.
    """
    parts = template.split("{{")
    return parts[0] + "".join(fields[name] + after for name, after in (part.split("}}", 1) for part in parts[1:]))
