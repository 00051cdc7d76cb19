"""Exports to a model hub."""

from collections.abc import Mapping
from pathlib import Path

from visiontune.errors import VisiontuneError
from visiontune.progress import note


def push_folders(folders: Mapping[str, Path], repository: str, *, private: bool = True) -> str:
    """Upload exported folders to a repository (made if it is not there), several to folders of their names inside.

    Returns its address. Raises VisiontuneError where the hub cannot be reached or refuses; nothing here is lost.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        for form, folder in folders.items():
            inside = form if len(folders) > 1 else None
            message = f"{form} export by visiontune"
            api.upload_folder(repo_id=repository, folder_path=folder, path_in_repo=inside, commit_message=message)
            note(f"uploaded {folder} to {repository}" + (f"/{inside}" if inside else ""))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise VisiontuneError(
            f"The hub did not take it: {str(error).splitlines()[0]}",
            where=repository,
            fix=f"the export stands in {', '.join(map(str, folders.values()))}; log in with `hf auth login`, try again",
        ) from error
    return address
