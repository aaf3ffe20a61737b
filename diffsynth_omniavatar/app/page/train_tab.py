"""The tab Train."""

from __future__ import annotations

import gradio as gr

from .state import PageApp


def train_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    gr.Markdown("To come.")
