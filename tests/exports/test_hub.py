"""Pushing exports and datasets, against an HTTP server here that speaks the endpoints of the hub that are used."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard, constants
from PIL import Image

import visiontune
from visiontune.api import export_verbs
from visiontune.cli import main
from visiontune.data.dataset import Dataset
from visiontune.errors import DataError, RecipeError, VisiontuneError
from visiontune.exports.hub import push_dataset, push_folders
from visiontune.run import Run
from visiontune.run_group import RunGroup

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
        self.large: tuple[str, ...] = ()  # files ending so are sent as large ones
        self.sent: list[str] = []  # the files of the last commit

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
            place = f"datasets/{name}" if asked.get("type") == "dataset" else name
            known = place in hub.repositories
            hub.repositories.setdefault(place, asked)
            return self.answer(409 if known else 200, {"url": f"{hub.address}/{place}"})
        if path == "/api/validate-yaml":  # of the card; what is valid is the business of test_card.py
            return self.answer(200, {"warnings": [], "errors": []})
        if path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if file.endswith(hub.large) else "regular" for file in files]
            found = [
                {"path": f, "uploadMode": m, "shouldIgnore": False, "oid": oid(hub.files.get(f), m)}
                for f, m in zip(files, modes, strict=True)
            ]
            return self.answer(200, {"files": found})
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            made = [{**o, "actions": {"upload": {"href": f"{hub.address}/blob/{o['oid']}"}}} for o in wanted]
            return self.answer(200, {"objects": made})
        if path.startswith("/blob/"):
            hub.blobs[path.removeprefix("/blob/")] = body
            return self.answer(200, {})
        if path.endswith("/commit/main"):
            hub.sent = []
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    hub.messages.append(entry["value"]["summary"])
                    continue
                hub.sent.append(entry["value"]["path"])
                if entry["key"] == "deletedFile":
                    del hub.files[entry["value"]["path"]]
                elif entry["key"] == "file":
                    hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[entry["value"]["path"]] = hub.blobs[entry["value"]["oid"]]
            repository = named(path).removesuffix("/commit/main")
            return self.answer(200, {"commitUrl": f"{hub.address}/{repository}/commit/1", "commitOid": "1" * 40})
        if path.endswith("/tree/main"):
            sizes = {name: len(data) for name, data in hub.files.items()}
            return self.answer(200, [{"type": "file", "path": p, "size": n, "oid": "0"} for p, n in sizes.items()])
        if "/resolve/main/" in path:
            data = hub.files[path.partition("/resolve/main/")[2]]
            self.send_response(200)
            self.send_header("ETag", hashlib.sha1(data).hexdigest())
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
            return None
        name = named(path).removesuffix("/revision/main")
        if self.command == "GET" and name in hub.repositories:
            private = hub.repositories[name].get("visibility", "public") == "private"
            return self.answer(200, {"id": name, "private": private, "sha": "1" * 40})
        return self.answer(404, {"error": f"there is no {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815


def named(path: str) -> str:
    """The repository (of a dataset: with the word before it) that a path of the hub's interface is about."""
    return path.removeprefix("/api/").removeprefix("models/")


def oid(data: bytes | None, mode: str) -> str | None:
    """What the hub calls a file that it has: the hash of git's blob, of large files that of their bytes."""
    if data is None:
        return None
    return (
        hashlib.sha256(data).hexdigest() if mode == "lfs" else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )


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
    hub.large = (".bin",)
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


def articles(place: Path, count: int) -> Path:
    """A table of texts with summaries."""
    words = ["the", "of", "and", "to", "in", "is", "that", "for", "was", "on", "are", "with", "as", "by", "at", "from"]
    rows = []
    for i in range(count):
        text = " ".join(words[(i * 7 + k * k * (i + 3)) % len(words)] + str(i * k % 97) for k in range(120))
        rows.append({"id": f"a{i}", "text": text, "summary": f"Summary {i}."})
    path = place / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(hub: Hub, place: Path) -> Any:
    """What `datasets.load_dataset` makes of the files of the hub."""
    return datasets.load_dataset(str(folder_of(place, hub.files)), cache_dir=str(place / ".cache"))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client
def test_a_pushed_dataset_is_what_others_load(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.large = (".parquet",)
    dataset = visiontune.prepare(articles(tmp_path, 20), tmp_path / "texts", workers=1)
    assert push_dataset(dataset, "someone/texts", endpoint=hub.address) == f"{hub.address}/datasets/someone/texts"
    assert hub.repositories["datasets/someone/texts"]["visibility"] == "private"
    assert hub.files.keys() == {"README.md", "dataset.json", *dataset.info.files}
    found = loaded(hub, tmp_path / "got")
    assert {split: len(found[split]) for split in found} == dataset.info.splits
    assert found["train"]["id"] == dataset.index("train").ids
    (tmp_path / "got/README.md").unlink()
    Dataset.open(tmp_path / "got").verify()


def test_a_pushed_folder_of_photos_shows_images(hub: Hub, tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"photos/{'cat' if i % 2 else 'dog'}").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), i + 9).save(tmp_path / f"photos/{'cat' if i % 2 else 'dog'}/{i}.png")
    dataset = visiontune.prepare(tmp_path / "photos", tmp_path / "pets", workers=1)
    push_dataset(dataset, "someone/pets", endpoint=hub.address)
    assert loaded(hub, tmp_path / "got")["train"][0]["images"][0].size == (16, 16)
    assert "2 labels: dog 5, cat 4" in hub.files["README.md"].decode()


