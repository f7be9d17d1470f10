"""A small HTTP server on the loopback interface that can misbehave on purpose."""

import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """What the server answers: `content`, and what is wrong with the answer."""

    content: bytes = b""
    status: int = 200
    length: int | str | None = None  # the Content-Length to claim; "none" sends no such header
    cut: int | None = None  # close the connection after this many bytes
    step: int = 1 << 16  # bytes to send at a time,
    pause: float = 0  # and seconds to wait after each
    stall: bool = False  # accept the request and say nothing
    gate: threading.Barrier | None = None  # to wait at, so that clients come at the same time
    ranges: bool = True  # whether byte ranges are served
    headers: dict = field(default_factory=dict)


class Server:
    """Serve `replies`, {path: bytes or Reply}, on a free port; what is not in it is a 404."""

    def __init__(self, replies=()):
        self.replies, self.ended = dict(replies), threading.Event()
        self.paths, self.ranges = [], []  # asked for, and the Range headers
        self.sent = Counter()  # {path: bytes}

    def __enter__(self):
        does = {"do_GET": lambda handler: self.answer(handler), "log_message": lambda *_: None}
        handler = type("Handler", (BaseHTTPRequestHandler,), does)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads, self.http.block_on_close = True, False
        self.http.handle_error = lambda *_: None  # clients that hang up are part of the plan
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        path, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.paths.append(path)
        self.ranges.append(wanted)
        reply = self.replies.get(path, Reply(b"<html><h1>Not Found</h1></html>", status=404))
        reply = reply if isinstance(reply, Reply) else Reply(reply)
        if reply.stall:
            return self.ended.wait(60)
        if reply.gate is not None:
            reply.gate.wait(30)
        status, content, headers = reply.status, reply.content, dict(reply.headers)
        if wanted and reply.ranges and status == 200:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted).groups()
            start = int(first) if first else max(len(content) - int(last), 0)
            end = min(int(last) + 1, len(content)) if first and last else len(content)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(content)}"
            content = content[start:end]
        if reply.length != "none":
            headers["Content-Length"] = len(content) if reply.length is None else reply.length
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        content = content[: reply.cut]
        for start in range(0, len(content), reply.step):
            handler.wfile.write(content[start : start + reply.step])
            self.sent[path] += len(content[start : start + reply.step])
            self.ended.wait(reply.pause)
