"""What the page's server refuses before gradio sees it: strangers, and too many bytes."""

import shutil
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
MAX_BODY_BYTES = 16 * 2**20
"""Of one request: an upload of `server.MAX_UPLOAD` or a call with three painted canvases."""

MAX_KEPT_BYTES = 64 * 2**20
"""Of all uploads and shown pictures together; the oldest go first."""

MIN_KEPT_SECONDS = 600
"""A file that is younger is not removed for another one: a run may still read it."""

MAX_KEPT_SECONDS = 7200


class FileQuota:
    """Keeps a folder below a number of bytes and seconds; what is there at the start stays.

    A place is a file or folder.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._kept = set(folder.glob("*"))
        self._lock = threading.Lock()

    def make_room(self, num_bytes: int, min_age: float = MIN_KEPT_SECONDS) -> bool:
        """Remove what is too old, then the oldest until so many more bytes fit; say if they do."""
        with self._lock:
            places = [(_age(path), _size(path), path) for path in set(self.folder.glob("*"))]
            own = sorted((each for each in places if each[2] not in self._kept), reverse=True)
            held = sum(size for _, size, _ in own)
            for age, size, path in own:
                wanted = held + num_bytes > self.max_bytes and age > min_age
                if wanted or age > MAX_KEPT_SECONDS:
                    _remove(path)
                    held -= size
            return held + num_bytes <= self.max_bytes


def _files(path: Path) -> list[Path]:
    return [path, *path.rglob("*")] if path.is_dir() else [path]


def _age(path: Path) -> float:
    newest = max((each.stat().st_mtime for each in _files(path) if each.exists()), default=0.0)
    return time.time() - newest


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in _files(path) if each.is_file())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Guard:
    """ASGI middleware: answers loopback names and the page itself alone, and holds the quota."""

    def __init__(self, app: ASGIApp, quota: FileQuota) -> None:
        self.app, self.quota = app, quota
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is refused; hand on any other."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refusal := _stranger(headers):
            await PlainTextResponse(refusal, 403)(scope, receive, send)
            return
        if scope.get("method") not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if not length.isdecimal():
            await PlainTextResponse("Say the Content-Length.", 411)(scope, receive, send)
            return
        num_bytes = int(length)
        if num_bytes > MAX_BODY_BYTES:
            limit = f"The request is larger than {MAX_BODY_BYTES // 2**20} MB; send less at once."
            await PlainTextResponse(limit, 413)(scope, receive, send)
            return
        if not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        if not self.quota.make_room(self._arriving + num_bytes):
            full = (
                f"The page holds its {self.quota.max_bytes // 2**20} MB of uploads and pictures; "
                f"try again in {MIN_KEPT_SECONDS // 60} minutes, or restart it."
            )
            await PlainTextResponse(full, 413)(scope, receive, send)
            return
        self._arriving += num_bytes
        try:
            await self.app(scope, receive, send)
        finally:
            self._arriving -= num_bytes


def _stranger(headers: Headers) -> str:
    """Say why a request is not from this machine's own browser page, or ""."""
    hosts = headers.getlist("host")
    if len(hosts) != 1 or _name(f"//{hosts[0]}") not in LOOPBACK_NAMES:
        return "This page answers to 127.0.0.1 and localhost alone; open it by one of them."
    for origin in headers.getlist("origin"):
        if not origin.startswith(("http://", "https://")) or _name(origin) not in LOOPBACK_NAMES:
            return "This page takes nothing from other sites; use it in its own tab."
    return ""


def _name(address: str) -> str:
    """The host name of a URL, or "" if it is none."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return ""
    return "" if "@" in parts.netloc else (parts.hostname or "")