def test_a_second_push_sends_what_changed_and_removes_what_is_stale(hub: Hub, tmp_path: Path) -> None:
    first = visiontune.prepare(articles(tmp_path, 20), tmp_path / "texts", workers=1)
    push_dataset(first, "someone/texts", endpoint=hub.address)
    hub.files["notes.txt"] = b"mine"
    push_dataset(first, "someone/texts", endpoint=hub.address)
    assert len(hub.messages) == 1  # nothing had changed
    second = visiontune.prepare(articles(tmp_path, 21), tmp_path / "texts", workers=1)
    gone, new = first.info.files.keys() - second.info.files.keys(), second.info.files.keys() - first.info.files.keys()
    assert gone and new and first.info.files.keys() & second.info.files.keys()
    push_dataset(second, "someone/texts", endpoint=hub.address)
    assert set(hub.sent) == {"README.md", "dataset.json", *gone, *new} and len(hub.messages) == 2
    assert hub.files.keys() == {"README.md", "dataset.json", "notes.txt", *second.info.files}


def test_a_licence_that_somebody_set_on_the_hub_stays(hub: Hub, tmp_path: Path, capsys: Any) -> None:
    dataset = visiontune.prepare(articles(tmp_path, 5), tmp_path / "texts", workers=1)
    push_dataset(dataset, "someone/texts", endpoint=hub.address)
    assert "set it in README.md" in capsys.readouterr().err
    card = hub.files["README.md"].decode()
    hub.files["README.md"] = card.replace("license: unknown", "license: mit\nlanguage: en").encode()
    push_dataset(
        visiontune.prepare(articles(tmp_path, 6), tmp_path / "texts", workers=1), "someone/texts", endpoint=hub.address
    )
    front = DatasetCard(hub.files["README.md"].decode()).data.to_dict()
    assert (front["license"], front["language"]) == ("mit", "en")
    assert "no licence" not in capsys.readouterr().err


def test_no_dataset_goes_to_a_public_repository_unless_public_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    dataset = visiontune.prepare(articles(tmp_path, 5), tmp_path / "texts", workers=1)
    hub.repositories["datasets/someone/texts"] = {"visibility": "public"}
    with pytest.raises(VisiontuneError, match="it is public"):
        push_dataset(dataset, "someone/texts", endpoint=hub.address)
    assert hub.files == {}
    push_dataset(dataset, "someone/texts", private=False, endpoint=hub.address)
    assert "dataset.json" in hub.files


@pytest.mark.parametrize("place", ["/api/repos/create", "/tree/", "/preupload/", "/commit/"])
def test_a_refused_dataset_is_told_and_stays(hub: Hub, tmp_path: Path, place: str) -> None:
    dataset = visiontune.prepare(articles(tmp_path, 5), tmp_path / "texts", workers=1)
    before = contents(dataset.path)
    hub.refuse = {place: 403, **({"/api/datasets/": 404} if "create" in place else {})}
    with pytest.raises(VisiontuneError, match="403") as caught:
        push_dataset(dataset, "someone/texts", endpoint=hub.address)
    assert str(dataset.path) in (caught.value.fix or "") and contents(dataset.path) == before and hub.files == {}


def asked_by_commands(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands, which take no address, find the hub here."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_group_of_runs_is_pushed_as_one_repository_private_unless_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each run exports is the business of other tests: here each writes one file that names it."""
    asked_by_commands(hub, monkeypatch)
    roles = ("detector", "segmenter")
    runs = {role: Run(folder_of(tmp_path / "teacher" / role, {"recipe.yaml": b"seed: 0"})) for role in roles}
    RunGroup(tmp_path / "teacher", runs).save()

    def exported(run: Path, *, out: Path, **options: Any) -> dict[str, Path]:
        assert not {"push", "public"} & set(options)
        return {"merged": folder_of(out, {"weights": run.name.encode()})}

    monkeypatch.setattr(export_verbs, "export", exported)
    command = ["export", str(tmp_path / "teacher"), "--to", "merged"]
    for more in (["--push", "someone/hidden"], ["--push", "someone/shown", "--public"]):
        hub.files.clear()
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--out", str(tmp_path / more[1]), *more])
        assert stopped.value.code == 0
        assert hub.files == {"detector/merged/weights": b"detector", "segmenter/merged/weights": b"segmenter"}
    visible = {name: asked["visibility"] for name, asked in hub.repositories.items()}
    assert visible == {"someone/hidden": "private", "someone/shown": "public"}
    with pytest.raises(RecipeError, match="not pushed takes no --public"):
        visiontune.export(tmp_path / "teacher", to="merged", public=True)


def test_prepare_pushes_privately_unless_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_by_commands(hub, monkeypatch)
    command = ["prepare", str(articles(tmp_path, 5)), "--out", str(tmp_path / "texts"), "--push"]
    for more in (["someone/hidden"], ["someone/shown", "--public"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *more])
        assert stopped.value.code == 0
    visible = {name: asked["visibility"] for name, asked in hub.repositories.items()}
    assert visible == {"datasets/someone/hidden": "private", "datasets/someone/shown": "public"}
    with pytest.raises(DataError, match="can be public"):
        visiontune.prepare(tmp_path / "articles.jsonl", tmp_path / "texts", public=True)
