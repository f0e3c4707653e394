"""FlashSlothConfig: every number of the architecture has a name here.

Shape letters used throughout the package:
    B  rows of a batch            L  positions of a row
    N  images of a batch          V  views an image (1, or 5 in high definition)
    P  patches a view (27 x 27)   T  tokens a view after pooling (9 x 9)
    R  query runs a row           Q  queries a run (9)
    D  decoder width (2560)       Dv vision width (1152)
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .adapters_flashsloth import register_default_targets
from .authors_checkpoint import config_from_authors, is_authors_config

# The parts of the released FlashSloth-3.2B.
PHI_2 = {
    "model_type": "phi",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
    "resid_pdrop": 0.1,
    "max_position_embeddings": 2048,
    "bos_token_id": 50256,
    "eos_token_id": 50296,
    "pad_token_id": 50256,
}
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
    "vision_use_head": False,
}


@strict
class FlashSlothConfig(PreTrainedConfig):
    r"""
    Configuration of a FlashSloth (arXiv 2412.04317). The defaults are those of the released FlashSloth-3.2B:
    phi-2 as the decoder and SigLIP so400m-patch14-384, without its last layer, as the vision tower.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            The decoder. Phi-2 by default.
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            The vision tower, holding only the layers that run. SigLIP so400m with 26 layers by default; the release
            drops the 27th (`mm_vision_select_layer: -2`).
        image_token_id (`int`, defaults to 50297):
            Id of the image placeholder; an image takes V x T of them.
        query_token_id (`int`, defaults to 50295):
            Id of the query placeholder; every user turn ends with `num_query_tokens` of them.
        num_query_tokens (`int`, defaults to 9):
            Q, the learned queries of a run (paper section 3.3).
        query_init_token_id (`int`, *optional*, defaults to 764):
            Token whose embedding is added to every learned query (" ." in phi-2's vocabulary); `None` adds nothing.
        user_prefix_ids (`list[int]`, defaults to `[50296, 29904, 25]`):
            Ids that open a user turn after an answer (`</s>`, "USER", ":"): the question begins behind them.
        pooling_window (`int`, defaults to 3):
            Side of the square window of patches that spatial attention pooling turns into one token.
        pooling_dropout (`float`, defaults to 0.1):
            Dropout inside the scoring network of spatial attention pooling, in training only.
        embq_layer (`int`, defaults to 7):
            The embedded query module runs on the hidden states that enter the decoder layer of this index.
        embq_hidden_size (`int`, defaults to 576):
            Width of the embedded query module.
        embq_num_heads (`int`, *optional*):
            Attention heads of the embedded query module; the decoder's number by default.
        projector_hidden_act (`str`, defaults to `"gelu"`):
            Activation between the projector's two linears.
        lm_head_bias (`bool`, defaults to `True`):
            Whether the language head has a bias, as phi-2's has.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the language head shares the input embeddings.

    Raises:
        ValueError: if two numbers do not fit each other; the message says what would fit.

    Example:

    ```python
    >>> from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration

    >>> config = FlashSlothConfig(text_config={"model_type": "phi", "num_hidden_layers": 8}, embq_layer=4)
    >>> model = FlashSlothForConditionalGeneration(config)
    ```
    """

    model_type = "flashsloth"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 50297
    query_token_id: int = 50295
    num_query_tokens: int = 9
    query_init_token_id: int | None = 764
    user_prefix_ids: list[int] | tuple[int, ...] = (50296, 29904, 25)
    pooling_window: int = 3
    pooling_dropout: float | int = 0.1
    embq_layer: int = 7
    embq_hidden_size: int = 576
    embq_num_heads: int | None = None
    projector_hidden_act: str = "gelu"
    lm_head_bias: bool = True
    tie_word_embeddings: bool = False

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """
        As upstream's, and also reads config.json of the authors' format.

        Raises:
            ValueError: if the checkpoint is of another architecture.
        """
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if is_authors_config(config):
            return config_from_authors(config), unused
        if config.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is no FlashSloth: its config.json says `model_type` "
                f"{config['model_type']!r} and `architectures` {config.get('architectures')}. To build a new "
                "FlashSloth from a decoder and a vision tower run `python conversion/build_from_backbones.py`."
            )
        return config, unused

    def __post_init__(self, **kwargs):
        self.text_config = _as_config(self.text_config, PHI_2)
        self.vision_config = _as_config(self.vision_config, SIGLIP_SO400M)
        super().__post_init__(**kwargs)
        self.user_prefix_ids = list(self.user_prefix_ids)
        if self.embq_num_heads is None:
            self.embq_num_heads = self.text_config.num_attention_heads

    def to_dict(self) -> dict:
        """As upstream's. PEFT reads a config this way before it chooses targets, and then finds ours."""
        register_default_targets()
        return super().to_dict()

    @property
    def patch_grid(self) -> int:
        """Side of the square patch grid of a view (27)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def tokens_per_view(self) -> int:
        """T, what pooling leaves of a view (81)."""
        return (self.patch_grid // self.pooling_window) ** 2

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers, under the name that upstream's early exit (`assistant_early_exit`) reads and sets."""
        return self.text_config.num_hidden_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        self.text_config.num_hidden_layers = value

    def validate_architecture(self):
        """Refuses combinations that no model can be built from (called by `@strict` after construction)."""
        for name in ("num_query_tokens", "pooling_window", "embq_hidden_size", "embq_num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.patch_grid % self.pooling_window:
            divisors = [n for n in range(1, self.patch_grid + 1) if self.patch_grid % n == 0]
            raise ValueError(
                f"`pooling_window`={self.pooling_window} does not tile the {self.patch_grid}x{self.patch_grid} patch "
                f"grid of the vision tower; windows that do: {divisors}."
            )
        num_layers = self.text_config.num_hidden_layers
        if not 0 <= self.embq_layer < num_layers:
            raise ValueError(
                f"`embq_layer`={self.embq_layer} is no layer of the decoder; choose one of 0 to {num_layers - 1}."
            )
        for name, width in (("embq_hidden_size", self.embq_hidden_size), ("the vision width", self._vision_width)):
            if width % self.embq_num_heads:
                raise ValueError(
                    f"`embq_num_heads`={self.embq_num_heads} does not divide {name} ({width}); "
                    f"a number that divides both {self.embq_hidden_size} and {self._vision_width} fits."
                )
        self._validate_token_ids()

    @property
    def _vision_width(self) -> int:
        return self.vision_config.hidden_size

    def _validate_token_ids(self):
        vocab_size = self.text_config.vocab_size
        ids = {"image_token_id": self.image_token_id, "query_token_id": self.query_token_id}
        if self.query_init_token_id is not None:
            ids["query_init_token_id"] = self.query_init_token_id
        ids |= {f"user_prefix_ids[{i}]": token_id for i, token_id in enumerate(self.user_prefix_ids)}
        for name, token_id in ids.items():
            if not 0 <= token_id < vocab_size:
                raise ValueError(
                    f"`{name}`={token_id} is outside the decoder's vocabulary; it must be in 0 to {vocab_size - 1}."
                )
        placeholders = {self.image_token_id, self.query_token_id}
        if len(placeholders) < 2 or placeholders & {self.query_init_token_id, *self.user_prefix_ids}:
            raise ValueError(
                f"`image_token_id`={self.image_token_id} and `query_token_id`={self.query_token_id} must differ from "
                f"each other, from `query_init_token_id`={self.query_init_token_id} and from "
                f"`user_prefix_ids`={self.user_prefix_ids}."
            )


def _as_config(part: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    if isinstance(part, PreTrainedConfig):
        return part
    return AutoConfig.for_model(**(default if part is None else {"model_type": default["model_type"]} | part))


__all__ = ["FlashSlothConfig"]
