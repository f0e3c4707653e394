"""Whatever may be passed as an image, to 8-bit pixels."""

import base64
import http.client
import os
import urllib.request
from contextlib import nullcontext
from io import BytesIO
from time import monotonic
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_utils import ChannelDimension

URL_TIMEOUT_SECONDS = 30
# Most bytes that are downloaded.
MAX_IMAGE_BYTES, MAX_VIDEO_BYTES = 256 * 2**20, 2**31
DOWNLOAD_ERRORS = (OSError, ValueError, http.client.HTTPException)
# Float pixels may leave 0 to 1 by this much, as rounding makes them do.
FLOAT_TOLERANCE = 1e-3


def flatten(images) -> list:
    """Returns the images of a list nested in any way, in reading order."""
    return [item for image in images for item in flatten(image)] if isinstance(images, list) else [images]


def read_images(source, name: str = "images"):
    """
    Reads a PIL image, array or tensor (HW, HWC, CHW or a batch of the last two), path, URL, `data:` URI, base64 string
    or encoded bytes, or lists of these. Returns decoded PIL images as they are stored, and arrays or tensors with 3
    dimensions, in the same nesting.

    Raises:
        ValueError: calling the source that cannot be read `name`, with what is wrong with it and how to mend it.
    """
    if isinstance(source, (list, tuple)):
        return [read_images(item, f"{name}[{index}]") for index, item in enumerate(source)]
    if isinstance(source, (np.ndarray, torch.Tensor)):
        if source.ndim not in (2, 3, 4) or 0 in source.shape:
            raise ValueError(f"{name} has shape {tuple(source.shape)}: an image is HW, HWC or CHW and not empty.")
        return list(source) if source.ndim == 4 else source[None] if source.ndim == 2 else source
    if isinstance(source, (str, os.PathLike)):
        name = f"{name} ({str(source)[:100]!r})"
    if not isinstance(source, Image.Image):
        source = locate(source, name)
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as image:
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large to be safe ({error}): shrink it or, if you trust it, raise "
            "`PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is no image that Pillow knows: the file is empty, damaged or of another format, or this is a "
            "video, which belongs to `videos=` or a part of {'type': 'video'}, or text, which belongs to `text=`."
        ) from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise ValueError(f"{name} cannot be decoded ({error}): it is damaged or cut short, save it anew.") from error
    if 0 in image.size:
        raise ValueError(f"{name} is {image.width} x {image.height} pixels: an image needs at least one pixel.")
    return image


def locate(source, name: str, limit: int = MAX_IMAGE_BYTES) -> str | os.PathLike | BytesIO:
    """
    Returns what can be opened: a path, or the bytes behind a URL, `data:` URI or base64 string. Raises ValueError,
    calling the source `name`, if it is nothing of this or cannot be downloaded, for one if it exceeds `limit` bytes.
    """
    if isinstance(source, (bytes, bytearray)):
        return BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"{name} is of type {type(source).__name__}: pass a PIL image, array, tensor, path, URL or encoded bytes."
        )
    if os.path.isfile(source):
        return source
    source = str(source).strip()
    if source[:8].lower().startswith(("http://", "https://")):
        try:
            request = urllib.request.Request(ascii_url(source), headers={"User-Agent": "transformers-flashsloth"})
            with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
                return BytesIO(receive(response, limit))
        except DOWNLOAD_ERRORS as error:
            raise ValueError(f"{name} cannot be downloaded: {error}.") from error
    try:
        return BytesIO(decode_base64(source.partition(",")[2] if source.startswith("data:") else source))
    except ValueError as error:
        raise ValueError(
            f"{name} is no file, URL or base64 string: check the path; text belongs to `text=`."
        ) from error


def ascii_url(url: str) -> str:
    """A URL as it is sent: blanks and letters beyond ASCII escaped, the host's by IDNA. Raises ValueError for none."""
    scheme, netloc, path, query, _ = urlsplit(url.strip())
    parts = (quote(path, safe="/%:=&~+!$,;'@()*"), quote(query, safe="/%:=&~+!$,;'@()*?"))
    return urlunsplit((scheme, netloc.encode("idna").decode(), *parts, ""))


