"""FlashSlothConfig: every number of the architecture has a name here.

Shape letters used throughout the package:
    B  rows of a batch            L  positions of a row
    N  images of a batch          V  views an image (1, or 5 in high definition)
    P  patches a view (27 x 27)   T  tokens a view after pooling (9 x 9)
    R  query runs a row           Q  queries a run (9)
    D  decoder width (2560)       Dv vision width (1152)
"""

from math import gcd

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .adapters_flashsloth import register_default_targets
from .decoders import ACCEPTANCE, PHI_2, head_has_bias
from .foreign_formats import format_of
from .spatial_attention_pooling import square_windows
from .vision_towers import SIGLIP_SO400M, as_pair, native_view_size

# How a window of patches becomes a token.
POOLINGS = ("attention", "average", "none")


@strict
class FlashSlothConfig(PreTrainedConfig):
    r"""
    Configuration of a FlashSloth (arXiv 2412.04317). The defaults are those of the released FlashSloth-3.2B:
    phi-2 as the decoder and SigLIP so400m-patch14-384, without its last layer, as the vision tower.

    Args:
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            The decoder. Phi-2 by default.
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            The vision tower. SigLIP so400m with 26 layers by default; the release drops the 27th
            (`mm_vision_select_layer: -2`).
        vision_feature_layer (`int`, defaults to -1):
            The layer whose output is read, counted from the last one (-1) or from the embeddings (0); layers behind it
            are not built. The output is taken as it is, before the tower's final norm, and without its class and
            register tokens.
        image_size (`int` or `list[int]`, *optional*):
            Side, or height and width, of a view in pixels, where it is not the tower's own; the tower then
            interpolates its position embeddings.
        image_token_id (`int`, defaults to 50297):
            Id of the image placeholder; an image takes V x T of them.
        query_token_id (`int`, defaults to 50295):
            Id of the query placeholder; every user turn ends with `num_query_tokens` of them.
        num_query_tokens (`int`, defaults to 9):
            Q, the learned queries of a run (paper section 3.3). With 0 there are neither queries nor an embedded query
            module: the visual tokens are all that the decoder gets.
        query_init_token_id (`int`, *optional*, defaults to 764):
            Token whose embedding is added to every learned query (" ." in phi-2's vocabulary); `None` adds nothing.
        user_prefix_ids (`list[int]`, defaults to `[50296, 29904, 25]`):
            Ids that open a user turn after an answer (`</s>`, "USER", ":"): the question begins behind them. None
            (`[]`): a question without an image of its own begins behind the run before it.
        pooling (`str`, defaults to `"attention"`):
            How a window of patches becomes one token: `"attention"`, weighted by learned scores; `"average"`, all
            alike; `"none"`, not at all, so that every patch is a token.
        pooling_window (`int` or `list[int]`, defaults to 3):
            Side, or height and width, of the window of patches that pooling turns into one token.
        pooling_windows (`list`, *optional*):
            The windows that the model was trained with, where there are several. A call may choose any square window
            that tiles the patch grid; one that is not listed is warned of, once.
        pooling_dropout (`float`, defaults to 0.1):
            Dropout inside the scoring network of spatial attention pooling, in training only.
        embq_layer (`int` or `list[int]`, defaults to 7):
            The embedded query module runs on the hidden states that enter the decoder layer of this index. A list puts
            a module of its own before each of its layers.
        embq_hidden_size (`int`, defaults to 576):
            Width of the embedded query module.
        embq_num_heads (`int`, *optional*):
            Attention heads of the embedded query module; by default the decoder's number, or the largest divisor of it
            that fits.
        projector_hidden_act (`str`, defaults to `"gelu"`):
            Activation between the projector's two linears.
        lm_head_bias (`bool`, *optional*):
            Whether the language head has a bias; by default as the decoder's own, such as phi-2's, has.
        tie_word_embeddings (`bool`, *optional*):
            Whether the language head shares the input embeddings; by default as `text_config` says.

    Raises:
        ValueError: if two numbers do not fit each other; the message says what would fit.
    """

    model_type = "flashsloth"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int = -1
    image_size: int | list[int] | tuple[int, ...] | None = None
    image_token_id: int = 50297
    query_token_id: int = 50295
    num_query_tokens: int = 9
    query_init_token_id: int | None = 764
    user_prefix_ids: list[int] | tuple[int, ...] = (50296, 29904, 25)
    pooling: str = "attention"
    pooling_window: int | list[int] | tuple[int, ...] = 3
    pooling_windows: list[int | list[int]] | None = None
    pooling_dropout: float | int = 0.1
    embq_layer: int | list[int] | tuple[int, ...] = 7
    embq_hidden_size: int = 576
    embq_num_heads: int | None = None
    projector_hidden_act: str = "gelu"
    lm_head_bias: bool | None = None
    tie_word_embeddings: bool | None = None

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """
        As upstream's, and also reads config.json of a foreign format (see `foreign_formats.py`).

        Raises:
            ValueError: if the checkpoint is of another architecture.
        """
        config, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if foreign := format_of(config):
            return foreign.config(config), unused
        if config.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is no FlashSloth: its config.json says `model_type` "
                f"{config['model_type']!r} and `architectures` {config.get('architectures')}. To build a new "
                "FlashSloth from a decoder and a vision tower run `flashsloth build`."
            )
        return config, unused

    def __post_init__(self, **kwargs):
        self.text_config = _as_config(self.text_config, PHI_2)
        self.vision_config = _as_config(self.vision_config, SIGLIP_SO400M)
        for known in ACCEPTANCE:
            known.check_configs(self.text_config, self.vision_config)
        if self.lm_head_bias is None:
            self.lm_head_bias = head_has_bias(self.text_config)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self.user_prefix_ids = list(self.user_prefix_ids)
        if self.embq_num_heads is None:
            widths = (self.embq_hidden_size, self.vision_config.hidden_size)
            self.embq_num_heads = gcd(self.text_config.num_attention_heads, *widths)

    def to_dict(self) -> dict:
        """As upstream's. PEFT reads a config this way before it chooses targets, and then finds ours."""
        register_default_targets(self.text_config)
        return super().to_dict()

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of a view in pixels (384, 384)."""
        return as_pair(native_view_size(self.vision_config) if self.image_size is None else self.image_size)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid of a view (27, 27)."""
        sizes = zip(self.view_size, as_pair(self.vision_config.patch_size), strict=True)
        return tuple(pixels // patch for pixels, patch in sizes)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width, in patches, of what becomes one token (3, 3)."""
        return (1, 1) if self.pooling == "none" else as_pair(self.pooling_window)

    @property
    def tokens_per_view(self) -> int:
        """T, what pooling leaves of a view (81)."""
        (rows, columns), (height, width) = self.patch_grid, self.window
        return (rows // height) * (columns // width)

    @property
    def windows(self) -> dict[int, tuple[int, int]]:
        """The windows that a call can choose, by the tokens that they leave of a view: its own, and square ones."""
        return square_windows(self.patch_grid) | {self.tokens_per_view: self.window}

    @property
    def num_vision_layers(self) -> int:
        """Layers of the vision tower that run (26)."""
        layer, num_layers = self.vision_feature_layer, self.vision_config.num_hidden_layers
        return layer if layer >= 0 else num_layers + 1 + layer

    @property
    def embq_layers(self) -> list[int]:
        """The decoder layers that an embedded query module runs before; none without queries."""
        layers = [self.embq_layer] if isinstance(self.embq_layer, int) else list(self.embq_layer)
        return layers if self.num_query_tokens else []

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Ids that stand for images and queries: never generated, never learned. Without queries only the image's."""
        return (self.image_token_id, self.query_token_id) if self.num_query_tokens else (self.image_token_id,)

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers, under the name that upstream's early exit (`assistant_early_exit`) reads and sets."""
        return self.text_config.num_hidden_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        self.text_config.num_hidden_layers = value

    def validate_architecture(self):
        """Refuses numbers that no model can be built from (called by `@strict` after construction)."""
        for known in ACCEPTANCE:
            known.check_numbers(self)
        if self.pooling not in POOLINGS or max(self.embq_layers, default=0) >= self.num_hidden_layers:
            raise ValueError(f"No such model has `pooling`={self.pooling!r} and `embq_layer`={self.embq_layer}.")


def _as_config(part: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    if isinstance(part, PreTrainedConfig):
        return part
    return AutoConfig.for_model(**(default if part is None else {"model_type": default["model_type"]} | part))


__all__ = ["FlashSlothConfig"]
