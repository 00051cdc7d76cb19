"""Datasets of the hub, fetched by `datasets` from a hub on this machine: what lies there is what is prepared."""

import io
import json
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, constants
from hypothesis import given
from hypothesis import strategies as st

import visiontune
from tests import pictures
from tests.conftest import QUICK
from tests.dataset_hub import MAIN, OLDER, serving
from visiontune.data import hub_source
from visiontune.data.dataset import Dataset
from visiontune.data.hub_source import HubDataset, fetch, is_hub, parse
from visiontune.data.split import SPLITS
from visiontune.errors import DataError, MachineError

PETS = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
CONFIGS = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\n"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "caches") as server:
        yield server


def jpeg(i):
    return pictures.encoded(pictures.picture(i), "JPEG", quality=90)


def parquet(rows, features=None):
    file = io.BytesIO()
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)
    return file.getvalue()


def pets(numbers):
    """Rows of the hub's usual form: an image with its bytes, and the number of its class."""
    return parquet([{"image": {"bytes": jpeg(i), "path": f"{i}.jpg"}, "label": i % 2} for i in numbers], PETS)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def samples(dataset):
    return [dataset.sample(split, i) for split in SPLITS for i in range(dataset.count(split))]


# Names


NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
CHOSEN = st.none() | st.from_regex(r"[A-Za-z0-9_.+-]{1,20}", fullmatch=True)


@given(NAMES, NAMES, CHOSEN, CHOSEN | st.sampled_from(["refs/pr/7", "refs/convert/parquet"]))
def test_a_name_says_its_pieces_and_nothing_else(owner, name, config, revision):
    source = HubDataset(f"{owner}/{name}", config, revision)
    assert parse(str(source)) == source and is_hub(str(source))


@given(st.text())
def test_what_is_read_as_a_name_is_written_the_same(text):
    try:
        source = parse(f"hub:{text}")
    except DataError as error:
        assert "hub:OWNER/NAME:CONFIG@REVISION" in error.fix
    else:
        assert str(source) == f"hub:{text}"


OTHERS = "hub: hub:pets hub:me/pets/more hub:me/pets: hub:me/pets@ hub:me/pets?config=a hub:me/pets:a:b hub:me/pets@a@b"


@pytest.mark.parametrize("text", [*OTHERS.split(), "hub:me/pets@a:b", "hub: me/pets", "hub:me/pets:../a", "me/pets"])
def test_other_forms_are_refused(text):
    with pytest.raises(DataError, match="names no dataset of the hub"):
        parse(text)


# What arrives


def test_classes_arrive_with_their_names_the_bytes_of_images_and_the_splits_of_the_hub(hub, tmp_path):
    files = {f"data/train-0000{k}-of-00002.parquet": pets(range(k * 6, k * 6 + 6)) for k in range(2)}
    files |= {"data/val-00000-of-00001.parquet": pets(range(20, 24)), "data/test-00000-of-00001.parquet": pets([30])}
    hub.files["me/pets"] = {MAIN: files}
    dataset = visiontune.prepare("hub:me/pets", tmp_path / "out", workers=1)
    assert dataset.info.splits == {"train": 12, "validation": 4, "test": 1}
    assert dataset.info.labels == {"cat": 9, "dog": 8}
    assert dataset.info.left_out == []
    found = {one.id: (one.seen.files[0].data, one.target.answer) for one in samples(dataset)}
    assert found["train-00001-of-00002.parquet:2"] == (jpeg(7), "dog")
    assert {data for data, _ in found.values()} == {jpeg(i) for i in (*range(12), *range(20, 24), 30)}
    provenance = dataset.info.provenance
    assert (provenance.source, provenance.hub) == ("me/pets", (f"hub:me/pets@{MAIN}",))
    assert (provenance.sources, provenance.corpora) == ({"me/pets": 17}, ())


def test_every_layout_of_tables_is_read(hub, tmp_path):
    image = {"bytes": jpeg(0), "path": None}
    several = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()),
        }
    )
    said = [{"role": "user", "content": "<image><image>Same?"}, {"role": "assistant", "content": "No."}]
    llava = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A blob."}]
    one = datasets.Image()
    text = datasets.Value("string")
    turns = [{"from": text, "value": text}]
    tables = {
        "messages": parquet([{"messages": said, "images": [image, {"bytes": jpeg(1), "path": None}]}], several),
        "llava": parquet([{"image": image, "conversations": llava}], datasets.Features(image=one, conversations=turns)),
        "roboflow": parquet(
            [{"image": image, "prefix": "What?", "suffix": "A blob."}],
            datasets.Features(image=one, prefix=text, suffix=text),
        ),
        "prompt_answer": parquet(
            [{"image": image, "question": "What?", "answer": "A blob."}],
            datasets.Features(image=one, question=text, answer=text),
        ),
    }
    hub.files |= {f"me/{name}": {MAIN: {"train.parquet": data}} for name, data in tables.items()}
    for name in tables:
        dataset = visiontune.prepare(f"hub:me/{name}", tmp_path / name, workers=1)
        (found,) = samples(dataset)
        shown = [file.data for file in found.seen.files]
        assert dataset.info.provenance.format == name
        if name == "messages":
            assert (found.target.answer, shown) == ("No.", [jpeg(0), jpeg(1)])
        else:
            assert (found.target.prompt, found.target.answer, shown) == ("What?", "A blob.", [jpeg(0)])


