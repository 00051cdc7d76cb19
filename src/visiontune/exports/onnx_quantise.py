"""Graphs in eight bits by onnxruntime's quantiser: weights by channel, activations by what calibration images show."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visiontune.errors import MachineError
from visiontune.progress import warn

OPERATORS = ("Conv", "Gemm", "MatMul")
Inputs = Mapping[str, NDArray[np.float32]]


def quantise(graph: Path, out: Path, inputs: Iterable[Inputs]) -> dict[str, Any]:
    """Write a float32 graph in eight bits to `out`; says how: {"form": "static" or "dynamic", "share": of the numbers
    that are stored in eight bits}.

    Convolutions and products with weights compute in eight bits, all else in float32. Weights have 7 bits and a scale
    for each channel: products of 8 bits with 8 can run over on processors without VNNI. Activations get the range that
    the `inputs` show; where onnxruntime cannot do that, they are measured anew in each image ("dynamic"). MachineError
    without onnxruntime.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.calibrate import CalibrationDataReader
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise MachineError("The package onnxruntime is missing.", fix="pip install 'visiontune[onnx]'") from None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> Any:
            return next(self.left, None)

    options: dict[str, Any] = {
        "op_types_to_quantize": list(OPERATORS),
        "per_channel": True,
        "reduce_range": True,
        "weight_type": QuantType.QInt8,
        "extra_options": {"MatMulConstBOnly": True},
    }
    with tempfile.TemporaryDirectory(prefix="visiontune-onnx-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        large = graph.with_name(f"{graph.name}.data").exists()  # beyond what one protobuf file can hold
        quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True, save_as_external_data=large)
        try:
            quantize_static(str(prepared), str(out), Reader(), activation_type=QuantType.QUInt8, **options)
            form = "static"
        except Exception as error:  # whatever its passes over the graph raise
            warn(f"{graph.name}: activations cannot be calibrated ({error}); each image measures its own")
            quantize_dynamic(str(prepared), str(out), **options)
            form = "dynamic"
    return {"form": form, "share": round(_in_eight_bits(out), 4)}


def _in_eight_bits(path: Path) -> float:
    import onnx

    sizes = {True: 0, False: 0}
    for tensor in onnx.load(path).graph.initializer:
        sizes[tensor.data_type == onnx.TensorProto.INT8] += int(np.prod(tensor.dims))
    return sizes[True] / max(1, sum(sizes.values()))
