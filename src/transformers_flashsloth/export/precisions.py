"""Graphs with smaller numbers, by ONNX Runtime's own tools, which are imported when needed. Each rewrites a file."""

from pathlib import Path
from tempfile import TemporaryDirectory

# Beyond this protobuf holds no graph, and its weights get a file of their own.
LARGEST_FILE = 2**31 - 2**20
# Rows of a weight that share a scale in 4 bits.
BLOCK = 32
# Kept in float32 in half precision: CPUs have no kernels for these, or sums of many numbers would suffer.
IN_FLOAT32 = ["ScatterND", "ScatterElements", "Softmax", "LayerNormalization", "ReduceSum", "ReduceMax", "CumSum"]


def data_of(path: Path) -> Path:
    """The file of a graph's weights, where they are not in the graph's own."""
    return path.with_name(f"{path.name}.data")


def to_fp16(path: Path) -> None:
    """Weights and activations in float16."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32]
    # By its path: the types within a graph beyond `LARGEST_FILE` can be found in no other way.
    _rewrite(convert_float_to_float16(str(path), keep_io_types=True, op_block_list=blocked), path)


def to_uint8(path: Path) -> None:
    """Weights of products in 8 bits, a scale for each of their columns; activations are quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as aside:
        small, is_large = Path(aside, path.name), data_of(path).exists()
        quantize_dynamic(path, small, per_channel=True, weight_type=QuantType.QUInt8, use_external_data_format=is_large)
        graph = onnx.load(small)
    _rewrite(graph, path)


def to_q4(path: Path) -> None:
    """Weights of products in 4 bits, a scale for each block of `BLOCK`."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=BLOCK, is_symmetric=False)
    quantizer.process()
    quantizer.model.topological_sort()
    _rewrite(quantizer.model.model, path)


def _rewrite(graph, path: Path) -> None:
    """Puts an `onnx.ModelProto` in the place of a graph and of its weights."""
    import onnx

    size = sum(len(weight.raw_data) for weight in graph.graph.initializer)
    data_of(path).unlink(missing_ok=True)  # onnx would append to it
    onnx.save(graph, path, save_as_external_data=size > LARGEST_FILE, location=data_of(path).name)


PRECISIONS = {"fp32": None, "fp16": to_fp16, "uint8": to_uint8, "q4": to_q4}
