"""A small HTTP server on the loopback interface that can misbehave on purpose.

with Server({"name": b"content", "gone": Reply(status=404)}) as server:
    fetch(server.url + "name")
server.requests            [("name", "bytes=0-9"), ...], the paths and ranges asked for
server.sent["name"]        bytes of content that were sent, all replies together
"""

import contextlib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """What the server answers: `content`, and what is wrong with the answer.

    status: the HTTP status.
    length: the Content-Length to claim; None claims the truth, "none" sends no such header.
    cut: close the connection after this many bytes of content.
    drip: seconds between one byte and the next.
    stall: accept the request and say nothing.
    hang: fall silent after this many bytes of content.
    gate: a barrier to wait at before answering, so that clients come at the same time.
    ranges: whether byte ranges are served.
    headers: more headers.
    """

    content: bytes = b""
    status: int = 200
    length: int | str | None = None
    cut: int | None = None
    drip: float = 0
    stall: bool = False
    hang: int | None = None
    gate: threading.Barrier | None = None
    ranges: bool = True
    headers: dict = field(default_factory=dict)


class Server:
    """Serve `replies`, {path: bytes or Reply}, on a free port; what is not in it is a 404."""

    def __init__(self, replies=()):
        self.replies = dict(replies)
        self.requests, self.sent = [], Counter()
        self.ended = threading.Event()

    @property
    def paths(self):
        """The paths that were asked for, in order."""
        return [path for path, _ in self.requests]

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        self.http.handle_error = lambda *_: None  # clients that hang up are part of the plan
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, handler):
        """Answer one request as its `Reply` says."""
        path, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((path, wanted))
        reply = self.replies.get(path, Reply(b"<html><h1>Not Found</h1></html>", status=404))
        if not isinstance(reply, Reply):
            reply = Reply(reply)
        if reply.stall:
            self.ended.wait(60)
            return
        if reply.gate is not None:
            with contextlib.suppress(threading.BrokenBarrierError):
                reply.gate.wait(15)
        status, content, headers = reply.status, reply.content, dict(reply.headers)
        if wanted and reply.ranges and status == 200:
            start, end = byte_range(wanted, len(content))
            status = 206 if start < end else 416
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            content = content[start:end]
        if reply.length != "none":
            headers["Content-Length"] = len(content) if reply.length is None else reply.length
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, str(value))
            handler.end_headers()
            self.send(handler.wfile, path, content[: reply.cut][: reply.hang], reply.drip)
            if reply.hang is not None:
                self.ended.wait(60)
        except OSError:  # the client has hung up
            pass

    def send(self, file, path, content, drip):
        """Send `content`, a byte every `drip` seconds if that is not 0."""
        step = 1 if drip else 1 << 16
        for start in range(0, len(content), step):
            if drip and self.ended.wait(drip):
                return
            file.write(content[start : start + step])
            self.sent[path] += len(content[start : start + step])


def byte_range(text, size):
    """Return the first byte and the one after the last of a Range header for `size` bytes."""
    first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", text).groups()
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1 if last else size, size)
