"""Pushing exports, against an HTTP server on this machine that speaks the endpoints of the hub that are used."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from visiontune.errors import VisiontuneError
from visiontune.exports.hub import push_folders

ROOM = {"README.md": b"---\nlicense: mit\n---\n", "deep/er/labels.json": b"[1]", "weights.bin": bytes(range(256)) * 400}


class Hub(ThreadingHTTPServer):
    """A hub that keeps what it is given. `refuse` maps a word of a path to the status that it is answered with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.refuse: dict[str, int] = {}
        self.large = False  # whether files ending with .bin are sent as large ones

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, hub = self.path.split("?")[0], self.server
        for word, status in hub.refuse.items():
            if word in path:
                return self.answer(status, {"error": "You may not write here."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'somebody'}/{asked['name']}"
            known = name in hub.repositories
            hub.repositories.setdefault(name, asked)
            return self.answer(409 if known else 200, {"url": f"{hub.address}/{name}"})
        if path == "/api/validate-yaml":  # of the card; what is valid is the business of test_card.py
            return self.answer(200, {"warnings": [], "errors": []})
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if hub.large and file.endswith(".bin") else "regular" for file in files]
            found = [{"path": f, "uploadMode": m, "shouldIgnore": False} for f, m in zip(files, modes, strict=True)]
            return self.answer(200, {"files": found})
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            made = [{**o, "actions": {"upload": {"href": f"{hub.address}/blob/{o['oid']}"}}} for o in wanted]
            return self.answer(200, {"objects": made})
        if path.startswith("/blob/"):
            hub.blobs[path.removeprefix("/blob/")] = body
            return self.answer(200, {})
        if path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    hub.messages.append(entry["value"]["summary"])
                elif entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[entry["value"]["path"]] = hub.blobs[entry["value"]["oid"]]
            repository = path.removeprefix("/api/models/").removesuffix("/commit/main")
            return self.answer(200, {"commitUrl": f"{hub.address}/{repository}/commit/1", "commitOid": "1" * 40})
        name = path.removeprefix("/api/models/")
        if self.command == "GET" and name in hub.repositories:
            private = hub.repositories[name].get("visibility", "public") == "private"
            return self.answer(200, {"id": name, "private": private, "sha": "1" * 40})
        return self.answer(404, {"error": f"there is no {path}"})

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)  # nobody's own token is sent here
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def folder_of(place: Path, files: dict[str, bytes] = ROOM) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_every_byte_of_a_folder_arrives_under_its_own_name(hub: Hub, tmp_path: Path) -> None:
    address = push_folders({"gguf": folder_of(tmp_path / "ship")}, "someone/pets", endpoint=hub.address)
    assert hub.files == ROOM
    assert address == f"{hub.address}/someone/pets" and hub.messages == ["gguf export by visiontune"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client
def test_large_files_arrive_too(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # else they go to a server of its own protocol
    hub.large = True
    push_folders({"gguf": folder_of(tmp_path / "ship")}, "someone/pets", endpoint=hub.address)
    assert hub.files == ROOM
    assert hub.blobs == {hashlib.sha256(ROOM["weights.bin"]).hexdigest(): ROOM["weights.bin"]}


def test_several_forms_go_to_folders_of_their_names(hub: Hub, tmp_path: Path) -> None:
    forms = {"adapter": folder_of(tmp_path / "a", {"x": b"1"}), "merged": folder_of(tmp_path / "b", {"x": b"2"})}
    push_folders(forms, "someone/pets", endpoint=hub.address)
    assert hub.files == {"adapter/x": b"1", "merged/x": b"2"}


def test_the_path_of_a_local_base_model_stays_here(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "base-of-mine").mkdir()
    config = json.dumps({"base_model_name_or_path": str(tmp_path / "base-of-mine"), "r": 8}).encode()
    adapter = folder_of(tmp_path / "a", {"adapter_config.json": config, "adapter_model.safetensors": b"weights"})
    push_folders({"adapter": adapter}, "someone/pets", endpoint=hub.address)
    assert json.loads(hub.files["adapter_config.json"]) == {"base_model_name_or_path": "base-of-mine", "r": 8}
    assert hub.files["adapter_model.safetensors"] == b"weights"
    assert (adapter / "adapter_config.json").read_bytes() == config


def test_a_repository_is_private_unless_public_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    ship = folder_of(tmp_path / "ship")
    push_folders({"gguf": ship}, "someone/hidden", endpoint=hub.address)
    push_folders({"gguf": ship}, "someone/shown", private=False, endpoint=hub.address)
    assert {name: asked["visibility"] for name, asked in hub.repositories.items()} == {
        "someone/hidden": "private",
        "someone/shown": "public",
    }


def test_nothing_goes_to_a_public_repository_unless_public_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    ship = folder_of(tmp_path / "ship")
    hub.repositories["someone/pets"] = {"visibility": "public"}
    with pytest.raises(VisiontuneError, match="it is public") as caught:
        push_folders({"gguf": ship}, "someone/pets", endpoint=hub.address)
    assert "--public" in str(caught.value) and hub.files == {}
    push_folders({"gguf": ship}, "someone/pets", private=False, endpoint=hub.address)
    assert hub.files == ROOM


def test_a_name_without_an_owner_is_the_repository_that_the_hub_made(hub: Hub, tmp_path: Path) -> None:
    assert push_folders({"gguf": folder_of(tmp_path)}, "pets", endpoint=hub.address) == f"{hub.address}/somebody/pets"
    assert hub.files == ROOM


@pytest.mark.parametrize("place", ["/api/repos/create", "/preupload/", "/commit/"])
def test_a_refusal_is_told_and_leaves_the_folders_alone(hub: Hub, tmp_path: Path, place: str) -> None:
    ship = folder_of(tmp_path / "ship")
    hub.refuse = {place: 403, **({"/api/models/": 404} if "create" in place else {})}
    with pytest.raises(VisiontuneError) as caught:
        push_folders({"gguf": ship}, "someone/pets", endpoint=hub.address)
    assert "403" in caught.value.found and "You may not write here." in caught.value.found
    assert caught.value.where == "someone/pets"
    assert str(ship) in (caught.value.fix or "") and "hf auth login" in (caught.value.fix or "")
    assert contents(ship) == ROOM and hub.files == {}


def test_a_hub_that_cannot_be_reached_is_told_and_leaves_the_folders_alone(hub: Hub, tmp_path: Path) -> None:
    ship = folder_of(tmp_path / "ship")
    closed = Hub()
    closed.server_close()
    with pytest.raises(VisiontuneError, match="The upload did not work") as caught:
        push_folders({"gguf": ship}, "someone/pets", endpoint=closed.address)
    assert "connection" in (caught.value.fix or "") and str(ship) in (caught.value.fix or "")
    assert contents(ship) == ROOM


def test_a_name_that_no_repository_can_have_is_told(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(VisiontuneError, match="no name of a repository") as caught:
        push_folders({"gguf": folder_of(tmp_path)}, "a/b/c", endpoint=hub.address)
    assert caught.value.fix == "give USER/NAME" and hub.repositories == {}
