"""A web server that hands out files, and can be told to fail."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """
    Attributes:
        missing (`set[str]`): paths that are not found.
        asked (`list[str]`): paths that were asked for.
        unpacks (`bool`): whether `.gz` is served as the file in it, encoded, which some servers do.
        is_gone (`bool`): whether connections are closed without an answer.
    """

    daemon_threads = True

    def __init__(self, directory: Path):
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(directory)))
        self.missing, self.asked, self.unpacks, self.is_gone = set(), [], False, False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        """Says nothing of browsers that hang up."""


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".js": "text/javascript"}

    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        if self.server.is_gone:
            self.close_connection = True
            return self.connection.close()
        return self.send_error(404) if path in self.server.missing else super().do_GET()

    def end_headers(self):
        if self.server.unpacks and self.path.endswith(".gz"):
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Cache-Control", "no-cache")  # or what is missing would still be there
        super().end_headers()

    def log_message(self, *args):
        """Says nothing."""


@contextmanager
def serve(directory: Path) -> Iterator[Server]:
    server = Server(directory)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