def receive(response, limit: int, deadline: float | None = None) -> bytes:
    """
    The body of an opened `http.client.HTTPResponse`. Raises ValueError for more than `limit` bytes, and OSError if the
    connection is cut or `deadline`, as `time.monotonic` counts, is over.
    """
    body = bytearray()
    while chunk := response.read1(2**16):
        body += chunk
        if len(body) > limit:
            raise ValueError(f"it has more than {limit:,} bytes")
        if deadline is not None and monotonic() > deadline:
            raise TimeoutError("timed out")
    if response.length:  # what should have come still; `http.client` says so only where all is read at once
        raise ConnectionError(f"the connection was cut after {len(body):,} bytes, {response.length:,} are missing")
    return bytes(body)


def decode_base64(text: str) -> bytes:
    """Decodes base64 with or without line breaks. Raises ValueError for anything else."""
    return base64.b64decode("".join(text.split()), validate=True)


def decode_pil(image: Image.Image, *, do_exif_transpose: bool, do_convert_rgb: bool) -> Image.Image:
    """
    Turns a PIL image upright and converts it to 8 bits and RGB, as `Image.convert` does, except that 16-bit, 32-bit and
    float grey is scaled where Pillow would cut it at 255.
    """
    if do_exif_transpose:
        try:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # the EXIF parser raises whatever it likes
            raise ValueError(f"its EXIF data are damaged ({error}); pass `do_exif_transpose=False`.") from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_uint8(_to_tensor(np.asarray(image))).numpy())
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow converts these to LA and RGBA alone
        image = image.convert(image.mode.upper())
    return image.convert("RGB") if do_convert_rgb and image.mode != "RGB" else image


def decode_array(
    image: np.ndarray | torch.Tensor,
    *,
    do_convert_rgb: bool,
    do_rescale: bool,
    input_data_format: ChannelDimension | str | None,
) -> torch.Tensor:
    """Converts an array or tensor (HWC or CHW, any of the usual dtypes) to a `uint8` tensor, RGB, CHW."""
    image = _to_tensor(image)
    if image.is_floating_point() and not do_rescale:
        raise ValueError("a float image is brought to 8 bits first, so leave `do_rescale` on.")
    if (input_data_format or _channel_dimension(tuple(image.shape))) == ChannelDimension.LAST:
        image = image.permute(2, 0, 1)
    if do_convert_rgb:
        image = image[:3].expand(3, -1, -1)  # transparency is dropped, as `Image.convert` does
    return _to_uint8(image)


def _to_tensor(image: np.ndarray | torch.Tensor) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["C", "W"]))


def _channel_dimension(shape: tuple[int, int, int]) -> ChannelDimension:
    for channels in ((3, 4), (1,)):  # an image one pixel high is likelier than a grey one 3 pixels wide
        if shape[0] in channels:
            return ChannelDimension.FIRST
        if shape[2] in channels:
            return ChannelDimension.LAST
    raise ValueError(f"shape {shape} is neither CHW nor HWC with 1, 3 or 4 channels; say so with `input_data_format`.")


def _to_uint8(values: torch.Tensor) -> torch.Tensor:
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    exact = values.double()
    low, high = exact.min().item(), exact.max().item()
    if values.is_floating_point():
        if low >= -FLOAT_TOLERANCE and high <= 1 + FLOAT_TOLERANCE:
            return (exact * 255).round().clamp(0, 255).to(torch.uint8)
        if low >= 0 and high <= 255 and bool((exact == exact.round()).all()):
            return exact.to(torch.uint8)
    elif low >= 0 and high <= 255 and values.dtype != torch.uint16:
        return values.to(torch.uint8)
    elif low >= 0 and high <= 65535:
        return (exact / 257).round().to(torch.uint8)
    raise ValueError(
        f"{values.dtype} pixels run from {low:g} to {high:g}: pass 8-bit (0 to 255), 16-bit (0 to 65535) or float "
        "(0 to 1) pixels that are not normalized yet."
    )
