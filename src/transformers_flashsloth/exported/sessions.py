"""What computes an exported graph: ONNX Runtime, or OpenVINO's own runtime, both behind one small interface."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Input(NamedTuple):
    """
    An input of a graph.

    Attributes:
        name (`str`): in the graph.
        dtype (`type`): that of NumPy.
        shape (`list`): sizes; what is dynamic is no number.
    """

    name: str
    dtype: type
    shape: list


class Session(Protocol):
    """
    A graph that is ready to run.

    Attributes:
        inputs (`list[Input]`): in the order of the graph.
        outputs (`list[str]`): their names.
    """

    inputs: list[Input]
    outputs: list[str]

    def run(self, names: list[str] | None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of some names, or all, for inputs by their names."""


class OnnxRuntimeSession:
    """A graph on ONNX Runtime, on the first of some execution providers that can."""

    def __init__(self, path: Path, providers: list[str] | None, threads: int | None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = providers or ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self.inputs = [Input(value.name, _DTYPES[value.type], value.shape) for value in session.get_inputs()]
        self.outputs = [value.name for value in session.get_outputs()]
        self.run = session.run


class OpenVinoSession:
    """A graph on OpenVINO, on the first of some of its devices, such as CPU, GPU and NPU."""

    def __init__(self, path: Path, providers: list[str] | None, threads: int | None):
        import openvino

        # OpenVINO may choose a lower precision by itself, as its documentation says.
        options = {"INFERENCE_PRECISION_HINT": "f32"} | ({} if threads is None else {"INFERENCE_NUM_THREADS": threads})
        self.graph = openvino.Core().compile_model(str(path), (providers or ["CPU"])[0], options)
        self.inputs = [
            Input(port.any_name, port.element_type.to_dtype(), [_size(size) for size in port.partial_shape])
            for port in self.graph.inputs
        ]
        self.outputs = [port.any_name for port in self.graph.outputs]

    def run(self, names: list[str] | None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = self.graph.create_infer_request().infer(feed)
        return [found[name].copy() for name in names or self.outputs]


RUNTIMES = {"onnxruntime": OnnxRuntimeSession, "openvino": OpenVinoSession}


def open_sessions(
    paths: list[Path], runtime: str = "onnxruntime", providers: list[str] | None = None, threads: int | None = None
) -> list[Session]:
    """
    Opens graphs.

    Raises:
        ValueError: if there is no such runtime.
        ImportError: if it is not installed.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"There is no runtime {runtime!r}: choose one of {', '.join(RUNTIMES)}.")
    try:
        return [RUNTIMES[runtime](path, providers, threads) for path in paths]
    except ImportError as error:
        raise ImportError(f"An exported checkpoint needs its runtime: pip install {runtime}") from error


def _size(size) -> int | None:
    return size.get_length() if size.is_static else None
