"""The frame of the page: its tabs, its look, and the server."""

from __future__ import annotations

import gradio as gr

from .compare_tab import compare_tab
from .dub_tab import dub_tab
from .models_tab import models_tab
from .state import PageApp
from .talk_tab import talk_tab
from .train_tab import train_tab

TITLE = "OmniAvatar"
TABS = {"Talk": talk_tab, "Dub": dub_tab, "Train": train_tab, "Compare": compare_tab, "Models": models_tab}


def build_page(app: PageApp) -> gr.Blocks:
    """The page with all its tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs():
            for name, lay_out in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    lay_out(app)
    return page


def serve(app: PageApp) -> None:
    """Serve the page until the command is interrupted."""
    args = app.args
    build_page(app).queue().launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        auth=args.auth,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        ssr_mode=False,
    )