def test_a_list_of_one_answer_is_that_answer(hub, tmp_path):
    """As ChartQA has it: `query`, and a list as `label`."""
    text = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), query=text, label=datasets.List(text))
    answers = [["14"], ["Yes"], ["1", "2"]]
    rows = [{"image": {"bytes": jpeg(i), "path": None}, "query": "?", "label": one} for i, one in enumerate(answers)]
    hub.files["me/charts"] = {MAIN: {"train.parquet": parquet(rows, features)}}
    dataset = visiontune.prepare("hub:me/charts", tmp_path / "out", workers=1)
    assert sorted(one.target.answer for one in samples(dataset)) == ["14", "Yes"]
    assert dataset.info.labels is None
    assert [(row.code, row.found) for row in dataset.info.left_out] == [
        ("not-a-text", "label is a list of 2, not a text")
    ]


def test_image_files_on_the_hub_arrive_as_they_are(hub, tmp_path):
    photos = {f"train/{'dog' if i % 2 else 'cat'}/{i}.jpg": jpeg(i) for i in range(6)}
    hub.files["me/photos"] = {MAIN: photos}
    dataset = visiontune.prepare("hub:me/photos", tmp_path / "out", workers=1)
    assert dataset.info.labels == {"cat": 3, "dog": 3}
    assert {one.seen.files[0].data for one in samples(dataset)} == set(photos.values())


def test_lines_and_cells_are_read_too(hub, tmp_path):
    rows = [{"prompt": f"{i} and 1?", "answer": None if i < 3 else str(i + 1)} for i in range(9)]
    hub.files["me/sums"] = {MAIN: {"train.jsonl": lines(*rows)}}
    hub.files["me/cells"] = {MAIN: {"train.csv": b"prompt,answer\na,b\nc,d\n"}}
    dataset = visiontune.prepare("hub:me/sums", tmp_path / "sums", workers=1)
    assert (len(dataset), len(dataset.info.left_out)) == (6, 3)
    assert len(visiontune.prepare("hub:me/cells", tmp_path / "cells", workers=1)) == 2


def test_a_file_of_this_machine_that_a_row_names_stays_here(hub, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(5))
    rows = [{"image": {"bytes": jpeg(0), "path": None}, "label": 0}, {"image": {"path": str(secret)}, "label": 1}]
    hub.files["me/nosy"] = {MAIN: {"train.parquet": parquet(rows, PETS)}}
    dataset = visiontune.prepare("hub:me/nosy", tmp_path / "out", workers=1)
    assert [one.seen.files[0].data for one in samples(dataset)] == [jpeg(0)]
    assert len(dataset.info.left_out) == 1


def test_a_configuration_and_a_revision_are_those_that_are_read(hub, tmp_path):
    hub.files["me/two"] = {
        MAIN: {"README.md": CONFIGS, "a.jsonl": lines({"prompt": "a", "answer": "1"}), "b.jsonl": b""},
        OLDER: {"README.md": CONFIGS, "a.jsonl": b"", "b.jsonl": lines({"prompt": "b", "answer": "2"})},
    }
    for name, answer in (("hub:me/two:a", "1"), (f"hub:me/two:b@{OLDER}", "2")):
        dataset = visiontune.prepare(name, tmp_path / answer, workers=1)
        assert [one.target.answer for one in samples(dataset)] == [answer]
    assert dataset.info.provenance.hub == (f"hub:me/two:b@{OLDER}",)
    assert dataset.info.provenance.source == "me/two:b"


def test_a_branch_where_the_hub_keeps_what_a_script_made(hub, tmp_path):
    hub.files["me/made"] = {"refs/convert/parquet": {"default/train/0000.parquet": pets(range(3))}}
    folder, _ = fetch(parse("hub:me/made@refs/convert/parquet"))
    assert pq.read_table(folder / "train.parquet").num_rows == 3


