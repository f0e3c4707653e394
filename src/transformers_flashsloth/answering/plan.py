"""Which questions are answered together, and in which of the two ways."""

from typing import NamedTuple

from transformers import PreTrainedModel

from .prompts import images_of

# Options of `generate` that take one row.
ONE_ROW = ("assistant_model", "prompt_lookup_num_tokens")
# Options of `generate` with which a cache is none of its own making, or has other rows than there are prompts.
OWN_CACHES = (*ONE_ROW, "cache_implementation", "cache", "past_key_values")


class Batch(NamedTuple):
    """
    Attributes:
        indices (`list[int]`): of the questions that are answered together.
        shares_prefix (`bool`): whether they are answered behind a prefix that they have in common.
        following (`int`, *optional*): the question after them that may have it in common, too.
    """

    indices: list[int]
    shares_prefix: bool
    following: int | None


def batches_of(
    conversations: list[list[dict]], texts: list[str], model: PreTrainedModel, options: dict, batch_size: int
) -> list[Batch]:
    """
    Questions about the same images side by side. Those that fill a batch by themselves share their prefix, which then
    is the quicker way: the batch is as large as any, and its prompts are shorter. The others are mixed, and share the
    features of their images.

    Args:
        conversations (`list[list[dict]]`): messages.
        texts (`list[str]`): the prompts that they make.
        model: that answers.
        options (`dict`): of `generate`.
        batch_size (`int`): most questions of a batch.
    """
    if any(options.get(name) is not None for name in ONE_ROW):
        batch_size = 1
    may_share = may_keep_prefix(model, options, batch_size)
    groups: dict[tuple, list[int]] = {}
    for index, conversation in enumerate(conversations):
        groups.setdefault(images_of(conversation), []).append(index)
    full = min(batch_size, len(conversations))
    batches, mixed = [], []
    for images, group in groups.items():
        if not (may_share and images and len(group) > 1 and len(group) >= full):
            mixed += sorted(group, key=lambda index: len(texts[index]))
            continue
        # One by one, a conversation goes on behind its earlier turns; together, rows of about one length are padded
        # least.
        group = sorted(group, key=(lambda i: texts[i]) if batch_size == 1 else lambda i: len(texts[i]))
        cut = _cut(group, batch_size)
        batches += [
            Batch(indices, True, rest[0] if rest else None) for indices, rest in zip(cut, [*cut[1:], []], strict=True)
        ]
    return batches + [Batch(indices, False, None) for indices in _cut(mixed, batch_size)]


def may_keep_prefix(model: PreTrainedModel, options: dict, batch_size: int) -> bool:
    """Whether `generate` can go on behind a kept prefix with these options, and with rows padded behind it."""
    config = options.get("generation_config") or model.generation_config
    chosen = {name: options.get(name, getattr(config, name, None)) for name in (*OWN_CACHES, "use_cache")}
    beams = options.get("num_beams", getattr(config, "num_beams", 1)) or 1
    if chosen.pop("use_cache") is False or beams > 1 or any(value is not None for value in chosen.values()):
        return False
    if not hasattr(model, "get_image_features"):  # an exported one
        return False
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    return batch_size == 1 or _may_be_padded_inside(model)


def _may_be_padded_inside(model: PreTrainedModel) -> bool:
    """
    Whether padding between a prefix and a question changes nothing: every layer sees all positions that the mask
    allows, and knows them by `position_ids`.
    """
    text = model.config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if not getattr(text, "layer_types", None) else None
    rotates = getattr(text, "rope_parameters", None) is not None
    return layers == {"full_attention"} and window is None and rotates and not getattr(model, "_is_stateful", False)


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
