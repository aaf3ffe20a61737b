"""HTML pages that stand alone: one file with style and script in it."""

from __future__ import annotations

import html

STYLE = """
body { max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.result { font-size: 1.1rem; font-weight: 600; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; margin: .75rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f4f4f4; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; }
"""
"""What all pages have."""


def page(title: str, body: str, *, style: str, script: str) -> str:
    """A page.

    Args:
        title: text.
        body: HTML, in which texts are escaped.
        style: CSS beyond the common one.
        script: JavaScript that runs when the body is there.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head><body>
{body}
<script>{script}</script></body></html>
"""
