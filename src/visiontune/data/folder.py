"""What lies in the folder of a dataset: the names of its files, and which of them a preparation may remove."""

import re

from visiontune.data.dataset_info import INFO_NAME, DatasetInfo
from visiontune.data.pages import FontRef
from visiontune.data.split import SPLITS

WORK_NAME = ".prepare"
PAGES_NAME = "pages"
MESSAGES_NAME = "messages"
REPAIRS_NAME = "repairs.jsonl"

# What a preparation writes, whole or (hidden, ending in .part) half.
_NAMES = (
    rf"(?:{'|'.join(SPLITS)})-\d+-of-\d+-[0-9a-f]{{8}}\.parquet",
    r"font-[0-9a-f]{16}\.font",
    re.escape(INFO_NAME),
    re.escape(REPAIRS_NAME),
    r"(?:stimulus|counts|valid|behaviour|eye)\.npy",
    r"trials\.json",
)
_WRITTEN = re.compile("|".join(rf"{name}|\.{name}\.(?:\d+\.)?part" for name in _NAMES))


def font_name(font: FontRef) -> str:
    """How the file of a font is called inside a dataset's folder."""
    return f"font-{font.sha256[:16]}.font"


def is_written(name: str) -> bool:
    """Whether a preparation gives this name to a file of a dataset, whole or half."""
    return _WRITTEN.fullmatch(name) is not None


def hashes(info: DatasetInfo) -> dict[str, str]:
    """The SHA-256 of each file of a dataset but dataset.json, by name; the package's own font may be among them."""
    fonts = {font_name(font): font.sha256 for font in (info.pages.fonts if info.pages else ())}
    return {name: shard.sha256 for name, shard in info.files.items()} | fonts
