"""Videos side by side that are played together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .markup import plain
from .shown_files import shown_copy

SCRIPT = Path(__file__).with_name("player.js")


def lay_out_player(elem_id: str) -> Any:
    """The place of the videos, to be filled with what `player` gives."""
    import gradio as gr

    return gr.HTML(
        "", visible=False, elem_id=elem_id, elem_classes="player", js_on_load=SCRIPT.read_text(encoding="utf-8")
    )


def player(videos: Sequence[tuple[str, Path]], uploads: Path) -> str:
    """Videos with their titles and what plays them, as HTML; the first one is heard.

    Args:
        videos: titles and files.
        uploads: folder of the files that the server hands out.
    """
    figures = "".join(
        _figure(title, shown_copy(path, uploads), index > 0) for index, (title, path) in enumerate(videos)
    )
    heard = "".join(f'<option value="{index}">{plain(title)}</option>' for index, (title, _) in enumerate(videos))
    play = "Play both" if len(videos) > 1 else "Play"
    return (
        f'<div class="videos">{figures}</div><div class="control"><button type="button" data-part="play">{play}'
        '</button><input data-part="place" type="range" min="0" max="1" step="any" value="0" aria-label="place in the '
        f'videos"><label>sound of <select data-part="heard">{heard}</select></label></div>'
    )


def _figure(title: str, path: Path, is_muted: bool) -> str:
    address, muted = f"gradio_api/file={quote(str(path))}", " muted" if is_muted else ""
    video = f'<video src="{address}" preload="auto" playsinline{muted} aria-label="{plain(title)}"></video>'
    return f"<figure>{video}<figcaption>{plain(title)}</figcaption></figure>"
