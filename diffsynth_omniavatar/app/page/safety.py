"""What the server refuses beside what gradio does: addresses of others, and uploads without end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # gradio's own page has scripts in it
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'self' data: blob:",
        "frame-ancestors 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
"""What browsers may load for the page."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Safety:
    """ASGI middleware around gradio's server.

    Args:
        app: the server.
        uploads: the folder of uploads.
        most_bytes: that may lie in it before another one is refused.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], uploads: Path, most_bytes: int) -> None:
        self._app, self._uploads, self._most_bytes = app, uploads, most_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        refusal = self._refusal(scope) if scope["type"] == "http" else None
        try:
            if refusal is None:
                await self._app(scope, receive, with_headers)
                return
        except OSError as error:
            if not is_upload(scope):
                raise
            refusal = 507, f"the server cannot keep it ({error.strerror})."
        status, text = refusal
        await with_headers({"type": "http.response.start", "status": status, "headers": []})
        await with_headers({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        """Status and text for what is not answered."""
        path = scope["path"]
        if asks_elsewhere(path):
            return 403, "The page serves its own files alone."
        if is_upload(scope) and bytes_in(self._uploads) > self._most_bytes:
            return 507, "there are too many uploads: try again tomorrow, or start the page again."
        return None


def is_upload(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request sends a file."""
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def asks_elsewhere(path: str) -> bool:
    """Whether a path asks the server to fetch an address: gradio's proxy=..., and its file=http://..."""
    _, found, file = path.partition("/file=")
    return (bool(found) and "://" in unquote(file)) or "/proxy=" in path


def bytes_in(folder: Path) -> int:
    """Size of the files in a folder; a file that has several names counts nothing, as it takes no room of its own."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found = file.lstat()
            total += found.st_size if found.st_nlink == 1 else 0
    return total