def test_splits_of_other_names_are_told_and_left_out_or_are_all_there_is(hub, tmp_path, capsys):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n{}---\n"
    listed = {name: f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train_sft", "dev", "extra", "full")}
    row = lines({"prompt": "a", "answer": "b"})
    for name, splits in (("some", ("train_sft", "dev", "extra")), ("all", ("full",))):
        readme = card.format("".join(listed[split] for split in splits)).encode()
        hub.files[f"me/{name}"] = {MAIN: {"README.md": readme, **{f"{split}.jsonl": row for split in splits}}}
    folder, _ = fetch(parse("hub:me/some"))
    assert sorted(path.name for path in folder.glob("*.parquet")) == ["dev.parquet", "train_sft.parquet"]
    assert "its splits extra are none of train, validation, test" in capsys.readouterr().err
    folder, _ = fetch(parse("hub:me/all"))
    assert [path.name for path in folder.glob("*.parquet")] == ["full.parquet"]


def test_beside_a_folder_the_ids_say_where_rows_come_from(hub, tmp_path):
    hub.files["me/pets"] = {MAIN: {"train.parquet": pets(range(4))}}
    for i in range(4):
        (tmp_path / "photos/bird").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"photos/bird/{i}.jpg").write_bytes(jpeg(50 + i))
    dataset = visiontune.prepare(["hub:me/pets", tmp_path / "photos"], tmp_path / "out", workers=1)
    assert dataset.info.provenance.sources == {"me/pets": 4, "photos": 4}
    assert "me/pets/train.parquet:1" in {one.id for one in samples(dataset)}


# Once


def test_the_same_commit_gives_the_same_dataset_and_needs_no_connection_again(hub, tmp_path):
    hub.files["me/pets"] = {MAIN: {"train.parquet": pets(range(8))}}
    first = visiontune.prepare("hub:me/pets", tmp_path / "first", workers=1)
    hub.files.clear()
    second = visiontune.prepare(f"hub:me/pets@{MAIN}", tmp_path / "second", workers=1)
    assert second.info.content_hash == first.info.content_hash
    assert second.info.files == first.info.files
    assert second.info.provenance.hub == first.info.provenance.hub


def test_a_fetched_branch_that_has_moved_is_fetched_anew(hub, tmp_path):
    hub.files["me/pets"] = {"main": {}, OLDER: {"train.parquet": pets(range(4))}}
    old, _ = fetch(parse(f"hub:me/pets@{OLDER}"))
    hub.files["me/pets"][MAIN] = {"train.parquet": pets(range(6))}
    new, pinned = fetch(parse("hub:me/pets@main"))
    assert pinned.revision == MAIN and new != old
    assert [pq.read_table(folder / "train.parquet").num_rows for folder in (old, new)] == [4, 6]


def test_what_arrived_before_a_kill_is_not_fetched_again(hub, tmp_path):
    names = [f"data/train-0000{k}-of-00003.parquet" for k in range(3)]
    hub.files["me/pets"] = {MAIN: {name: pets(range(k * 4, k * 4 + 4)) for k, name in enumerate(names)}}
    script = (
        "import os, sys, pathlib, datasets\n"
        "from visiontune.data import hub_source\n"
        "real = hub_source.written_whole\n"
        "def dying(path):\n"
        "    os._exit(9) if '00002' in path.name and 'of-00003' in path.name else None\n"
        "    return real(path)\n"
        "hub_source.written_whole = dying\n"
        "hub_source.fetch(hub_source.parse('hub:me/pets'))\n"
    )
    caches = constants.HF_HOME
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": caches, "PYTHONPATH": ":".join(sys.path), "PATH": "/bin"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    folder = next((tmp_path / "caches/visiontune").iterdir())
    stood = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(stood) == 2
    hub.asked.clear()
    again, _ = fetch(parse("hub:me/pets"))
    assert again == folder and names[2] in hub.asked
    assert {name: (folder / name).stat().st_mtime_ns for name in stood} == stood
    assert sum(pq.read_table(path).num_rows for path in folder.glob("*.parquet")) == 12


def test_a_limit_fetches_the_first_rows_of_each_split_alone(hub, tmp_path):
    names = [f"data/train-0000{k}-of-00004.parquet" for k in range(4)]
    hub.files["me/pets"] = {MAIN: {name: pets(range(k * 6, k * 6 + 6)) for k, name in enumerate(names)}}
    found = visiontune.inspect("hub:me/pets", limit=4)
    assert (found.samples, found.labels) == (4, {"cat": 2, "dog": 2})
    assert not {names[2], names[3]} & set(hub.asked)
    assert visiontune.inspect("hub:me/pets").samples == 24


