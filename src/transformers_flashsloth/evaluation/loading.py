"""The model that an evaluation asks, by the options of a command line."""

from importlib.util import find_spec

from ..checkpoints.opening import (
    InputError,
    local_directory,
    open_model,
    open_processor,
    quantisation_config,
    usable_device,
)
from .answers import Answerer


def open_answerer(
    pretrained: str,
    *,
    batch_size: int = 1,
    peft: str | None = None,
    image_hd: bool | None = None,
    num_frames: int | None = None,
    pooling_window: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    load_in: str | None = None,
    attn_implementation: str | None = None,
    seed: int = 0,
) -> Answerer:
    """
    Opens a checkpoint, of either format, to answer questions.

    Args:
        pretrained (`str`): directory or Hub id.
        batch_size (`int`): most questions at once.
        peft (`str`, *optional*): directory or Hub id of an adapter.
        image_hd (`bool`, *optional*): whether to read images in high definition; by default as the checkpoint says.
        num_frames (`int`, *optional*): most frames of a video; by default as the checkpoint says.
        pooling_window (`int`, *optional*): side of the window that becomes a token; by default as the checkpoint says.
        dtype (`str`, *optional*): by default float32 on a CPU and the checkpoint's elsewhere.
        device (`str`, *optional*): by default an accelerator if there is one.
        device_map (`str`, *optional*): such as `"auto"`, for a model larger than one device.
        load_in (`str`, *optional*): `"4bit"` or `"8bit"`.
        attn_implementation (`str`, *optional*): as in `from_pretrained`.
        seed (`int`): of sampled answers.

    Raises:
        InputError: for what cannot be opened.
    """
    where = usable_device(device)
    options = {"dtype": dtype or ("float32" if where.type == "cpu" else "auto")}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    quantisation = quantisation_config(load_in, where)
    if quantisation is not None:
        options["quantization_config"] = quantisation
    if quantisation is not None or device_map is not None:
        if find_spec("accelerate") is None:
            raise InputError("device_map= needs accelerate: pip install accelerate")
        options["device_map"] = {"": where} if device_map is None else device_map
    directory = local_directory(pretrained)
    processor = open_processor(directory)
    model = open_model(directory, **options)
    if "device_map" not in options:
        model = model.to(where)
    if peft is not None:
        model = _adapted(model, peft)
    chosen = {"image_hd": image_hd, "num_frames": num_frames, "pooling_window": pooling_window}
    given = {name: value for name, value in chosen.items() if value is not None}
    return Answerer(model, processor, batch_size, given, seed)


def _adapted(model, adapter: str):
    if find_spec("peft") is None:
        raise InputError("peft= needs PEFT: pip install peft")
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).eval()
    except Exception as error:  # an adapter can be broken in any way
        raise InputError(f"the adapter {adapter!r} cannot be loaded: {error}") from error
