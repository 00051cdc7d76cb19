"""A hub of datasets on this machine: an HTTP server that speaks what `datasets` asks of one."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets
import pytest
from huggingface_hub import HfFileSystem, constants

MAIN = "a" * 40
OLDER = "b" * 40


class DatasetHub(ThreadingHTTPServer):
    """Serves the files of datasets: `files[id][revision][path]`, where revisions are hashes of 40 digits, and "main" is
    MAIN. `asked` are the files that were read; `gated` and `broken` ids are answered with 403 and 500."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, dict[str, Mapping[str, bytes]]] = {}
        self.asked: list[str] = []
        self.gated: set[str] = set()
        self.broken: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: DatasetHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), **headers)

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, hub = unquote(self.path.split("?")[0]), self.server
        api, _, rest = path.partition("/datasets/")
        parts = rest.split("/")
        name, verb, after = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision", parts[3:] or ["main"]
        if name not in hub.files:
            return self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if name in hub.broken:
            return self._json({"error": "Internal error"}, 500)
        there = {"refs": "/".join(after[:3])}.get(after[0], after[0])
        inner = "/".join(after[there.count("/") + 1 :])
        commit = MAIN if there == "main" else there
        if commit not in hub.files[name]:
            return self._json({"error": f"Invalid rev id: {there}"}, 404, X_Error_Code="RevisionNotFound")
        files = hub.files[name][commit]
        if not api:  # /datasets/OWNER/NAME/resolve/REVISION/PATH
            if name in hub.gated:
                return self._json({"error": "Ask for access"}, 403, X_Error_Code="GatedRepo")
            return self._file(inner, files, commit)
        if verb == "revision":
            return self._json({"id": name, "sha": commit, "private": False, "siblings": [], "tags": []})
        if verb == "tree":
            inside = [one for one in files if not inner or one.startswith(f"{inner}/") or one == inner]
            if inner and not inside:
                return self._json({"error": "no such entry"}, 404, X_Error_Code="EntryNotFound")
            folders = {one[: i + 1] for one in inside for i in range(len(one)) if one[i + 1 : i + 2] == "/"}
            entries = [{"type": "directory", "path": one, "oid": "0"} for one in sorted(folders - {inner})]
            return self._json(entries + [_entry(one, files[one]) for one in inside])
        if verb == "paths-info":
            paths = json.loads(body)["paths"]
            return self._json([_entry(one, files[one]) for one in paths if one in files])
        return self._json({"error": f"nobody knows {path}"}, 404)

    def _file(self, path: str, files: Mapping[str, bytes], commit: str) -> None:
        data = files.get(path)
        if data is None:
            return self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if self.command == "GET":
            self.server.asked.append(path)
        headers = {"ETag": hashlib.sha1(data).hexdigest(), "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if (wanted := self.headers.get("Range")) is None:
            return self._send(200, data, **headers)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1 if last else None]
        headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return self._send(206, part, **headers)

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, caches: Path) -> Iterator[DatasetHub]:
    """The hub, running; everybody in this process is sent to it, without a token and with caches of their own."""
    with DatasetHub() as hub:
        for name in ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_HUB_DISABLE_XET"):
            monkeypatch.setattr(constants, name, True)
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HOME", str(caches))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hub"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", caches / "datasets")
        monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", caches / "downloads")
        HfFileSystem.clear_instance_cache()
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
            HfFileSystem.clear_instance_cache()
