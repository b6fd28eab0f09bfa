"""The pictures of the playground in docs/images: what a person sees, taken from a server that runs.

trimtab serve --config recipes/serve.yaml &
python recipes/playground_screenshots.py http://127.0.0.1:8000/ docs/images
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

PROMPT = "How was your weekend by the sea?"
WAIT_MS = 240_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = asked(browser, url, viewport={"width": 1280, "height": 800})
        wait(page)
        page.locator("#guided .token.raised").nth(2).click()
        page.wait_for_timeout(400)
        page.screenshot(path=folder / "playground-why.png")
        page = asked(browser, url, viewport={"width": 1280, "height": 800}, color_scheme="dark")
        wait(page)
        page.screenshot(path=folder / "playground-dark.png")
        page = asked(browser, url, viewport={"width": 390, "height": 844})
        wait(page)
        page.screenshot(path=folder / "playground-phone.png")
        browser.close()


def asked(browser: Browser, url: str, **how: Any) -> Page:
    """The page with a guide turned on, just after Send."""
    page = browser.new_context(**how).new_page()
    page.goto(f"{url}#seed=4&max=48&temperature=0.8&w.positive=1.5")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Send").click()
    return page


def wait(page: Page) -> None:
    """Until both answers have ended."""
    expect(page.get_by_role("status")).to_have_text(re.compile("Guided: "), timeout=WAIT_MS)


if __name__ == "__main__":
    main()
