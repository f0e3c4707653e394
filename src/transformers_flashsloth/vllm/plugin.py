"""The entry point of vLLM's general plug-ins: makes every process of vLLM know FlashSloth."""

from importlib import import_module

PACKAGE = __package__.partition(".")[0]
ARCHITECTURE = "FlashSlothForConditionalGeneration"
AUTHORS_ARCHITECTURE = "FlashSlothForCausalLM"


def register() -> None:
    """Called by vLLM in each of its processes, more than once; does nothing that is done already."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from .config import TOKENIZER_MODE, AuthorsConfigHook, FlashSlothConfigHook

    import_module(PACKAGE)  # registers with the Auto classes
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.backend:FlashSlothForVllm")
    MODELS_CONFIG_MAP[ARCHITECTURE] = FlashSlothConfigHook
    ModelRegistry.register_model(AUTHORS_ARCHITECTURE, f"{__package__}.backend:FlashSlothForVllm")
    MODELS_CONFIG_MAP[AUTHORS_ARCHITECTURE] = AuthorsConfigHook
    if TOKENIZER_MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(TOKENIZER_MODE, f"{__package__}.prompts", "FlashSlothRenderer")
        TokenizerRegistry.register(TOKENIZER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
