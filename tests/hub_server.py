"""A small hub of models on loopback: the addresses that huggingface_hub calls, files in a folder.

Repositories have commits, refs, private and gated ones; large files go to the store of Git LFS and
are redirected to another host, as on the real one. There is no Xet: `HF_HUB_DISABLE_XET`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_write"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt")


class HubError(Exception):
    """An answer that is an error: status, code and message as the hub's headers have them.

    url: where a repository is that exists already.
    """

    def __init__(self, status: int, code: str = "", message: str = "", url: str = "") -> None:
        self.status, self.code, self.message, self.url = status, code, message, url


class Hub:
    """The repositories below a folder: REPO/commits/SHA/FILE, and the branch in REPO/refs/main."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url, self.cdn = folder, "", ""
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[str] = []

    def create(self, repo: str) -> None:
        if (self.folder / repo).exists():
            message = "You already created this model repo"
            raise HubError(409, "", message, f"{self.url}/{repo}")
        (self.folder / repo / "refs").mkdir(parents=True)
        self.write(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})

    def write(self, repo: str, files: dict[str, bytes]) -> str:
        """Commit files on top of those of the branch and return the commit."""
        root, ref = self.folder / repo, self.folder / repo / "refs" / "main"
        ref.parent.mkdir(parents=True, exist_ok=True)
        parent = ref.read_text() if ref.exists() else ""
        digest = hashlib.sha1(parent.encode())
        for name, content in files.items():
            digest.update(name.encode() + content)
        sha = digest.hexdigest()
        target = root / "commits" / sha
        if parent:
            shutil.copytree(root / "commits" / parent, target)
        for name, content in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        ref.write_text(sha)
        return sha

    def commit_of(self, repo: str, revision: str) -> str:
        """Return the commit of a branch, a tag or a commit."""
        root = self.folder / repo
        ref = root / "refs" / revision
        sha = ref.read_text() if ref.is_file() else revision
        if not (root / "commits" / sha).is_dir():
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, repo: str, sha: str) -> list[str]:
        root = self.folder / repo / "commits" / sha
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `hub` is set by `serve_hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(self.requestline)

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self) -> None:
        """Send what `route` returns: JSON, or the content of a file with headers."""
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        try:
            status, headers, content = self.route(unquote(urlsplit(self.path).path).strip("/"))
        except HubError as error:
            status = error.status
            content = json.dumps({"error": error.message, "url": error.url}).encode()
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("lfs/"):
            return self.store_large(path.removeprefix("lfs/"))
        token = self.headers.get("Authorization", "")
        if token not in ("", f"Bearer {TOKEN}"):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        writes = self.command in ("POST", "PUT") and path != "api/validate-yaml"
        if writes and not token:
            raise HubError(401, "", "Invalid username or password.")
        parts = path.split("/")
        if path == "api/validate-yaml":
            return self.validate_card(json.loads(self.body)["content"])
        if path == "api/repos/create":
            return self.create_repo(json.loads(self.body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.offer_uploads(json.loads(self.body)["objects"])
        start = 2 if parts[:2] == ["api", "models"] else 0
        repo, rest = "/".join(parts[start : start + 2]), parts[start + 2 :]
        if not (self.hub.folder / repo).is_dir() or (repo in self.hub.private and not token):
            raise HubError(404 if token else 401, "RepoNotFound", "Repository not found")
        if start:
            return self.call(repo, rest)
        return self.resolve(repo, rest[1], "/".join(rest[2:]))

    def call(self, repo: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        """Answer what is asked of a repository below /api/models."""
        match rest:
            case [] | ["revision", _]:
                sha = self.hub.commit_of(repo, rest[1] if rest else "main")
                siblings = [{"rfilename": name} for name in self.hub.files(repo, sha)]
                return as_json({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings})
            case ["preupload", "main"]:
                return as_json({"files": [self.upload_mode(file) for file in self.files()]})
            case ["commit", "main"]:
                return self.commit(repo, [json.loads(line) for line in self.body.splitlines()])
        raise HubError(404, "", "Not found")

    def files(self) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = json.loads(self.body)["files"]
        return files

    def upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def validate_card(self, content: str) -> tuple[int, dict[str, str], bytes]:
        try:
            head = yaml.safe_load(content.split("---\n")[1])
            assert isinstance(head["tags"], list)
        except Exception as error:
            return 400, {}, json.dumps({"errors": [{"message": str(error)}]}).encode()
        return as_json({"warnings": [], "errors": []})

    def create_repo(self, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        repo = f"{request['organization']}/{request['name']}"
        if request["organization"] == "others":
            raise HubError(403, "", "You don't have the rights to create a model under others")
        self.hub.create(repo)
        return as_json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def offer_uploads(self, objects: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
        return as_json({"transfer": "basic", "objects": objects})

    def store_large(self, oid: str) -> tuple[int, dict[str, str], bytes]:
        """Take or give a large file, by its sha256."""
        path = self.hub.folder / "lfs" / oid
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise HubError(400, "", "another sha256")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.body)
            return as_json({})
        return 200, {}, path.read_bytes()

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        """Commit the files of an ndjson body."""
        files: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.hub.folder / "lfs" / value["oid"]).read_bytes()
        sha = self.hub.write(repo, files)
        return as_json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def resolve(self, repo: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        """Give a file of a commit; a large one by a redirect to the other host."""
        if repo in self.hub.gated:
            raise HubError(403, "GatedRepo", f"Access to model {repo} is restricted")
        sha = self.hub.commit_of(repo, revision)
        path = self.hub.folder / repo / "commits" / sha / name
        headers = {"X-Repo-Commit": sha}
        if not path.is_file():
            raise HubError(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        if not name.endswith(LFS_SUFFIXES):
            return 200, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
        oid = hashlib.sha256(content).hexdigest()
        large = self.hub.folder / "lfs" / oid
        large.parent.mkdir(exist_ok=True)
        large.write_bytes(content)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return 302, headers | linked | {"Location": f"{self.hub.cdn}/lfs/{oid}"}, b""


def as_json(document: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


@contextmanager
def serve_hub(folder: Path) -> Iterator[Hub]:
    """Serve the repositories of a folder; `hub.url` is the endpoint."""
    hub = Hub(folder)
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        hub.cdn = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def connect(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what huggingface_hub has from the environment when a process imports it, and a token."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
