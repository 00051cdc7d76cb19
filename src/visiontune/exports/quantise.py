"""Which type each tensor of a GGUF file gets, and its values in that type."""

import ctypes
import functools
import importlib.util
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import MachineError, VisiontuneError
from visiontune.machine import cores

Quantisation = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"]
QUANTISATIONS: tuple[str, ...] = get_args(Quantisation)

# llama.cpp's numbers of file types (enum llama_ftype).
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32}
K_QUANTS = {"q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}

_BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q5_1": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256}
_NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # what llama.cpp takes for rows that do not fill blocks
ROWS_AT_ONCE = 64
_MISSING = "pip install 'visiontune[gguf]'"


def check_quantisation(quantisation: str) -> None:
    """Raise VisiontuneError for an unknown quantisation, MachineError where the package that it needs is missing."""
    if quantisation not in QUANTISATIONS:
        raise VisiontuneError(
            f"There is no quantisation '{quantisation}'.", fix=f"quantisations: {', '.join(QUANTISATIONS)}"
        )
    gguf_package()
    if quantisation in K_QUANTS:
        ggml()


def projector_quantisation(quantisation: str) -> str:
    """What the projector beside a text model of `quantisation` gets: below eight bits it is q8_0."""
    return "q8_0" if quantisation in (*K_QUANTS, "q4_0") else quantisation


def tensor_type(name: str, shape: Sequence[int], quantisation: str, *, layers: int, tied: bool) -> str:
    """The ggml type of a tensor of a file in `quantisation`, by its GGUF name and its `shape` (rows last).

    Norms, biases and whatever has one dimension stay F32. q4_0 and the K-quants follow llama.cpp's quantiser (which
    gives the output weights, or the embeddings that stand for them in a `tied` model, more bits, and in the M mixes
    also some of the `layers`), except that q4_0's output weights are Q8_0 and not Q6_K, which the gguf package cannot
    write. Rows that do not fill the blocks of a type get the nearest one that they fill, at last F16.
    """
    if len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return "F32"
    wanted = K_QUANTS.get(quantisation, quantisation.upper())
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        wanted = "Q6_K" if quantisation in K_QUANTS else "Q8_0" if quantisation == "q4_0" else wanted
    elif quantisation in ("q4_k_m", "q5_k_m") and (block := re.match(r"blk\.(\d+)\.(attn_v|ffn_down)\.", name)):
        layer, eighth = int(block[1]), layers // 8
        if layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2:
            wanted = "Q6_K"
    if shape[-1] % _BLOCKS.get(wanted, 1):
        wanted = _NARROWER.get(wanted, wanted)
    return "F16" if shape[-1] % _BLOCKS.get(wanted, 1) else wanted


def quantised(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """`values` (finite) in the ggml type `kind`: floats of the same shape, or bytes whose rows are blocks.

    K-quants are made by ggml's own code; everything else by the package gguf, which gives the same bytes.
    """
    gguf = gguf_package()
    if kind not in K_QUANTS.values():
        with np.errstate(over="ignore"):  # the caller looks at what came out
            return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    number = int(gguf.GGMLQuantizationType[kind])
    quantize = ggml().ggml_quantize_chunk
    values = np.ascontiguousarray(values)
    rows, columns = len(values), values.shape[-1]
    block, size = gguf.GGML_QUANT_SIZES[number]
    blocks = np.empty((rows, columns // block * size), np.uint8)

    def fill(start: int) -> int:
        """Quantise some rows; the interpreter's lock is free meanwhile."""
        some = slice(start, start + ROWS_AT_ONCE)
        return quantize(number, values[some].ctypes.data, blocks[some].ctypes.data, 0, len(values[some]), columns, None)

    with ThreadPoolExecutor(cores()) as pool:
        written = sum(pool.map(fill, range(0, rows, ROWS_AT_ONCE)))
    if written != blocks.nbytes:
        raise MachineError(
            f"ggml wrote {written} bytes of {kind} where {blocks.nbytes} were due.",
            fix=f"a version of xllamacpp that visiontune was tested with: {_MISSING}",
        )
    return blocks


def gguf_package() -> Any:
    """The package gguf, imported when it is needed: it is an extra. Raises MachineError where it is missing."""
    try:
        import gguf
    except ImportError:
        raise MachineError("The package gguf is missing.", fix=_MISSING) from None
    return gguf


@functools.cache
def ggml() -> ctypes.CDLL:
    """ggml's C functions, as the package xllamacpp carries them. Raises MachineError where it is missing.

    llama.cpp's quantiser of whole files is not among them; the one of rows, which that calls, is. The library is loaded
    without its Python module: compiled by another Cython than uharfbuzz's, that does not load beside it.
    """
    found = importlib.util.find_spec("xllamacpp")
    folders = [] if found is None else found.submodule_search_locations or []
    libraries = [path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.so"))]
    if not libraries:
        raise MachineError("K-quants need the package xllamacpp, and it is missing.", fix=_MISSING)
    library = ctypes.CDLL(str(libraries[0]))
    rows = (ctypes.c_int64,) * 3  # first element, rows, columns
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *rows, ctypes.c_void_p)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library
