"""The trained model as llama.cpp loads it: a merged folder to GGUF, text model and projector apart.

Names, shapes, types and values are those of llama.cpp's own tools (`tests/exports/test_gguf.py` compares them).
"""

import math
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import ModelError
from visiontune.exports.gguf_layout import File, Tensor, planned_files
from visiontune.exports.quantise import (
    FILE_TYPES,
    QUANTISATIONS,
    Quantisation,
    check_quantisation,
    gguf_package,
    quantised,
)
from visiontune.files import written_whole

__all__ = ["QUANTISATIONS", "GGUFFile", "Quantisation", "predicted_bytes", "write_gguf"]


@dataclass(frozen=True)
class GGUFFile:
    """A file that was written: its size, its number of tensors, and how many there are of each ggml type."""

    path: Path
    bytes: int
    tensors: int
    types: dict[str, int]


def predicted_bytes(merged: Path, quantisation: str, image_size: int | None = None) -> tuple[int, int | None]:
    """The sizes in bytes of the text file and of the projector (None without vision) that `write_gguf` would write.

    Read from the configs and the tensors' headers alone. Raises what `write_gguf` raises before it writes.
    """
    sizes = []
    for file, writer in _prepared(merged, quantisation, image_size, None, "model", None):
        keys = writer.kv_data[0].items()
        header = 24 + sum(12 + len(key.encode()) + _value_bytes(value.value) for key, value in keys)
        header += sum(24 + len(tensor.name) + 8 * len(tensor.shape) for tensor in file.tensors)
        sizes.append(_padded(header) + sum(_padded(_tensor_bytes(tensor)) for tensor in file.tensors))
    return sizes[0], sizes[1] if len(sizes) > 1 else None


def write_gguf(
    merged: Path,
    out: Path,
    quantisation: str,
    *,
    image_size: int | None = None,
    longest_edge: int | None = None,
    name: str = "model",
    with_template: str | None = None,
) -> list[GGUFFile]:
    """Write the text model to `out/NAME-TYPE.gguf`, and for a vision-language model `out/mmproj-NAME-TYPE.gguf`.

    `merged` is a transformers folder of SmolVLM (either generation) or of a Llama-like text model. `quantisation` is
    one of QUANTISATIONS. The projector of q4_0 and of the K-quants is Q8_0. Types follow llama.cpp: `GGUFFile.types`
    says what a narrow model's rows really became. In q4_0 the output weights (of a tied model: the embeddings) are
    Q8_0 where llama.cpp takes Q6_K.

    `image_size` (pixels a side) makes a projector for smaller tiles than the model's own; it keeps the rows of the
    position table that transformers would use for a full image of that size. `longest_edge` (pixels) is what llama.cpp
    scales an image to before it cuts tiles; without it that is the tile's size, which gives two tiles: the image as
    its only tile and as its overview. `with_template` replaces the folder's chat template.

    Each file appears whole. Raises ModelError for a model, tokenizer or size that llama.cpp could not run as it was
    trained, MachineError where a package is missing, VisiontuneError for an unknown quantisation.
    """
    prepared = _prepared(merged, quantisation, image_size, longest_edge, name, with_template)
    return [_write(file, writer, out, name) for file, writer in prepared]


def _prepared(
    merged: Path, quantisation: str, image_size: int | None, longest_edge: int | None, name: str, template: str | None
) -> list[tuple[File, Any]]:
    """The files to write, each with a GGUFWriter that has its keys: whatever can be refused is refused here."""
    check_quantisation(quantisation)
    gguf = gguf_package()
    prepared = []
    for file in planned_files(merged, quantisation, image_size, longest_edge, name, template):
        writer = gguf.GGUFWriter(None, file.architecture)
        writer.add_type(file.kind)
        writer.add_file_type(FILE_TYPES[file.quantisation])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string("visiontune.version", version("visiontune"))
        file.add_keys(writer)
        prepared.append((file, writer))
    return prepared


def _write(file: File, writer: Any, out: Path, name: str) -> GGUFFile:
    """Write one file whole, with one tensor in memory at a time."""
    types = gguf_package().GGMLQuantizationType
    prefix = "mmproj-" if file.kind == "mmproj" else ""
    path = out / f"{prefix}{name}-{file.quantisation.upper()}.gguf"
    for tensor in file.tensors:
        size, kind = _tensor_bytes(tensor), types[tensor.type]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    with written_whole(path) as aside:
        try:
            writer.write_header_to_file(aside)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in file.tensors:
                writer.write_tensor_data(_converted(tensor))
        finally:
            writer.close()
    counted = Counter(tensor.type for tensor in file.tensors)
    return GGUFFile(path, path.stat().st_size, len(file.tensors), dict(counted.most_common()))


def _converted(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values in its type: floats, or bytes whose rows are blocks."""
    values = tensor.read()
    _check_finite(tensor, values)
    converted = quantised(values, tensor.type)
    if converted.dtype != np.uint8:
        _check_finite(tensor, converted)
    return converted


def _check_finite(tensor: Tensor, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise ModelError(
            f"Values of the tensor '{tensor.name}' are not finite in {tensor.type}.",
            where=tensor.name,
            fix="if the trained model is sound: a quantisation of a wider range, f32 or bf16",
        )


def _tensor_bytes(tensor: Tensor) -> int:
    gguf = gguf_package()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    return math.prod(tensor.shape) // block * size


def _value_bytes(value: Any) -> int:
    """The size of a key's value in the file: lengths take 8 bytes, numbers 4, truth values 1."""
    if isinstance(value, str):
        return 8 + len(value.encode())
    if isinstance(value, bool):
        return 1
    return 12 + sum(map(_value_bytes, value)) if isinstance(value, list) else 4


def _padded(size: int) -> int:
    """Tensors start at multiples of 32 bytes."""
    return -(-size // 32) * 32
