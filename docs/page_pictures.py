"""Makes the pictures of docs/page.md and README.md: `python docs/page_pictures.py`, with `omniavatar page` running."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parent
WIDTH = 1100
"""Pixels of a picture; the browser's are as many."""


def main(address: str = "http://127.0.0.1:7860") -> None:
    """Drive the page with its drawn examples."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(180_000)
        page.goto(address)
        talk(page)
        save(page, "page_talk.webp")
        dub(page)
        save(page, "page_dub.webp")
        train(page)
        save(page, "page_train.webp", above="#train-command")
        browser.close()


def talk(page: Page) -> None:
    """Until the example's video can be played; at a moment when somebody speaks."""
    page.locator("#talk-example").click()
    page.locator("#talk-audio").get_by_label("Clear").wait_for()
    page.locator("#talk-make").click()
    page.locator("#talk-result video").wait_for()
    page.locator("#talk-result video").evaluate("video => { video.currentTime = 1.1; }")
    page.wait_for_timeout(1500)


def dub(page: Page) -> None:
    """Until the faces of the example's film are found."""
    page.get_by_role("tab", name="Dub").click()
    page.locator("#dub-example").click()
    page.locator("#dub-faces img").wait_for()
    page.locator("#dub-face").get_by_label("2: ").check()
    page.wait_for_timeout(1000)


def train(page: Page) -> None:
    """A run of the small model on its drawn clips, until it has ended."""
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-draw").click()
    page.get_by_text("Drawn: ").wait_for()
    page.locator("#train-name").locator("input, textarea").fill("drawn person")
    page.locator("#train-steps input").fill("20")
    page.locator("#train-start").click()
    page.locator("#train-status").get_by_text("Finished").wait_for(timeout=1_200_000)
    page.wait_for_timeout(3000)


def save(page: Page, name: str, above: str | None = None) -> None:
    """Write the page as a picture: the whole of it, or what is above an element."""
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    if above is not None:
        top = page.locator(above).evaluate("element => element.getBoundingClientRect().top + scrollY")
        picture = picture.crop((0, 0, picture.width, int(top)))
    picture.save(DOCS / name, quality=80, method=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
