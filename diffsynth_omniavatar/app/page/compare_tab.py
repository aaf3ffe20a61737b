"""The tab Compare: two checkpoints side by side, and evaluations."""

from __future__ import annotations

import gradio as gr
from gradio.context import Context

from .evaluation_panel import EvaluationPanel
from .pair_panel import PairPanel
from .readable import Readable
from .state import PageApp
from .training_runs import TrainingRuns


def compare_tab(app: PageApp) -> None:
    """Lay out the tab, inside `gr.Tab`."""
    tab = Context.block
    readable, runs = Readable(app.readable_folders), TrainingRuns(app.runs)
    with gr.Tabs():
        with gr.Tab("Two checkpoints", id="checkpoints"):
            PairPanel(app, runs, readable).connect(tab)
        with gr.Tab("Evaluations", id="evaluations"):
            EvaluationPanel(app, readable).connect(tab)
