"""What a processor does with videos: a line with a label and an image for each frame."""

import re

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import VideoProcessorMixin

from .video_prompts import check_context, frame_labels, in_reading_order, known_context


class VideoPrompts(ProcessorMixin):
    """
    The part of [`FlashSlothProcessor`] that makes images of the frames of videos; upstream's methods, overridden, and
    the one that puts frames among the images.
    """

    skip_tensor_conversion = [*ProcessorMixin.skip_tensor_conversion, "frame_labels"]

    @property
    def model_input_names(self) -> list[str]:
        """What a call may return: frames are in `pixel_values`."""
        return [name for name in super().model_input_names if name not in self.video_processor.model_input_names]

    def put_frames_among_images(self, inputs: BatchFeature, text: str | list[str] | None) -> None:
        """Moves the frames of videos into `pixel_values`, each where its placeholders stand."""
        frames = inputs.pop("pixel_values_videos")
        labels = inputs.pop("frame_labels")
        prompts = [text] if isinstance(text, str) else text or []
        if prompts:
            lengths = [len(ids) for ids in inputs["input_ids"]]
            videos = [prompt.count(self.video_token) for prompt in prompts]
            cost = self.replace_image_token({"pixel_values": frames}, 0).count(self.image_token)
            check_context(lengths, videos, labels, self.tokenizer, cost)
        if "pixel_values" in inputs:
            marks = re.compile(f"({re.escape(self.image_token)})|{re.escape(self.video_token)}")
            order = ["image" if mark[1] else "video" for mark in marks.finditer("\n".join(prompts))]
            frames = in_reading_order(order, inputs["pixel_values"], frames, [*map(len, labels)])
        inputs["pixel_values"] = frames

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        """Returns the label and the placeholders of each frame of a video, a line each."""
        frame = self.replace_image_token({"pixel_values": video_inputs["pixel_values_videos"]}, 0)
        return "\n".join(label + frame for label in video_inputs["frame_labels"][video_idx])

    def _process_videos(self, videos, **kwargs):
        """As upstream's, which copies the frames to count the videos, and does not always ask for metadata."""
        options = kwargs | {"return_metadata": True, "frame_limit": self._frame_limit(**kwargs)}
        processed = self.video_processor(videos, **options)
        del processed["frames_per_video"]
        metadata = processed["video_metadata"]
        processed["frame_labels"] = [frame_labels(known.frames_indices, known.fps) for known in metadata]
        return processed, [self.replace_video_token(processed, index) for index in range(len(metadata))]

    def _frame_limit(self, size=None, image_hd=None, do_resize=None, **kwargs) -> int | None:
        """The most frames that the context can hold, to refuse more before they are decoded."""
        videos = self.video_processor
        context = known_context(self.tokenizer)
        if context is None or not (videos.do_resize if do_resize is None else do_resize):
            return None
        return context // self._tokens_per_image(size or videos.size, videos.image_hd if image_hd is None else image_hd)

    def check_argument_for_proper_class(self, argument_name, argument):
        """As upstream's, which finds no class of video processors without torchvision."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"`video_processor` must be a video processor, got {type(argument).__name__}.")
        return VideoProcessorMixin
