"""ONNX Runtime with the threads that we say, and clear errors."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from lilliput.core.errors import ArtifactError, DataError, MissingExtraError

ERRORS_ONLY = 3


def session(model: str | Path | bytes, *, threads: int = 1, optimize: bool = True) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, operations one after the other, each on `threads` threads.

    Without `optimize` every operation runs as the file says it, none is fused.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("ONNX Runtime", "it is not installed", "pip install 'lilliput[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    states = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    broken = tuple(t for t in states if isinstance(t, type) and issubclass(t, Exception))
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except broken as error:
        what = "an ONNX model" if isinstance(model, bytes) else str(model)
        raise ArtifactError(
            f"open {what}", f"ONNX Runtime refuses it: {_first_line(error)}", "export it again"
        ) from error


def predict(session: Any, inputs: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
    """One call with a batch of float32; a tuple where the model has several outputs."""
    name = session.get_inputs()[0].name
    expected = session.get_inputs()[0].shape
    fits = len(expected) == inputs.ndim and all(
        not isinstance(e, int) or e == s for e, s in zip(expected, inputs.shape, strict=True)
    )
    if not fits:
        raise DataError("predict", f"a batch of shape {list(inputs.shape)}", f"give one of shape {expected}")
    outputs = session.run(None, {name: np.ascontiguousarray(inputs, dtype=np.float32)})
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
