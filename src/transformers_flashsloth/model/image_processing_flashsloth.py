"""Images to views: one view, or in HD the whole image and its four quarters."""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, ChannelDimension, SizeDict
from transformers.models.auto import image_processing_auto
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_inputs import decode_array, decode_pil, flatten, read_images

# Pixels of HD's square in memory at once: the square of a 1 x 20,000 panorama has 400 million.
STRIP_PIXELS = 2**24
# The options of what is done with pixels behind resizing.
STEPS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class FlashSlothImageProcessorKwargs(ImagesKwargs, total=False):
    """
    Options of the image processor beyond transformers' own.

    Attributes:
        image_hd (`bool`): whether an image becomes five views instead of one.
        do_exif_transpose (`bool`): whether an image is turned upright as its EXIF orientation says.
    """

    image_hd: bool | None
    do_exif_transpose: bool | None


class _FlashSlothViews:
    """What the PIL and the torchvision image processor share: defaults, reading of inputs, checks."""

    valid_kwargs = FlashSlothImageProcessorKwargs
    model_input_names = ["pixel_values"]

    size = {"height": 384, "width": 384}
    resample = Image.Resampling.BICUBIC
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    do_convert_rgb = True
    do_exif_transpose = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    image_hd = False

    def __init__(self, **kwargs: Unpack[FlashSlothImageProcessorKwargs]):
        super().__init__(**kwargs)

    def __call__(self, images, *args, **kwargs: Unpack[FlashSlothImageProcessorKwargs]) -> BatchFeature:
        """Makes views; see [`FlashSlothImageProcessor`]."""
        return super().__call__(images, *args, **kwargs)

    def fetch_images(self, image_url_or_urls):
        """Reads images, keeping the nesting of the lists they come in; see [`FlashSlothImageProcessor`]."""
        return read_images(image_url_or_urls)

    def _prepare_image_like_inputs(self, images, *args, expected_ndims: int = 3, **kwargs):
        images = flatten(self.fetch_images(images))
        if not images:
            raise ValueError("There are no images to process: leave `images` out for a text without images.")
        processed = []
        for index, image in enumerate(images):
            try:
                processed.append(self.process_image(image, *args, **kwargs))
            except (ValueError, TypeError, OSError) as error:
                raise ValueError(f"images[{index}]: {error}") from error
        return processed

    def _validate_preprocess_kwargs(self, do_resize=None, size=None, image_hd=None, **kwargs):
        if do_resize and not (size.height and size.width):
            raise ValueError(f"`size` needs `height` and `width`, as every view is squashed to it, got {dict(size)}.")
        if image_hd and not do_resize:
            raise ValueError("`image_hd=True` cuts a resized image into quarters and so needs `do_resize=True`.")
        super()._validate_preprocess_kwargs(do_resize=do_resize, size=size, **kwargs)

    def _preprocess(
        self, images: list, do_resize: bool, size: SizeDict, resample, image_hd: bool, return_tensors, **kwargs
    ) -> BatchFeature:
        views = []  # (C, H, W) each, 8 bits
        for image in images:
            views.append(self._view(image, size if do_resize else None, resample))
            if image_hd:
                height, width = size.height, size.width
                grey = _grey(kwargs["image_mean"])
                square = self._square(image, SizeDict(height=2 * height, width=2 * width), resample, grey)
                views += [square[:, y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
        if len(shapes := {tuple(view.shape) for view in views}) > 1:
            raise ValueError(f"Without resizing, all images must have one size, got {sorted(shapes)}.")
        pixels = self.rescale_and_normalize(self._stack(views), *(kwargs[name] for name in STEPS))
        pixels = pixels.reshape(len(images), -1, *pixels.shape[1:])  # (N, V, C, H, W)
        return BatchFeature(data={"pixel_values": pixels}, tensor_type=return_tensors)

    def to_dict(self):
        """Returns the options as a dictionary, under the name that loads either backend."""
        return super().to_dict() | {"image_processor_type": FlashSlothImageProcessor.__name__}


class FlashSlothImageProcessor(_FlashSlothViews, PilBackend):
    """
    Turns images into views with Pillow; its pixels equal those of the released preprocessing bit for bit.

    Base: the image squashed to `size`. HD: this view, then the image centred on a grey square, resized to twice `size`
    and cut into four quarters, row by row (arXiv 2412.04317; `image_hd` in the released configuration).

    An image is a PIL image of any mode, an array or tensor (HW, HWC or CHW), a path, URL, `data:` URI, base64 string or
    encoded bytes; lists of images may be nested. All become 8-bit RGB as `Image.convert` makes it: transparency is
    dropped, not blended. 16-bit pixels are scaled to 8 bits; float pixels count from 0 to 1, or in whole numbers from
    0 to 255.

    Args:
        size (`dict[str, int]`, defaults to `{"height": 384, "width": 384}`):
            Size of a view.
        image_hd (`bool`, defaults to `False`):
            Whether an image becomes five views (HD) instead of one.
        do_exif_transpose (`bool`, defaults to `True`):
            Whether an image is turned upright as its EXIF orientation says. The released code does not turn images.
        do_convert_rgb, do_resize, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std:
            As in every image processor; by default RGB, bicubic, then `value / 255`, then `(x - 0.5) / 0.5`.

    Returns (from a call):
        [`BatchFeature`] with `pixel_values` (`float32`, `(images, V, 3, height, width)`), V 1 or 5.

    Raises:
        ValueError: for an input that is no image, naming it, what is wrong with it and how to mend it.
    """

    def process_image(
        self, image, do_convert_rgb=None, do_exif_transpose=None, do_rescale=None, input_data_format=None, **kwargs
    ) -> Image.Image:
        """Converts a PIL image, array or tensor to an upright 8-bit RGB PIL image."""
        if not isinstance(image, Image.Image):
            image = decode_array(
                image, do_convert_rgb=do_convert_rgb, do_rescale=do_rescale, input_data_format=input_data_format
            )
            image = Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().cpu().numpy())
        return decode_pil(image, do_exif_transpose=do_exif_transpose, do_convert_rgb=do_convert_rgb)

    _stack = staticmethod(np.stack)

    def _view(self, image: Image.Image, size: SizeDict | None, resample) -> np.ndarray:
        return _pixels(image if size is None else image.resize((size.width, size.height), resample))

    def _square(self, image: Image.Image, size: SizeDict, resample, grey: tuple[int, ...]) -> np.ndarray:
        return _pixels(_resize_on_square(image, size.width, size.height, resample, grey))

    def rescale_and_normalize(
        self, pixels: np.ndarray, do_rescale, rescale_factor, do_normalize, image_mean, image_std
    ) -> np.ndarray:
        """`(views, C, H, W)` of 8 bits: as a pixel takes 256 values, each step is computed once for all of them."""
        values = np.broadcast_to(np.arange(256, dtype=np.uint8), (pixels.shape[1], 1, 256))
        if do_rescale:
            values = self.rescale(values, rescale_factor)
        if do_normalize:
            values = self.normalize(values, image_mean, image_std)
        return np.stack([value[0][pixels[:, channel]] for channel, value in enumerate(values)], axis=1)


class FlashSlothImageProcessorTorchvision(_FlashSlothViews, TorchvisionBackend):
    """
    [`FlashSlothImageProcessor`] on torchvision, for tensors that are on an accelerator already. It resizes a grey level
    differently from Pillow here and there, so it has to be asked for: `backend="torchvision"`.
    """

    def process_image(
        self, image, do_convert_rgb=None, do_exif_transpose=None, do_rescale=None, input_data_format=None, **kwargs
    ) -> torch.Tensor:
        """Converts a PIL image, array or tensor to an upright 8-bit RGB tensor, CHW."""
        if isinstance(image, Image.Image):
            image = decode_pil(image, do_exif_transpose=do_exif_transpose, do_convert_rgb=do_convert_rgb)
            image, input_data_format = np.atleast_3d(np.asarray(image)), ChannelDimension.LAST
        image = decode_array(
            image, do_convert_rgb=do_convert_rgb, do_rescale=do_rescale, input_data_format=input_data_format
        )
        return image.to(kwargs.get("device"))

    _stack = staticmethod(torch.stack)

    def _view(self, image: torch.Tensor, size: SizeDict | None, resample) -> torch.Tensor:
        return image if size is None else self.resize(image, size, resample)

    def _square(self, image: torch.Tensor, size: SizeDict, resample, grey: tuple[int, ...]) -> torch.Tensor:
        height, width = image.shape[1:]
        left, top, side = _centre(width, height)
        grey = torch.tensor(grey[: len(image)], dtype=image.dtype, device=image.device)
        square = grey[:, None, None].repeat(1, side, side)  # (C, side, side)
        square[:, top : top + height, left : left + width] = image
        return self.resize(square, size, resample)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.atleast_3d(np.asarray(image, dtype=np.uint8)).transpose(2, 0, 1)  # (C, H, W)


def _centre(width: int, height: int) -> tuple[int, int, int]:
    """Returns the left and top edge of an image on its square, and the square's side."""
    side = max(width, height)
    return (side - width) // 2, (side - height) // 2, side


def _grey(image_mean: float | list[float] | tuple[float, ...]) -> tuple[int, ...]:
    """The grey of the square that an HD image is centred on: 255 times the mean, rounded down, as released (127)."""
    means = [image_mean] * 3 if isinstance(image_mean, (int, float)) else image_mean
    return tuple(int(255 * mean) for mean in means)


def _resize_on_square(
    image: Image.Image, width: int, height: int, resample: Image.Resampling, grey: tuple[int, int, int]
) -> Image.Image:
    """
    Centres an image on a grey square and resizes the square to `width` x `height`.

    Pillow resizes rows first and columns second; doing so in strips gives its pixels without the whole square.
    """
    left, top, side = _centre(*image.size)
    grey = grey[: len(image.getbands())]
    strip = max(1, STRIP_PIXELS // side)

    rows = Image.new(image.mode, (width, image.height))
    for y in range(0, image.height, strip):
        band = Image.new(image.mode, (side, min(strip, image.height - y)), grey)
        band.paste(image.crop((0, y, image.width, y + band.height)), (left, 0))
        rows.paste(band.resize((width, band.height), resample), (0, y))

    square = Image.new(image.mode, (width, height))
    for x in range(0, width, strip):
        band = Image.new(image.mode, (min(strip, width - x), side), grey)
        band.paste(rows.crop((x, 0, x + band.width, rows.height)), (0, top))
        square.paste(band.resize((band.width, height), resample), (x, 0))
    return square


# Where torchvision is installed `AutoImageProcessor` prefers it, but only Pillow's pixels equal the release's.
_pil_by_default = getattr(image_processing_auto, "DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS", [])
if FlashSlothImageProcessor.__name__ not in _pil_by_default:
    _pil_by_default.append(FlashSlothImageProcessor.__name__)

__all__ = ["FlashSlothImageProcessor", "FlashSlothImageProcessorTorchvision"]
