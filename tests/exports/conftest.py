"""What the tests of ONNX folders share: writing a graph takes most of their time."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """RF-DETR with masks and an adapter."""
    from tests.exports.onnx_models import detector

    return detector(tmp_path_factory.mktemp("base") / "model", lora=True)


@pytest.fixture(scope="session")
def finder_folder(finder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its graph and contract, written without a word on the terminal."""
    from tests.exports.onnx_models import shipped

    place = tmp_path_factory.mktemp("shipped") / "folder"
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        shipped(finder, place)
    assert out.getvalue() == ""
    return place
