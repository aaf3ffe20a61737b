"""The tab Models."""

from __future__ import annotations

import gradio as gr

from .state import PageApp


def models_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    gr.Markdown("To come.")
