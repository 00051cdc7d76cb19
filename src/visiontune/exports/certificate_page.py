"""certificate.html: the certificate as a page for people."""

from pathlib import Path
from typing import Any


def write_page(folder: Path, value: dict[str, Any]) -> None:
    """Write certificate.html."""
