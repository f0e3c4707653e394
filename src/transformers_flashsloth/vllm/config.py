"""What an engine for FlashSloth has to be, however it is started."""

from vllm.config import CompilationConfig, CUDAGraphMode
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

logger = init_logger("vllm.flashsloth")

TOKENIZER_MODE = "flashsloth"
# The opaque op that runs EmbQ, and where torch finds it.
OP = "flashsloth_embq"
NAMESPACE = "vllm"
WINDOW_REFUSED = "`pooling_window` cannot be chosen here: images are pooled in the model's own windows. Leave it out."


class AuthorsConfigHook(VerifyAndUpdateConfig):
    """Of the authors' format, whose config.json describes a phi and nothing that vLLM could build."""

    @staticmethod
    def verify_and_update_model_config(model_config) -> None:
        """Raises ValueError, with the command that converts."""
        raise ValueError(
            f"{model_config.model} is in the format of FlashSloth's authors, which vLLM cannot load. Convert it first: "
            f"`flashsloth convert {model_config.model} DIRECTORY`, then serve the directory."
        )


class FlashSlothConfigHook(VerifyAndUpdateConfig):
    """
    Prompts enter whole: queries need their question and their images in the same step. So chunked prefill and prefix
    caching are switched off, and the budgets of a step hold the longest prompt.
    """

    @staticmethod
    def verify_and_update_model_config(model_config) -> None:
        """
        Has prompts tokenised by `prompts.py`, which expands queries.

        Raises:
            ValueError: for a `pooling_window` of the whole server.
        """
        multimodal = getattr(model_config, "multimodal_config", None)
        if (getattr(multimodal, "mm_processor_kwargs", None) or {}).get("pooling_window") is not None:
            raise ValueError(WINDOW_REFUSED)
        if model_config.tokenizer_mode in ("auto", "hf"):
            model_config.tokenizer_mode = TOKENIZER_MODE

    @staticmethod
    def verify_and_update_config(vllm_config) -> None:
        """
        Sets what must be so.

        Raises:
            ValueError: for pipeline parallelism, or graphs that are not split.
        """
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "FlashSloth cannot run with a --pipeline-parallel-size above 1: the stage with the embedded query "
                "module would not have the images. Use --tensor-parallel-size or --data-parallel-size."
            )
        scheduler, longest = vllm_config.scheduler_config, vllm_config.model_config.max_model_len
        scheduler.enable_chunked_prefill = False
        scheduler.long_prefill_token_threshold = 0
        scheduler.disable_chunked_mm_input = True
        vllm_config.cache_config.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, longest)
        for name in ("max_num_encoder_input_tokens", "encoder_cache_size"):
            setattr(scheduler, name, max(getattr(scheduler, name), scheduler.max_num_batched_tokens))
        split_graphs_at_embq(vllm_config.compilation_config)
        logger.info(
            "FlashSloth takes prompts whole: chunked prefill and prefix caching are off, a step holds %d tokens.",
            scheduler.max_num_batched_tokens,
        )


def split_graphs_at_embq(compilation: CompilationConfig) -> None:
    """
    Has compiled graphs end before EmbQ and begin anew behind it, as at attention: it reads the prompts of a step, which
    no CUDA graph could hold. The list is private, as what vLLM offers to users replaces its own ops.

    Raises:
        ValueError: where the user asks for graphs that are not split at all.
    """
    if compilation.splitting_ops == []:
        raise ValueError(
            "FlashSloth cannot run in one whole graph, as its embedded query module reads the prompts of a step: leave "
            "`splitting_ops` out, or compile nothing (--enforce-eager)."
        )
    op = f"{NAMESPACE}::{OP}"
    if op not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(op)
    if compilation.splitting_ops and op not in compilation.splitting_ops:
        compilation.splitting_ops.append(op)
    if compilation.cudagraph_mode == CUDAGraphMode.FULL:  # steps with prompts, too
        compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
