"""A small HTTP server on the loopback interface that can misbehave on purpose."""

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


class Handler(BaseHTTPRequestHandler):
    """Answers a request by the reply of its server."""

    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        server.paths.append(path)
        not_found = Reply(b"<html><h1>Not Found</h1></html>", status=404)
        reply = server.replies.get(path, not_found)
        if isinstance(reply, bytes):
            reply = Reply(reply)
        status, content = reply.status, reply.content
        wanted = self.headers.get("Range")
        if wanted and reply.ranges and status == 200:
            first, last = wanted.removeprefix("bytes=").split("-")
            start = int(first) if first else max(len(content) - int(last), 0)
            end = int(last) + 1 if first and last else len(content)
            status, content = 206, content[start:end]
        self.send_response(status)
        if status == 206:
            whole = len(reply.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{whole}")
        if reply.length != -1:
            self.send_header("Content-Length", f"{reply.length or len(content)}")
        self.end_headers()
        for start in range(0, len(content), reply.step):
            if reply.stall_at is not None and start >= reply.stall_at:
                server.ended.wait(15)
                return
            server.ended.wait(reply.pause)
            part = content[start : start + reply.step]
            self.wfile.write(part)
            server.sent += len(part)


class Server(ThreadingHTTPServer):
    """Serve `replies`, {path: bytes or Reply}, on a free port; all else is a 404.

    `paths` are those that were asked for, as they were spelled; `sent` counts bytes.
    """

    block_on_close = False

    def __init__(self, replies=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.replies = dict(replies)
        self.ended = threading.Event()
        self.paths = []
        self.sent = 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self.server_close()
