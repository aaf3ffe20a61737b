"""The page in a browser: a server on a port of its own, and a tab that notices what goes wrong in it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import soundfile
from PIL import Image

from diffsynth_omniavatar.app.demo import NEWCOMER
from diffsynth_omniavatar.media.timeline import SAMPLE_RATE
from diffsynth_omniavatar.nano.speaker.clips import draw_clip
from diffsynth_omniavatar.nano.speaker.film import draw_film
from diffsynth_omniavatar.nano.stage import write_video

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = (
    *("--no-sandbox", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
)
STARTED = 120
"""Seconds until the page answers, at most."""


@pytest.fixture(scope="session")
def browser():
    """Chromium: the one of OMNIAVATAR_BROWSER, or of the PATH."""
    playwright = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("gradio")
    path = os.environ.get("OMNIAVATAR_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(OFFLINE))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The page's own folder."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def address(browser, folder):
    """Where the page answers; the server ends in order when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "diffsynth_omniavatar", "page", "--port", str(port), "--output_path", str(folder)]
    log = folder / "server.log"
    with open(log, "w") as out:
        server = subprocess.Popen([*command, "--max_upload", "20"], cwd=ROOT, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(4 * STARTED):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=10).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.25)
        yield address
        server.terminate()
        assert server.wait(60) == 143 and "Traceback" not in log.read_text(), log.read_text()
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def page(browser, address):
    """A new browser's tab with the page; nothing in it may break or ask for anything from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    broken, elsewhere = [], []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("request", lambda request: elsewhere.append(request.url) if is_elsewhere(request.url, address) else None)
    page.goto(address)
    page.get_by_role("tab", name="Talk").wait_for()
    yield page
    context.close()
    assert broken == [] and elsewhere == []


def is_elsewhere(url, address):
    return not url.startswith((address, "data:", "blob:"))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A drawn portrait.png, short.wav of 1 s, long.wav of 2 s, film.mp4 of three people; fake.png and empty.wav."""
    folder = tmp_path_factory.mktemp("files")
    clip = draw_clip(2, 50, split="evaluation", identity=NEWCOMER, sways=False)
    Image.fromarray(clip.frames[0]).save(folder / "portrait.png")
    for name, seconds in (("short", 1), ("long", 2)):
        soundfile.write(folder / f"{name}.wav", clip.waveform[: seconds * SAMPLE_RATE], SAMPLE_RATE)
    film = draw_film(1, 18)
    write_video(folder / "film.mp4", film.frames, film.speaker.waveform)
    (folder / "fake.png").write_text("<script>alert(1)</script>")
    (folder / "empty.wav").touch()
    return folder
