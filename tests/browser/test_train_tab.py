"""A training is followed in the browser, found again after a reload, stopped, and its checkpoint compared."""

import re
import shutil

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.one_host("the page needs packages that DiffSynth 1.1.9 does not go with"),
]

PATIENCE = 300_000
"""Milliseconds in which a machine that does other things too loads the model and does some steps."""


def fill(page, field, text):
    box = page.locator(f"#train-{field}").locator("input, textarea").first
    box.fill(text)
    box.press("Tab")


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def steps_done(page):
    told = re.search(r"step (\d+) of 20", page.locator("#train-status").inner_text())
    return int(told[1]) if told else 0


def wait_for_step(page, step):
    told = """step => {
        const found = document.querySelector("#train-status").innerText.match(/step (\\d+) of/);
        return found && Number(found[1]) >= step;
    }"""
    page.wait_for_function(told, arg=step, timeout=PATIENCE)


def test_a_training_is_followed_through_a_reload_stopped_and_its_checkpoint_compared(page, files, folder):
    open_tab(page, "Train")
    fill(page, "name", "../up")
    fill(page, "steps", "20")
    page.locator("#train-draw").click()
    page.locator("#train-data input").and_(page.locator(":visible")).wait_for()
    page.wait_for_function("() => document.querySelector('#train-data input').value.endsWith('drawn person')")
    page.get_by_role("button", name="Advanced settings").locator("visible=true").click()
    fill(page, "size", "128x128x17")
    fill(page, "videos", "0")
    page.locator("#train-start").click()
    page.get_by_text("cannot be the name of a run").wait_for()
    assert not (folder / "runs").exists() and not (folder / "up").exists()

    fill(page, "name", 'a "run"')
    page.locator("#train-start").click()
    page.get_by_text("cannot be the name of a run").wait_for()
    fill(page, "name", "a run")
    page.locator("#train-start").click()
    page.get_by_text("a run is started.").wait_for()
    wait_for_step(page, 4)
    page.locator("#train-validation svg circle").first.wait_for(timeout=PATIENCE)

    page.reload()
    open_tab(page, "Train")
    before = steps_done(page)
    page.locator("#train-status").get_by_text("Running").wait_for()
    page.locator("#train-loss svg").wait_for()
    wait_for_step(page, before + 1)
    assert "--max_steps 20" in page.locator("#train-command textarea").input_value()

    page.locator("#train-stop").click()
    page.locator("#train-status").get_by_text("Stopped").wait_for(timeout=PATIENCE)
    page.locator("#train-resume").wait_for()
    done = max(int(path.name[5:]) for path in (folder / "runs" / "a run").glob("step-*"))
    assert 4 <= done < 20 and "got SIGTERM" in (folder / "runs" / "a run" / "train.log").read_text()

    open_tab(page, "Compare")
    for side, checkpoint in (("a", "nano"), ("b", f"a run/step-{done}")):
        box = page.locator(f"#compare-{side} input")
        box.fill(checkpoint)
        box.press("Tab")
    page.locator("#compare-image input[type=file]").set_input_files(files / "portrait.png")
    page.locator("#compare-audio input[type=file]").set_input_files(files / "short.wav")
    page.locator("#compare-image img").wait_for()
    page.locator("#compare-audio").get_by_label("Clear").wait_for()
    page.locator("#compare-preset").get_by_label("draft").check()
    page.locator("#compare-make").click()
    page.locator("#compare-player video").nth(1).wait_for(timeout=PATIENCE)
    videos = "[...document.querySelectorAll('#compare-player video')]"
    page.wait_for_function(f"() => {videos}.every(video => video.readyState >= 2)")
    page.locator("#compare-player").get_by_role("button", name="Play both").click()
    page.wait_for_function(f"() => {videos}.every(video => video.currentTime > 0.2)")
    first, second = page.evaluate(f"() => {videos}.map(video => video.currentTime)")
    assert abs(first - second) < 0.5

    open_tab(page, "Talk")
    page.locator("#talk-model input").click()
    page.get_by_role("option", name=f"a run/step-{done} (I2V)").click()
    open_tab(page, "Train")
    shutil.rmtree(folder / "runs" / "a run")
    page.get_by_text("The run a run is no longer there").wait_for()
    assert not page.locator("#train-resume").is_visible()
    open_tab(page, "Talk")
    page.locator("#talk-make").click()
    page.get_by_text("There is no run a run: choose another checkpoint.").wait_for()
