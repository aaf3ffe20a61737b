"""The tab Dub."""

from __future__ import annotations

import gradio as gr

from .state import PageApp


def dub_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    gr.Markdown("To come.")
