"""Graphs with smaller numbers, by ONNX Runtime's own tools, which are imported when needed. Each rewrites a file."""

from pathlib import Path

# Rows of a weight that share a scale in 4 bits.
BLOCK = 32
# Kept in float32 in half precision: CPUs have no kernels for these, or sums of many numbers would suffer.
IN_FLOAT32 = ["ScatterND", "ScatterElements", "Softmax", "LayerNormalization", "ReduceSum", "ReduceMax", "CumSum"]


def to_fp16(path: Path) -> None:
    """Weights and activations in float16."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = [*DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32]
    graph = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=blocked)
    onnx.save(graph, path)


def to_uint8(path: Path) -> None:
    """Weights of products in 8 bits, a scale for each of their columns; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, path, weight_type=QuantType.QUInt8, per_channel=True)


def to_q4(path: Path) -> None:
    """Weights of products in 4 bits, a scale for each block of `BLOCK`."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=BLOCK, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path))


PRECISIONS = {"fp32": None, "fp16": to_fp16, "uint8": to_uint8, "q4": to_q4}
