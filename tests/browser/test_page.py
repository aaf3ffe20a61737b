"""The page does in a browser what it says: talk, dub, cancel, tell what is wrong, and go on through a reload."""

import re
import shlex
from pathlib import Path

import pytest

from diffsynth_omniavatar.app.cli import parse
from diffsynth_omniavatar.media.video import probe_video

pytestmark = pytest.mark.browser

NASTY = "A person <img src=x onerror=\"document.title='broken'\"> ${1 + 1} {{2}} talks."


def send(page, tab, portrait, speech, quality):
    page.locator(f"#{tab}-image input[type=file]").set_input_files(portrait)
    page.locator(f"#{tab}-audio input[type=file]").set_input_files(speech)
    page.locator(f"#{tab}-preset").get_by_label(quality).check()
    page.locator(f"#{tab}-image img").wait_for()
    page.locator(f"#{tab}-audio").get_by_label("Clear").wait_for()


def status(page):
    return page.locator(".status:visible").first


def made_video(page, tab):
    """The finished video's element, once it can be played."""
    video = page.locator(f"#{tab}-result video")
    video.wait_for()
    page.wait_for_function("video => video.readyState >= 2 && video.videoWidth > 0", arg=video.element_handle())
    return video


def out_of(page, tab):
    """The parsed equal command line."""
    words = shlex.split(page.locator(f"#{tab}-command textarea").input_value())
    assert words[0] == "omniavatar"
    return parse(words[1:])


def test_a_portrait_talks(page, files, tmp_path):
    send(page, "talk", files / "portrait.png", files / "short.wav", "draft")
    page.locator("#talk-prompt textarea").fill(NASTY)
    page.get_by_role("button", name="Make the video").click()
    page.locator(".preview img[src^='data:image/webp']").wait_for()  # seen while it is made
    video = made_video(page, "talk")
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [128, 128]
    args = out_of(page, "talk")
    assert args.prompt == NASTY and args.steps == 2
    assert f"seed {args.seed}" in page.locator(".facts:visible").first.inner_text()
    with page.expect_download() as saved:
        page.locator("#talk-download").click()
    saved.value.save_as(tmp_path / "saved.mp4")
    assert (tmp_path / "saved.mp4").read_bytes() == Path(args.out).read_bytes()
    assert probe_video(args.out).has_sound and probe_video(args.out).frames == 33
    assert page.title() == "OmniAvatar"


def test_a_job_goes_on_through_a_reload_and_keeps_what_is_done_when_cancelled(page, files):
    send(page, "talk", files / "portrait.png", files / "long.wav", "best")
    page.get_by_role("button", name="Make the video").click()
    status(page).get_by_text("Chunk 1 of 3").wait_for()
    prompt = page.locator("#talk-prompt textarea").input_value()
    page.reload()
    status(page).get_by_text(re.compile("Chunk [12] of 3")).wait_for()
    page.locator("#talk-image img").wait_for()  # what was filled in is there again
    assert page.locator("#talk-prompt textarea").input_value() == prompt
    status(page).get_by_text("Chunk 2 of 3").wait_for()
    page.locator("#talk-cancel").click()
    status(page).get_by_text("Cancelled; the part that was done is below.").wait_for()
    made_video(page, "talk")
    assert 0 < probe_video(out_of(page, "talk").out).frames < 58
    assert not page.locator("#talk-cancel").is_visible()


def test_what_is_wrong_is_told_where_it_was_made(page, files):
    make = page.get_by_role("button", name="Make the video")
    make.click()
    page.get_by_text("Nothing here yet: give a picture.").wait_for()
    assert page.get_by_text("Nothing here yet: give a sound.").is_visible()
    for kind, sent, told in (
        ("image", "short.wav", "short.wav is not a picture; wanted .png,"),
        ("audio", "portrait.png", "portrait.png is not a sound; wanted .wav,"),
        ("audio", "empty.wav", "empty.wav is empty"),
    ):
        page.locator(f"#talk-{kind} input[type=file]").set_input_files(files / sent)
        page.locator(".field", has=page.locator(f"#talk-{kind}")).last.get_by_text(told).wait_for()
    assert page.locator(".toast-body").count() == 0
    page.locator("#talk-image input[type=file]").set_input_files(files / "fake.png")
    page.locator("#talk-audio input[type=file]").set_input_files(files / "short.wav")
    page.locator("#talk-audio").get_by_label("Clear").wait_for()
    page.get_by_text("Advanced settings").first.click()
    page.locator("#setting-crf textarea, #setting-crf input").first.fill("60")
    make.click()
    page.get_by_text("Crf is 60, wanted 0 to 51").wait_for()
    field = page.locator(".field", has=page.locator("#setting-crf"))
    assert field.last.get_by_role("alert").inner_text() == "Crf is 60, wanted 0 to 51"
    page.locator("#setting-crf textarea, #setting-crf input").first.fill("")
    make.click()
    page.get_by_text("The portrait cannot be read as an image").wait_for()
    portrait = page.locator(".field", has=page.locator("#talk-image")).last
    assert "The portrait cannot be read" in portrait.get_by_role("alert").inner_text()
    assert status(page).inner_text() == "The video appears here."


def test_the_chosen_face_is_dubbed(page, files):
    page.get_by_role("tab", name="Dub").click()
    page.locator("#dub-video input[type=file]").set_input_files(files / "film.mp4")
    sheet = page.locator("#dub-faces img")
    sheet.wait_for()
    choice = page.locator("#dub-face")
    assert [label.split(":")[0] for label in choice.locator("label").all_inner_texts()][1:-1] == ["1", "2", "3"]
    page.reload()  # the faces are there again
    page.get_by_role("tab", name="Dub").click()
    sheet.wait_for()
    choice.get_by_label("3: ").check()
    place = sheet.bounding_box()
    sheet.click(position={"x": 0.87 * place["width"], "y": 0.6 * place["height"]})
    page.wait_for_function("document.querySelector('#dub-face input:checked').value == '2'")
    page.reload()
    page.get_by_role("tab", name="Dub").click()
    page.wait_for_function("document.querySelector('#dub-face input:checked')?.value == '2'")
    page.locator("#dub-audio input[type=file]").set_input_files(files / "short.wav")
    page.locator("#dub-audio").get_by_label("Clear").wait_for()
    page.locator("#dub-preset").get_by_label("draft").check()
    page.get_by_label("If the speech is longer").click()
    page.get_by_role("option", name="end with the video").click()
    page.get_by_role("button", name="Dub the video").click()
    made_video(page, "dub")
    args = out_of(page, "dub")
    assert (args.face, args.extend, args.steps) == (["2"], "stop", 2)
    assert probe_video(args.out).frames == 18


def test_every_field_has_a_name_and_a_phone_shows_all_of_it(page):
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Talk", "Dub", "Models"):
        if not page.get_by_role("tab", name=tab).is_visible():
            page.locator(".overflow-menu button").first.click()
            page.locator(".overflow-dropdown button", has_text=tab).click()
        else:
            page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        nameless = page.evaluate(NAMELESS)
        assert nameless == [], tab


NAMELESS = """
() => [...document.querySelectorAll('input, textarea, select, button')].filter(one => {
    if (!one.checkVisibility() || one.type === 'hidden') return false;
    const named = one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.title
        || [...(one.labels || [])].some(label => label.innerText.trim()) || one.innerText.trim();
    return !named;
}).map(one => one.outerHTML.slice(0, 200))
"""
