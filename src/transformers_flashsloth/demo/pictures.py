"""Images that strangers upload, read within limits."""

from pathlib import Path

from PIL import Image

from ..asking.untrusted import FORMATS, MAX_PIXELS
from ..checkpoints.opening import InputError


def read_picture(path: str) -> Image.Image:
    """
    Reads an uploaded image.

    Raises:
        InputError: if it is damaged, too large or of another format.
    """
    name = Path(path).name
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: an image may have {MAX_PIXELS} pixels") from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise InputError(f"{name} is no image in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from error
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{name} is too large: an image may have {MAX_PIXELS} pixels")
    try:
        image.load()
    except Exception as error:
        raise InputError(f"{name} is damaged: {error}") from error
    return image
