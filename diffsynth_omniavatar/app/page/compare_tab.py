"""The tab Compare: two checkpoints side by side, and evaluations."""

from __future__ import annotations

import gradio as gr
from gradio.context import Context

from .evaluation_panel import EvaluationPanel
from .pair_panel import PairPanel
from .state import PageApp
from .training_form import MODES


def compare_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    tab = Context.block
    with gr.Tabs():
        for mode, title in MODES.items():
            with gr.Tab(title, id=mode):
                PairPanel(app, dubs=mode == "v2v").connect(tab)
        with gr.Tab("Evaluations", id="evaluations"):
            EvaluationPanel(app).connect(tab)
