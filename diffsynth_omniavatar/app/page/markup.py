"""Texts of others in the page's HTML."""

from __future__ import annotations

import html


def plain(text: str) -> str:
    """Text as HTML that shows it, whatever is in it."""
    return html.escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")
