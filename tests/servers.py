"""A small HTTP server on the loopback interface that can misbehave on purpose."""

import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """What the server answers: `content`, and what is wrong with the answer."""

    content: bytes = b""
    status: int = 200
    length: int | None = None  # the Content-Length to claim; -1 sends no such header
    step: int = 1 << 16  # bytes to send at a time,
    pause: float = 0  # and seconds to wait before each
    stall_at: int | None = None  # say nothing more after this many bytes
    ranges: bool = True  # whether byte ranges are served


class Server:
    """Serve `replies`, {path: bytes or Reply}, on a free port; all else is a 404.

    `paths` are those that were asked for, as they were spelled; `sent` counts bytes.
    """

    def __init__(self, replies=()):
        self.replies = dict(replies)
        self.ended = threading.Event()
        self.paths = []
        self.sent = 0

    def __enter__(self):
        does = {
            "do_GET": lambda handler: self.answer(handler),
            "log_message": lambda *_: None,
        }
        handler = type("Handler", (BaseHTTPRequestHandler,), does)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.http.handle_error = lambda *_: None  # clients that hang up are expected
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        serve = threading.Thread(
            target=self.http.serve_forever, args=(0.02,), daemon=True
        )
        serve.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        path = handler.path.lstrip("/")
        self.paths.append(path)
        not_found = Reply(b"<html><h1>Not Found</h1></html>", status=404)
        reply = self.replies.get(path, not_found)
        if isinstance(reply, bytes):
            reply = Reply(reply)
        status, content = reply.status, reply.content
        headers = {}
        wanted = handler.headers.get("Range")
        if wanted and reply.ranges and status == 200:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()
            start = int(first) if first else max(len(content) - int(last), 0)
            end = int(last) + 1 if first and last else len(content)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            status, content = 206, content[start:end]
        if reply.length != -1:
            headers["Content-Length"] = reply.length or len(content)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        for start in range(0, len(content), reply.step):
            if reply.stall_at is not None and start >= reply.stall_at:
                self.ended.wait(15)
                return
            self.ended.wait(reply.pause)
            part = content[start : start + reply.step]
            handler.wfile.write(part)
            self.sent += len(part)
