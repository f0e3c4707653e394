"""A new, untrained FlashSloth on disk, made of a decoder and a vision tower: what `flashsloth build` does."""

from pathlib import Path

from transformers import set_seed

from ..checkpoints.written_aside import check_is_new, written_aside
from ..model.modeling_flashsloth import FlashSlothForConditionalGeneration
from .backbones import from_backbones


def build_checkpoint(
    destination: Path,
    text: str,
    vision: str,
    *,
    dtype: str = "auto",
    image_hd: bool = False,
    seed: int = 0,
    **choices,
) -> FlashSlothForConditionalGeneration:
    """
    Builds a model and its processor of two backbones and saves them, whole or not at all. Decoder, head and vision
    tower keep their weights; pooling, projector, queries and embedded query module start as the release starts them.

    Args:
        destination (`Path`): directory that does not exist yet.
        text (`str`): causal language model of transformers, with its tokenizer: directory or Hub id.
        vision (`str`): vision tower, or a model with one as its vision part: directory or Hub id.
        dtype (`str`, defaults to `"auto"`): number type; by default the decoder's.
        image_hd (`bool`, defaults to `False`): whether images are read in high definition.
        seed (`int`, defaults to 0): of the new parts.
        choices: those of `from_backbones`: fields of [`FlashSlothConfig`], such as `embq_layer`, and `text_options`.

    Returns:
        [`FlashSlothForConditionalGeneration`], as saved.

    Raises:
        OSError: if a checkpoint is missing, `destination` exists or there is no space left.
        ValueError or StrictDataclassError: if the parts do not fit each other; the message says what would fit.
    """
    check_is_new(destination)
    set_seed(seed)
    model, processor = from_backbones(text, vision, dtype=dtype, image_hd=image_hd, **choices)
    with written_aside(destination, sum(tensor.nbytes for tensor in model.state_dict().values())) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return model
