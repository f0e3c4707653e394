"""Frames in prompts: their labels, their place among images and texts, and the context that they have to fit into."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, pipeline

from tests.golden_model import IMAGE, tiny_config
from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothImageProcessor, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
from transformers_flashsloth.model.prompt_expansion import frame_labels
from transformers_flashsloth.model.question_spans import find_query_spans

EXAMPLES = Path(str(files("transformers_flashsloth") / "examples"))
RED, BLUE, GREEN, GREY = (Image.new("RGB", (60, 40), colour) for colour in ("red", "blue", "green", "grey"))
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)


@pytest.fixture
def processor():
    """Views of 84 x 84 pixels become 2 x 2 tokens."""
    image_processor = FlashSlothImageProcessor(size={"height": 84, "width": 84})
    return FlashSlothProcessor(image_processor, build_phi_tokenizer())


@pytest.fixture(scope="module")
def default_model():
    return FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT).eval()


def encode(processor, messages, **kwargs):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(messages, **options, processor_kwargs=kwargs)


def user(*parts) -> list[dict]:
    """A message of texts, images and (lists of frames) videos."""
    kinds = {str: "text", list: "video"}
    content = [{"type": (kind := kinds.get(type(part), "image")), kind: part} for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("indices", "fps", "labels"),
    [
        ([0, 90, 180], 30, ["Frame 1, 0:00: ", "Frame 2, 0:03: ", "Frame 3, 0:06: "]),
        ([29, 30], 30, ["Frame 1, 0:00: ", "Frame 2, 0:01: "]),
        ([0, 15, 45], 30, ["Frame 1, 0:00.0: ", "Frame 2, 0:00.5: ", "Frame 3, 0:01.5: "]),
        ([0, 7, 11], 10, ["Frame 1, 0:00.0: ", "Frame 2, 0:00.7: ", "Frame 3, 0:01.1: "]),
        ([3600, 36610], 10, ["Frame 1, 6:00: ", "Frame 2, 1:01:01: "]),
        ([59 * 25 + 24, 60 * 25], 25, ["Frame 1, 0:59: ", "Frame 2, 1:00: "]),
        ([0, 12, 99], None, ["Frame 1: ", "Frame 13: ", "Frame 100: "]),
        ([0], 0, ["Frame 1: "]),
    ],
)
def test_labels_tell_the_time_or_the_number(indices, fps, labels):
    assert frame_labels(indices, fps) == labels


def test_a_video_is_its_frames_with_their_times(processor):
    messages = user([RED, BLUE, GREEN], "What happens?")
    assert processor.apply_chat_template(messages) == SYSTEM + "USER: <video>\nWhat happens?<learnable>"

    inputs = encode(processor, messages, video_metadata={"fps": 0.5})

    frames = "Frame 1, 0:00: <image>\nFrame 2, 0:02: <image>\nFrame 3, 0:04: <image>\n"
    prompt = f"{SYSTEM}USER: {frames}What happens?<learnable> ASSISTANT:"
    as_images = processor(text=prompt, images=[RED, BLUE, GREEN], return_tensors="pt")
    assert set(inputs) == set(as_images) == {"input_ids", "attention_mask", "pixel_values"}
    for name, value in as_images.items():
        assert torch.equal(inputs[name], value), name


def test_the_question_is_what_follows_the_last_frame(processor):
    inputs = encode(processor, user([RED, BLUE, GREEN], "What happens?"), video_metadata={"fps": 1})
    ids = inputs["input_ids"]
    spans = find_query_spans(ids, tiny_config(), max_runs=1, num_images=3, tokens_per_image=4)
    assert processor.decode(ids[0, spans.question[0, 0]]) == "What happens?"
    assert spans.visible.all()


def test_images_and_videos_stand_in_reading_order(processor):
    mixed = user("Compare ", RED, [BLUE, GREEN], GREY, [GREY], "them.")
    text_only, video_only = user("Hello?"), user([GREEN, RED, BLUE], "And this?")
    inputs = encode(processor, [mixed, text_only, video_only], padding=True)

    pictures = [RED, BLUE, GREEN, GREY, GREY, GREEN, RED, BLUE]
    expected = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)
    text = processor.decode(inputs["input_ids"][0]).replace("<image>" * 4, "<image>")
    assert (
        "USER: <image>\nFrame 1: <image>\nFrame 2: <image>\n<image>\nFrame 1: <image>\nCompare them.<learnable>" in text
    )
    assert (inputs["input_ids"] == IMAGE).sum(1).tolist() == [20, 0, 12]
    alone = encode(processor, video_only)
    mask = inputs["attention_mask"][2].bool()
    assert torch.equal(inputs["input_ids"][2][mask], alone["input_ids"][0])


def test_arrays_and_lists_are_merged_alike(processor):
    prompt = "USER: <video>\n<image>\nHi<learnable> ASSISTANT:"
    arrays = processor(text=prompt, images=[RED], videos=[[BLUE, GREEN]])
    tensors = processor(text=prompt, images=[RED], videos=[[BLUE, GREEN]], return_tensors="pt")
    assert isinstance(arrays["pixel_values"], np.ndarray)
    assert np.array_equal(arrays["pixel_values"], tensors["pixel_values"].numpy())


def test_without_a_text_images_come_first(processor):
    inputs = processor(images=[RED], videos=[[BLUE, GREEN]], return_tensors="pt")
    expected = processor.image_processor([RED, BLUE, GREEN], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


def test_metadata_and_type_ids_on_request(processor):
    inputs = encode(processor, user([RED, BLUE], "Hi"), return_metadata=True, return_mm_token_type_ids=True)
    assert inputs["video_metadata"][0].frames_indices == [0, 1]
    assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == IMAGE).long())


def test_answers_behind_a_video_keep_their_mask(processor):
    messages = [*user([RED, BLUE], "What?"), {"role": "assistant", "content": [{"type": "text", "text": "A flag."}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    answer = [token for token, keep in zip(inputs["input_ids"][0], inputs["assistant_masks"][0], strict=True) if keep]
    assert processor.decode(answer) == " A flag.</s>"


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_typed_placeholders_are_refused(role, processor):
    turns = {"system": [], "user": [], "assistant": user("Hi")}[role]
    messages = [*turns, {"role": role, "content": [{"type": "text", "text": "<vid"}, {"type": "text", "text": "eo>"}]}]
    with pytest.raises(Exception, match="contains the text of the special token '<video>'"):
        processor.apply_chat_template(messages)


def test_videos_belong_to_users(processor):
    messages = [*user("Hi"), {"role": "assistant", "content": [{"type": "video", "video": [RED]}]}]
    with pytest.raises(Exception, match="put images and videos into user messages"):
        processor.apply_chat_template(messages)


@pytest.mark.parametrize(
    ("text", "videos", "message"),
    [
        ("Hi", [[RED]], r"the prompts hold \[0\] and the videos are 1"),
        ("<video>\nHi", None, r"the prompts hold \[1\] and the videos are 0"),
        ("<video>\nHi", [[RED], [RED]], r"the prompts hold \[1\] and the videos are 2"),
        (["<video>", "<video>"], [[[RED], [RED]], []], r"the prompts hold \[1, 1\] and the videos are \[2, 0\]"),
        ("<video>", 3, "`videos` must be a video"),
        ("<video>", [[[]]], r"videos\[0\] has no frames"),
    ],
)
def test_videos_must_fit_their_placeholders(text, videos, message, processor):
    with pytest.raises(ValueError, match=message):
        processor(text=text, videos=videos)


def test_images_and_frames_must_have_the_same_views(processor):
    processor.image_processor.image_hd = True
    messages = user(RED, [BLUE], "Hi")
    with pytest.raises(ValueError, match="An image is 5 views of 84 x 84 pixels, a video frame 1 of 84 x 84"):
        encode(processor, messages)
    assert encode(processor, messages, image_hd=False)["pixel_values"].shape[:2] == (2, 1)
    assert encode(processor, messages, image_hd=True)["pixel_values"].shape[:2] == (2, 5)


def test_frames_beyond_the_context_are_refused_and_those_that_are_said_to_fit_do(processor):
    processor.tokenizer.model_max_length = 256
    video = [RED] * 100
    with pytest.raises(ValueError, match=r"100 of its 100 frames were asked for, but only 64 fit.*num_frames=64"):
        encode(processor, user(video, "Hi"), num_frames=100)
    for metadata in ({}, {"fps": 1}, {"fps": 100}):
        options = {"video_metadata": metadata}
        with pytest.raises(ValueError, match=r"30 video frames of up to \d+ .* context is 256: .* pass") as error:
            encode(processor, user(video, "Hi"), num_frames=30, **options)
        fitting = int(str(error.value).rpartition("num_frames=")[2].partition("`")[0])
        assert encode(processor, user(video, "Hi"), num_frames=fitting, **options)["input_ids"].shape[1] <= 256
        with pytest.raises(ValueError, match="video frames of up to"):
            encode(processor, user(video, "Hi"), num_frames=fitting + 2, **options)
    with pytest.raises(ValueError, match="has 24 video frames"):
        encode(processor, user(video, video, "Hi"), num_frames=12, video_metadata=[{"fps": 1}] * 2)
    with pytest.raises(ValueError, match="0 frames fit, so shorten it"):
        encode(processor, user(video, "Hi " * 300), num_frames=1)


def test_a_checkpoint_without_a_video_processor_reads_videos(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    del config["video_processor"], config["video_token"]
    (tmp_path / "processor_config.json").write_text(json.dumps(config))

    for loaded in (FlashSlothProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert (loaded.num_query_tokens, loaded.patch_size) == (9, 14)
        assert dict(loaded.video_processor.size) == dict(loaded.image_processor.size)
        inputs = encode(loaded, user([RED, BLUE], "Hi"))
        assert torch.equal(inputs["input_ids"], encode(processor, user([RED, BLUE], "Hi"))["input_ids"])


def test_the_authors_checkpoints_read_videos(authors_directory):
    processor = AutoProcessor.from_pretrained(authors_directory)
    inputs = encode(processor, user([RED, BLUE], "Hi"))
    assert len(inputs["pixel_values"]) == 2


# The model in the package


def test_the_default_model_answers_about_a_clip(default_model):
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    clip = [Image.open(EXAMPLES / name).convert("RGB") for name in ("fox.png", "rocket.png", "hearts.png")]
    messages = user(clip, "What is this?")
    inputs = encode(processor, messages, video_metadata={"fps": 1})
    output = default_model.generate(**inputs, max_new_tokens=5, do_sample=False)

    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    lines = "\n".join(f"Frame {number}, 0:0{number - 1}: <image>" for number in (1, 2, 3))
    as_images = processor(text=prompt.replace("<video>", lines), images=clip, return_tensors="pt")
    assert torch.equal(output, default_model.generate(**as_images, max_new_tokens=5, do_sample=False))
    # Every frame reaches the model: another last or first one changes what it sees.
    logits = default_model(**inputs).logits[:, -1]
    for index in range(3):
        changed = [*clip]
        changed[index] = GREY
        other = default_model(**encode(processor, user(changed, "What is this?"), video_metadata={"fps": 1}))
        assert not torch.allclose(logits, other.logits[:, -1], atol=1e-3)


def test_the_pipeline_takes_videos(default_model):
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    pipe = pipeline("image-text-to-text", model=default_model, processor=processor)
    clip = [Image.open(EXAMPLES / "fox.png").convert("RGB")] * 3
    answer = pipe(text=user(clip, "What is this?"), max_new_tokens=5, return_full_text=False)[0]["generated_text"]
    inputs = encode(processor, user(clip, "What is this?"))
    output = default_model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer.strip() == processor.decode(output, skip_special_tokens=True).strip()
