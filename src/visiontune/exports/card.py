"""The model card."""

from pathlib import Path
from typing import Any

from visiontune.exports.shipment import Shipment
from visiontune.run import Run


def write_card(run: Run, folder: Path, shipment: Shipment, value: dict[str, Any]) -> None:
    """Write README.md and Modelfile."""
