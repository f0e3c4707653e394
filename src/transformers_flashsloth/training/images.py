"""Image files of training rows: checked before training, named by their row if they fail to decode while it runs."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from datasets import Image as ImageFeature
from PIL import Image

from ..model.image_inputs import decode_pil
from .row_files import Shard, TrainingDataError, read_shard
from .rows import Fault, Source

# Looking for a file waits for the disk, and decoding leaves the interpreter to others.
MIN_THREADS = 8


class NamedImage(ImageFeature):
    """`datasets.Image` of a row of `source`: what cannot be decoded is reported with the row that names it."""

    source: Source | None = None

    def decode_example(self, value, token_per_repo_id=None):
        """As upstream's. Raises TrainingDataError."""
        try:
            return super().decode_example(value, token_per_repo_id=token_per_repo_id)
        except Exception as error:  # decoders have errors of many kinds
            path = value["path"] if isinstance(value, dict) else value
            raise TrainingDataError(self._describe(path, error)) from error

    def _describe(self, path: str, error: Exception) -> str:
        problem = f"its image {path!r} cannot be decoded ({error})"
        if self.source is not None:
            for number, item in read_shard(self.source.path, Shard(0, 0, None)):
                row = self.source.row(number, item)
                if path in row.images:
                    return str(Fault(self.source.path, number, row.id, "decoding", problem))
        return f"A row cannot be used: {problem}."

    # Its columns can be joined with those of the plain feature.
    def __eq__(self, other) -> bool:
        return isinstance(other, ImageFeature) and (self.mode, self.decode) == (other.mode, other.decode)

    def __hash__(self) -> int:
        return hash((self.mode, self.decode))


def problem_of_image(source: str | bytes, decode: bool) -> str | None:
    """What is wrong with an image file: that it is missing or, if asked, that it cannot be decoded to its end."""
    name = "image" if isinstance(source, bytes) else f"image {source!r}"
    if isinstance(source, str) and not os.path.isfile(source):
        return f"there is no image file {source!r}"
    if decode:
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.draft(None, (1, 1))  # an eighth of a JPEG's size is enough to read it through
                image.load()
                # What reading a row and the processor do after that, on damaged EXIF data or pixels of any range.
                decode_pil(image, do_exif_transpose=True, do_convert_rgb=True)
        except Exception as error:  # decoders have errors of many kinds
            return f"its {name} cannot be decoded ({str(error).rstrip('.')})"
    return None


def problems_of_images(paths: Iterable[str], decode: bool, num_threads: int | None) -> dict[str, str]:
    """The problems of those among many files that have one, by path."""
    paths = sorted(set(paths))
    with ThreadPoolExecutor(max(num_threads or 1, MIN_THREADS)) as threads:
        problems = threads.map(lambda path: problem_of_image(path, decode), paths, chunksize=64)
        return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}
