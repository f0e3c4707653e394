"""A Hub on the loopback: as much of its HTTP interface as huggingface_hub's client uses for models, held in memory."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
LFS_FROM = 1_000_000  # bytes; smaller files are part of the commit's body


@dataclass
class Repository:
    """A model repository: its commits, oldest first, each a dictionary of contents by path."""

    gated: bool = False
    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def find(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit hash and files of `main` or a hash; raises KeyError for any other revision."""
        hashes = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(len(self.commits))]
        by_name = dict(zip(hashes, self.commits, strict=True)) | {"main": self.commits[-1]}
        return (hashes[-1] if revision == "main" else revision), by_name[revision]


class Hub(ThreadingHTTPServer):
    """
    Serves on a free port until the `with` block ends.

    Attributes:
        repositories (`dict[str, Repository]`): by id.
        cuts (`dict[str, int]`): bytes after which the next transfer of a file is cut, by its name; once each.
        requests (`list[str]`): method, path and `Range` of all requests so far.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.cuts: dict[str, int] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """A cut connection is no news here."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    ROUTES = [
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def do_request(self):
        target = urlsplit(self.path)
        self.query = parse_qs(target.query)
        self.server.requests.append(f"{self.command} {unquote(target.path)} {self.headers.get('Range', '')}".strip())
        self.body = None if self.command == "PUT" else self.read_body()
        try:
            for methods, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, target.path)
                if match and self.command in methods.split("|"):
                    return getattr(self, name)(
                        **{key: value and unquote(value) for key, value in match.groupdict().items()}
                    )
            raise _Refused(404, "NotFound", f"no such address: {self.path}")
        except _Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.reply(json.dumps({"error": refusal.message}).encode(), refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_request

    # Writing

    def create(self):
        wanted = json.loads(self.body)
        self.check_token()
        repo = f"{wanted['organization']}/{wanted['name']}"
        exists = repo in self.server.repositories
        self.server.repositories.setdefault(repo, Repository(private=wanted.get("visibility") == "private"))
        self.reply_json({"url": f"{self.server.url}/{repo}", "name": repo}, status=409 if exists else 200)

    def validate_card(self):
        self.reply_json({"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        self.check_token()
        self.find(repo, revision)
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["size"] >= LFS_FROM else "regular" for file in files}
        self.reply_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def lfs_batch(self, repo):
        self.check_token()
        self.find(repo, "main")
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            present = wanted["oid"] in self.server.uploads
            objects.append(wanted if present else wanted | {"actions": upload})
        self.reply_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid):
        if "upload" in self.server.cuts:
            self.rfile.read(self.server.cuts.pop("upload"))
            return self.cut()
        content = self.read_body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, "BadDigest", "the content is not what was announced")
        self.server.uploads[oid] = content
        self.reply_json({})

    def commit(self, repo, revision):
        self.check_token()
        self.find(repo, revision)
        files = dict(self.server.repositories[repo].commits[-1])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        self.server.repositories[repo].commits.append(files)
        sha, _ = self.find(repo, "main")
        self.reply_json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    # Reading

    def info(self, repo, revision=None):
        sha, files = self.find(repo, revision or "main")
        repository = self.server.repositories[repo]
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.reply_json(
            {"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def tree(self, repo, revision, folder):
        _, files = self.find(repo, revision)
        folder = (folder or "").strip("/")
        inside = {path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise _Refused(404, "EntryNotFound", f"no folder {folder}")
        self.reply_json([_describe(path, content) for path, content in sorted(inside.items())])

    def resolve(self, repo, revision, path):
        sha, files = self.find(repo, revision)
        if path not in files:
            raise _Refused(404, "EntryNotFound", f"no file {path}")
        content = files[path]
        described = _describe(path, content)
        headers = {
            "ETag": f'"{described.get("lfs", described)["oid"]}"',
            "X-Repo-Commit": sha,
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.reply(content, 200, headers, name=path)
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1) + 1
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.reply(content[start:end], 206, headers, name=path)

    # Tools

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit hash and files; refuses as the Hub does where there are none or they are not for everybody."""
        if repo not in self.server.repositories:
            raise _Refused(401, "RepoNotFound", "Repository Not Found")
        if self.server.repositories[repo].gated and not self.has_token():
            raise _Refused(401, "GatedRepo", f"Access to model {repo} is restricted. You must be authenticated.")
        try:
            return self.server.repositories[repo].find(revision)
        except KeyError:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}") from None

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_token(self) -> None:
        if not self.has_token():
            raise _Refused(401, "Unauthorized", "Invalid username or password.")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply_json(self, content, status: int = 200) -> None:
        self.reply(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def reply(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, name: str = "") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.server.cuts:
            self.wfile.write(content[: self.server.cuts.pop(name)])
            return self.cut()
        self.wfile.write(content)

    def cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        """The tests have `requests`."""


def _describe(path: str, content: bytes) -> dict:
    """An entry of a tree."""
    entry = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    if len(content) >= LFS_FROM:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
