"""Exports and datasets to a hub."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from visiontune.data.dataset import Dataset
from visiontune.data.dataset_info import INFO_NAME
from visiontune.data.folder import hashes, is_written
from visiontune.errors import VisiontuneError
from visiontune.exports.card import CARD_NAME, UNKNOWN, front_matter
from visiontune.exports.dataset_card import dataset_card, published_fonts
from visiontune.progress import note, warn

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoUrl

ADAPTER_CONFIG = "adapter_config.json"
BASE_MODEL = "base_model_name_or_path"
REFUSALS = (401, 403, 404)  # the hub shows what one may not see as missing


def push_folders(
    folders: Mapping[str, Path], repository: str, *, private: bool = True, endpoint: str | None = None
) -> str:
    """Upload exported folders to a repository (made if it is not there), several to folders of their names inside.

    `endpoint` is the hub's address, that of Hugging Face if it is not given. Returns the repository's address. Raises
    VisiontuneError where the hub cannot be reached or refuses, and before anything is sent where `private` is asked for
    and the repository is public; the folders stay as they are.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    stands = f"the export stands in {', '.join(map(str, folders.values()))}"
    address = _repository(api, repository, "model", private, stands)
    for form, folder in folders.items():
        inside = form if len(folders) > 1 else None
        message = f"{form} export by visiontune"
        try:
            with _without_local_base(folder) as sent:
                api.upload_folder(
                    repo_id=address.repo_id, folder_path=sent, path_in_repo=inside, commit_message=message
                )
        except Exception as error:
            raise _not_taken(error, stands, repository) from error
        note(f"uploaded {folder} to {address}" + (f", folder {inside}" if inside else ""))
    return str(address)


def push_dataset(dataset: Dataset, repository: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload a prepared dataset with its fonts and a card, in one commit, to a dataset repository (made if needed).

    Only files that are not there yet are sent; those of an earlier state of the dataset are removed. Licence and
    language that the card there names are kept where this dataset does not know its own. Pages as image files stay
    here. Returns the repository's address; raises as `push_folders` does.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint)
    stands = f"the dataset stands in {dataset.path}"
    address = _repository(api, repository, "dataset", private, stands)
    # The package's own font does not travel: whoever has visiontune has it.
    names = [name for name in (INFO_NAME, *hashes(dataset.info)) if (dataset.path / name).is_file()]
    try:
        there = api.list_repo_files(address.repo_id, repo_type="dataset")
        card = dataset_card(dataset, address.repo_id, _known_front(api, address.repo_id) if CARD_NAME in there else {})
        operations = [
            CommitOperationAdd(CARD_NAME, card.encode()),
            *(CommitOperationAdd(name, dataset.path / name) for name in names),
            *(CommitOperationDelete(name) for name in there if is_written(name) and name not in names),
        ]
        message = f"dataset {dataset.info.content_hash[:16]} by visiontune"
        api.create_commit(address.repo_id, operations, commit_message=message, repo_type="dataset")
    except Exception as error:
        raise _not_taken(error, stands, repository) from error
    note(f"uploaded {dataset.path} to {address}")
    if fonts := published_fonts(dataset):
        warn(f"fonts were uploaded with it, see that you may pass them on: {', '.join(font.name for font in fonts)}")
    if front_matter(card)["license"] == UNKNOWN:
        warn(f"the card names no licence: set it in {CARD_NAME} there, and later pushes keep it")
    return str(address)


def _known_front(api: "HfApi", repository: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="visiontune-push-") as temporary:
        card = api.hf_hub_download(repository, CARD_NAME, repo_type="dataset", local_dir=temporary)
        return front_matter(Path(card).read_text(encoding="utf-8", errors="replace"))


def _repository(
    api: "HfApi", repository: str, kind: Literal["model", "dataset"], private: bool, stands: str
) -> "RepoUrl":
    """The repository, made where there is none; refused where `private` is asked for and it is public."""
    try:
        address = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        is_public = private and api.repo_info(address.repo_id, repo_type=kind).private is False
    except Exception as error:  # the client's own errors, and those of what it sends with, which change by version
        raise _not_taken(error, stands, repository) from error
    if is_public:
        raise VisiontuneError(
            "This repository is there already, and it is public.",
            where=str(address),
            fix="push with --public, or to another repository",
        )
    return address


@contextmanager
def _without_local_base(folder: Path) -> Iterator[Path]:
    """The folder, or a copy (of links) in which an adapter names its base model without the path on this computer."""
    path = folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    base = config.get(BASE_MODEL)
    if not base or not Path(base).is_dir():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="visiontune-push-") as temporary:
        copy = Path(temporary) / folder.name
        copy.mkdir()
        for entry in folder.iterdir():
            if entry.name != ADAPTER_CONFIG:
                (copy / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
        config[BASE_MODEL] = Path(base).name
        (copy / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        yield copy


def _not_taken(error: Exception, stands: str, repository: str) -> VisiontuneError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, HFValidationError):
        return VisiontuneError(f"This is no name of a repository: {said}", where=repository, fix="give USER/NAME")
    if isinstance(error, HfHubHTTPError):
        if error.server_message and error.server_message not in said:
            said = f"{said} {error.server_message}"
        refused = error.response.status_code in REFUSALS
        fix = "log in as somebody who may write there (`hf auth login`), push again" if refused else "push again later"
        return VisiontuneError(f"The hub did not take it: {said}", where=repository, fix=f"{stands}; {fix}")
    fix = "check the connection and who is logged in (`hf auth whoami`), push again"
    return VisiontuneError(f"The upload did not work: {said}", where=repository, fix=f"{stands}; {fix}")