def test_rows_are_written_a_group_at_a_time(hub, tmp_path):
    hub.files["me/sums"] = {MAIN: {"train.jsonl": lines(*({"prompt": str(i), "answer": "x"} for i in range(200)))}}
    folder, _ = fetch(parse("hub:me/sums"))
    metadata = pq.read_metadata(folder / "train.parquet")
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [64, 64, 64, 8]


def test_a_run_starts_from_the_hub_and_a_folder_of_that_name_does_not_count(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub:me/pets").mkdir(parents=True)
    (tmp_path / "me/pets").mkdir(parents=True)
    for place in ("hub:me/pets", "me/pets"):
        (tmp_path / place / "dataset.json").write_text("{}")
    hub.files["me/pets"] = {MAIN: {"train.parquet": pets(range(16))}}
    overrides = {**QUICK, "schedule.steps": 1}
    run = visiontune.train("hub:me/pets", model="tiny/smolvlm", out=tmp_path / "run", overrides=overrides)
    assert run.status == "finished"
    assert Dataset.open(run.path / "data/pets").info.provenance.hub == (f"hub:me/pets@{MAIN}",)


# What goes wrong


def test_what_the_hub_does_not_have_is_told_with_what_to_do(hub, tmp_path):
    hub.files["me/two"] = {MAIN: {"README.md": CONFIGS, "a.jsonl": b"", "b.jsonl": b""}}
    hub.files["me/script"] = {MAIN: {"script.py": b"raise SystemExit"}}
    hub.files["me/empty"] = {MAIN: {"README.md": b"---\nlicense: mit\n---\n"}}
    hub.files["me/gated"] = {MAIN: {"train.jsonl": lines({"prompt": "a", "answer": "b"})}}
    hub.files["me/mixed"] = {MAIN: {"train.parquet": b"PAR1 is what this file is not"}}
    hub.gated.add("me/gated")
    cases = {
        "hub:me/none": ("shows no dataset of this name", "hf auth login"),
        "hub:me/two": ("Config name is missing.*'a', 'b'", "hub:me/two:CONFIG"),
        "hub:me/two:c": ("'c' not found.*'a', 'b'", "hub:me/two:CONFIG"),
        "hub:me/two@v9": ("no revision 'v9'", "a branch, a tag or a commit"),
        f"hub:me/two@{OLDER}": ("no revision", "a branch, a tag or a commit"),
        "hub:me/script": ("code of others is not run", "hub:me/script@refs/convert/parquet"),
        "hub:me/empty": ("holds no files", "hf download me/empty --repo-type dataset"),
        "hub:me/gated": ("is gated", "https://huggingface.co/datasets/me/gated"),
        "hub:me/mixed": ("cannot be read", "hf download me/mixed --repo-type dataset"),
    }
    for text, (found, fix) in cases.items():
        with pytest.raises(DataError, match=found) as caught:
            visiontune.prepare(text, tmp_path / "out")
        assert fix in caught.value.fix and caught.value.where.startswith(text)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "caches/visiontune").rglob("*.parquet"))


def test_no_connection_is_told_with_the_way_out(hub, monkeypatch):
    monkeypatch.setattr(hub_source, "_commit", lambda source: HfApi("http://127.0.0.1:9").dataset_info(source.id).sha)
    with pytest.raises(MachineError, match="the hub did not give the dataset") as caught:
        fetch(parse("hub:me/pets"))
    assert "check the connection" in caught.value.fix and "--repo-type dataset --local-dir" in caught.value.fix


def test_a_connection_that_breaks_leaves_no_half_file(hub, monkeypatch):
    hub.files["me/sums"] = {MAIN: {"train.jsonl": lines({"prompt": "a", "answer": "b"})}}
    opened = hub_source.open_hub_dataset

    def breaking(source):
        def rows():
            yield {"prompt": "a", "answer": "b"}
            raise ConnectionError("the line is dead")

        assert set(opened(source)) == {"train"}
        features = datasets.Features(prompt=datasets.Value("string"), answer=datasets.Value("string"))
        return {"train": datasets.IterableDataset.from_generator(rows, features=features)}

    monkeypatch.setattr(hub_source, "open_hub_dataset", breaking)
    with pytest.raises(MachineError, match="the line is dead"):
        fetch(parse("hub:me/sums"))
    folder = hub_source._folder(HubDataset("me/sums", None, MAIN), None)
    assert list(folder.iterdir()) == []


def test_without_the_package_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match="the package `datasets`") as caught:
        fetch(parse("hub:me/pets"))
    assert caught.value.fix == "pip install 'visiontune[corpora]'"
