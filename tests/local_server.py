"""A web server on 127.0.0.1 that misbehaves on request, for tests of downloads."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """Serve `files` (path without the leading slash -> bytes) and do what `faults` says.

    faults: path -> list of dicts, one for each request in turn, then none. Keys: "cut" or
    "stall" (after so many bytes, "seconds" long), "ignore_range", "ignore_if_range",
    "range_start" (wrong Content-Range), "etag", "status", "headers", "html" (a page with 200),
    "replace" (other bytes from now on), "redirect", "chunked" (no length is told).
    requests: (path, Range header) of every request so far. pace: seconds between two pieces of
    64 KiB.
    """

    def __init__(self):
        self.files, self.faults, self.requests, self.pace = {}, {}, [], 0.0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (_Handler,), {"site": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    site: LocalServer

    def log_message(self, *args):
        pass

    def do_GET(self):
        path, asked = self.path.lstrip("/"), self.headers.get("Range")
        self.site.requests.append((path, asked))
        queue = self.site.faults.get(path)
        fault = queue.pop(0) if queue else {}
        if "replace" in fault:
            self.site.files[path] = fault["replace"]
        if "redirect" in fault:
            return self.answer(302, {"Location": fault["redirect"], **fault.get("headers", {})})
        if "html" in fault:
            return self.answer(200, {"Content-Type": "text/html"}, fault["html"])
        if "status" in fault:
            return self.answer(fault["status"], fault.get("headers", {}), b"sorry")
        if path not in self.site.files:
            return self.answer(404, {}, b"no such file")
        self.send_content(self.site.files[path], asked, fault)

    def send_content(self, content, asked, fault):
        etag = fault.get("etag", f'"{hashlib.sha1(content).hexdigest()}"')
        same = fault.get("ignore_if_range") or self.headers.get("If-Range") in (None, etag)
        headers = {"ETag": etag} if etag else {}
        start, status = 0, 200
        if asked and same and not fault.get("ignore_range"):
            start, status = int(re.match(r"bytes=(\d+)-$", asked)[1]), 206
            if start >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            start = fault.get("range_start", start)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault.get("chunked"):
            self.protocol_version = "HTTP/1.1"
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        self.answer(status, headers, content[start:], fault)

    def answer(self, status, headers, body=b"", fault=None):
        fault = fault or {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if fault.get("chunked"):
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        body = body[: fault.get("cut", fault.get("stall"))]
        piece = 1 << 16 if self.site.pace else len(body) or 1
        with contextlib.suppress(ConnectionError):  # the client was killed
            for start in range(0, len(body), piece):
                self.wfile.write(body[start : start + piece])
                if self.site.pace:
                    time.sleep(self.site.pace)
        if "stall" in fault:
            time.sleep(fault.get("seconds", 3.0))
        self.close_connection = True
