"""What vLLM quantises as it loads is the decoder alone: tower, SAP, projector and EmbQ keep their dtype."""

from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

DECODER = "language_model"


def spare_all_but_the_decoder(vllm_config) -> None:
    """
    Has linears outside of the decoder keep their dtype, such as with `--quantization fp8_per_channel`. What a
    checkpoint itself has quantised is loaded as it says.

    Args:
        vllm_config (`vllm.config.VllmConfig`): changed in place.
    """
    quantisation = vllm_config.quant_config
    if quantisation is None or getattr(vllm_config.model_config.hf_config, "quantization_config", None) is not None:
        return
    method_of = quantisation.get_quant_method

    def get_quant_method(layer, prefix: str):
        if isinstance(layer, LinearBase) and DECODER not in prefix.split("."):
            return UnquantizedLinearMethod()
        return method_of(layer, prefix)

    quantisation.get_quant_method = get_quant_method
