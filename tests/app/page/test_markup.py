"""Texts of others are shown as text, in whatever place of the page's HTML they stand."""

import html
from html.parser import HTMLParser

import pytest

from diffsynth_omniavatar.app.page.markup import plain
from diffsynth_omniavatar.app.page.player import player

pytestmark = pytest.mark.one_host("imports nothing of the host")

NASTY = "</video><img src=x onerror=\"alert(1)\"> 'a' ${1 + 1} {{2}} & b"


def test_nothing_of_a_text_is_markup_or_a_template():
    shown = plain(NASTY)
    assert html.unescape(shown) == NASTY
    assert not set("<>\"'${}") & set(shown)


def test_a_title_beside_a_video_makes_no_elements(tmp_path):
    (tmp_path / "a.mp4").touch()
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, [name for name, _ in attributes]))
    parser.feed(player([(NASTY, tmp_path / "a.mp4")], tmp_path))
    assert [tag for tag, _ in tags] == [
        *("div", "figure", "video", "figcaption"),
        *("div", "button", "input", "label", "select", "option"),
    ]
    assert all(not name.startswith("on") for _, names in tags for name in names)
