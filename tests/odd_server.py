"""A website that serves one file under odd names, and whose connections are cut or never end."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def odd_website(content: bytes):
    """The address of a server; `/cut` breaks off, `/endless` does not say its length, anything else is the content."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.paths.append(self.path)
            self.send_response(200)
            if "/endless" not in self.path:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if "/cut" in self.path:
                self.wfile.write(content[: len(content) // 2])
            elif "/endless" in self.path:
                try:
                    for _ in range(2000):
                        self.wfile.write(b"x" * 1000)
                except OSError:  # the other end has had enough
                    pass
            else:
                self.wfile.write(content)
            self.close_connection = True

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.paths = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.paths
    finally:
        server.shutdown()
        server.server_close()
