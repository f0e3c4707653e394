"""Which numbers of a FlashSlothConfig fit each other and those of its parts."""

from ..model.configuration_flashsloth import POOLINGS, FlashSlothConfig
from ..model.vision_towers import as_pair


def check_numbers(config: FlashSlothConfig) -> None:
    """Raises ValueError, with what would fit, for a config that no model can be built from."""
    for name in ("embq_hidden_size", "embq_num_heads"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
    if config.num_query_tokens < 0:
        raise ValueError(f"`num_query_tokens` must be at least 0 (no queries), got {config.num_query_tokens}.")
    _check_views(config)
    _check_embq(config)
    _check_token_ids(config)


def _check_views(config: FlashSlothConfig) -> None:
    num_layers = config.vision_config.num_hidden_layers
    if not 0 <= config.num_vision_layers <= num_layers:
        raise ValueError(
            f"`vision_feature_layer`={config.vision_feature_layer} is no layer of the vision tower, which has "
            f"{num_layers}; choose one of {-num_layers - 1} to {num_layers}."
        )
    if config.pooling not in POOLINGS:
        raise ValueError(f"`pooling`={config.pooling!r} is unknown; choose one of {', '.join(POOLINGS)}.")
    if min(config.patch_grid) < 1:
        size = _by(config.view_size)
        raise ValueError(f"A view of {size} pixels has no patch of `patch_size`={config.vision_config.patch_size}.")
    if min(config.window) < 1 or any(n % w for n, w in zip(config.patch_grid, config.window, strict=True)):
        divisors = [[n for n in range(1, side + 1) if side % n == 0] for side in config.patch_grid]
        fitting = str(divisors[0]) if divisors[0] == divisors[1] else f"{divisors[0]} high, {divisors[1]} wide"
        raise ValueError(
            f"`pooling_window`={config.pooling_window} does not tile the {_by(config.patch_grid)} patch grid of the "
            f"vision tower; windows that do: {fitting}."
        )
    if unfit := [window for window in config.pooling_windows or [] if as_pair(window) not in config.windows.values()]:
        raise ValueError(f"`pooling_windows` lists {unfit[0]}; it can list {[*config.windows.values()]}.")


def _check_embq(config: FlashSlothConfig) -> None:
    num_layers = config.text_config.num_hidden_layers
    layers = [config.embq_layer] if isinstance(config.embq_layer, int) else list(config.embq_layer)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(
            f"`embq_layer`={config.embq_layer} must name at least one layer, and each once; for no embedded query "
            "module set `num_query_tokens=0`."
        )
    for layer in config.embq_layers:
        if not 0 <= layer < num_layers:
            raise ValueError(
                f"`embq_layer`={config.embq_layer} is no layer of the decoder; choose one of 0 to {num_layers - 1}."
            )
    vision_width = config.vision_config.hidden_size
    for name, width in (("embq_hidden_size", config.embq_hidden_size), ("the vision width", vision_width)):
        if width % config.embq_num_heads:
            raise ValueError(
                f"`embq_num_heads`={config.embq_num_heads} does not divide {name} ({width}); "
                f"a number that divides both {config.embq_hidden_size} and {vision_width} fits."
            )


def _check_token_ids(config: FlashSlothConfig) -> None:
    vocab_size = config.text_config.vocab_size
    ids = {"image_token_id": config.image_token_id, "query_token_id": config.query_token_id}
    if config.query_init_token_id is not None:
        ids["query_init_token_id"] = config.query_init_token_id
    ids |= {f"user_prefix_ids[{i}]": token_id for i, token_id in enumerate(config.user_prefix_ids)}
    for name, token_id in ids.items():
        if not 0 <= token_id < vocab_size:
            raise ValueError(
                f"`{name}`={token_id} is outside the decoder's vocabulary; it must be in 0 to {vocab_size - 1}."
            )
    placeholders = {config.image_token_id, config.query_token_id}
    if len(placeholders) < 2 or placeholders & {config.query_init_token_id, *config.user_prefix_ids}:
        raise ValueError(
            f"`image_token_id`={config.image_token_id} and `query_token_id`={config.query_token_id} must differ from "
            f"each other, from `query_init_token_id`={config.query_init_token_id} and from "
            f"`user_prefix_ids`={config.user_prefix_ids}."
        )


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"
