"""The frame of the page: its tabs, its look, and the server."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from ..console import say
from .compare_tab import compare_tab
from .dub_tab import dub_tab
from .models_tab import models_tab
from .safety import Safety
from .state import PageApp
from .talk_tab import talk_tab
from .train_tab import train_tab
from .uploads import MEGABYTE, upload_script

TITLE = "OmniAvatar"
CSS = Path(__file__).with_name("page.css")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""
CHECKED_AT_ONCE = 4
"""Forms that are checked at a time."""
MOST_UPLOADS = 20
"""Uploads of the largest size that are kept at a time."""
CACHE_SECONDS = 24 * 3600
"""For how long uploads and copies of what was shown are kept."""
TABS = {"Talk": talk_tab, "Dub": dub_tab, "Train": train_tab, "Compare": compare_tab, "Models": models_tab}


def build_page(app: PageApp) -> gr.Blocks:
    """The page with all its tabs."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as page:
        gr.Markdown(f"# {TITLE}\nPortraits that talk, and videos in which somebody says something else.")
        with gr.Tabs():
            for name, lay_out in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    lay_out(app)
    return page


def serve(app: PageApp) -> None:
    """Serve the page until the command is interrupted.

    Raises:
        OSError: the port is taken.
    """
    args = app.args
    page = build_page(app)
    largest = args.max_upload * MEGABYTE
    safety = Middleware(Safety, uploads=app.uploads, most_bytes=MOST_UPLOADS * largest)
    try:
        _, address, shared = page.queue(default_concurrency_limit=CHECKED_AT_ONCE).launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            auth=args.auth,
            max_file_size=largest,
            theme=theme(),
            css=CSS.read_text(encoding="utf-8"),
            head=upload_script(args.max_upload),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [safety], "docs_url": None, "redoc_url": None, "openapi_url": None},
        )
        if not args.auth and (args.share or args.host not in LOOPBACK):
            say("warning: whoever reaches this address can use the page; --auth USER:PASSWORD asks for a password.")
        say(f"the page is at {address}{f' and {shared}' if shared else ''}; Ctrl-C ends it.")
        threading.Event().wait()
    finally:
        app.close()
        page.close()


def theme() -> gr.themes.Base:
    """Gradio's look with fonts that every machine has: none comes from the network."""
    look = gr.themes.Default(
        primary_hue="indigo",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    return look.set(  # gradio's own greys are too light to read
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
    )
