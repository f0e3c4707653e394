"""Questions about images that are answered together, in either way, are answered as one by one."""

import pytest
import torch
from PIL import Image
from transformers import set_seed

from transformers_flashsloth import (
    FeatureStore,
    FlashSlothForConditionalGeneration,
    FlashSlothProcessor,
    answer_all,
)
from transformers_flashsloth.answering import answers as answers_module
from transformers_flashsloth.answering import plan

WORDS = ["What?", "And where is it, in which of the corners?", "How many are there here?", "Is it so?", "Which color?"]


@pytest.fixture(scope="module")
def processor(tiny_checkpoint) -> FlashSlothProcessor:
    return FlashSlothProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> FlashSlothForConditionalGeneration:
    """With weights large enough for images and questions to matter."""
    model = FlashSlothForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    set_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    directory = tmp_path_factory.mktemp("pictures")
    for number, color in enumerate(("red", "green", "blue", "white")):
        picture = Image.effect_noise((40, 30), 90).convert("RGB")
        Image.blend(picture, Image.new("RGB", (40, 30), color), 0.5).save(directory / f"{number}.png")
    return [str(path) for path in sorted(directory.iterdir())]


def alone(model, processor, question, processor_kwargs=None, **options) -> str:
    """The answer by nothing but the public interfaces."""
    if isinstance(question, tuple):
        images, text = question
        images = [] if images is None else images if isinstance(images, list) else [images]
        parts = [image if isinstance(image, dict) else {"type": "image", "image": image} for image in images]
        question = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    inputs = processor.apply_chat_template(
        question,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=processor_kwargs or {},
    )
    output = model.generate(**inputs, **{"max_new_tokens": 8, "do_sample": False, **options})
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def mixed(pictures: list[str]) -> list:
    """Pairs and conversations, in an order that mixes images, with none, one and two of them."""
    pairs = [(name, text) for text in WORDS for name in pictures[:3]]
    pairs += [(None, WORDS[0]), ([pictures[0], pictures[3]], WORDS[1]), ([], WORDS[3])]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "path": pictures[3]}, {"type": "text", "text": WORDS[0]}]},
        {"role": "assistant", "content": "This."},
        {"role": "user", "content": WORDS[1]},
    ]
    return [*pairs, turns[:2], turns, (pictures[2], WORDS[0]), turns[1:2]]


@pytest.fixture
def encoded(model):
    """Grows by the number of views that the tower sees in a call."""
    seen = []
    handle = model.model.vision_tower.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    yield seen
    handle.remove()


@pytest.fixture
def positions(model):
    """Grows by the positions that the decoder computes in a call."""
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    yield seen
    handle.remove()


@pytest.mark.parametrize("way", ["as it picks", "features alone"])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
@pytest.mark.parametrize("side", ["left", "right"])
def test_as_one_by_one(model, processor, pictures, batch_size, way, side, monkeypatch, encoded):
    questions = mixed(pictures)
    expected = [alone(model, processor, question, max_new_tokens=8) for question in questions]
    assert len(set(expected)) > len(expected) / 2  # images and questions matter here
    encoded.clear()
    if way == "features alone":
        monkeypatch.setattr(plan, "may_keep_prefix", lambda *_: False)
    monkeypatch.setattr(processor.tokenizer, "padding_side", side)
    told = {}
    found = answer_all(
        model, processor, questions, batch_size=batch_size, max_new_tokens=8, do_sample=False, progress=told.__setitem__
    )
    assert found == expected == [told[index] for index in range(len(questions))]
    assert sum(encoded) == 4


def test_the_longest_way_is_not_taken(model, processor, pictures, positions):
    """Ten questions about one image compute what they begin with once, one by one and together."""
    questions = [(pictures[0], f"{text} {number}") for number, text in enumerate(WORDS * 2)]
    options = {"max_new_tokens": 1, "do_sample": False}
    expected = [alone(model, processor, question, **options) for question in questions]
    whole = sum(positions)
    shared = min(positions) - 30  # at least
    for batch_size in (1, 10):
        positions.clear()
        assert answer_all(model, processor, questions, batch_size=batch_size, **options) == expected
        assert sum(positions) < whole - 8 * shared


def test_a_conversation_goes_on_behind_its_earlier_turns(model, processor, pictures, positions):
    content = [{"type": "image", "path": pictures[0]}, {"type": "text", "text": WORDS[0]}]
    turns = [{"role": "user", "content": content}]
    for text in WORDS[1:]:
        turns += [{"role": "assistant", "content": "This one."}, {"role": "user", "content": text}]
    conversations = [turns[:count] for count in range(1, len(turns) + 1, 2)]
    options = {"max_new_tokens": 1, "do_sample": False}
    expected = [alone(model, processor, conversation, **options) for conversation in conversations]
    longest = positions[-1]
    positions.clear()
    assert answer_all(model, processor, conversations[::-1], batch_size=1, **options) == expected[::-1]
    assert sum(positions) < 1.5 * longest  # every position once, and each " ASSISTANT:"


@pytest.mark.parametrize(
    "processor_kwargs", [{"image_hd": True}, {"pooling_window": 1}, {"image_hd": True, "pooling_window": 1}]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_views_and_windows(model, processor, pictures, processor_kwargs, batch_size):
    questions = [(name, text) for text in WORDS[:3] for name in pictures[:2]] + [(None, WORDS[0])]
    expected = [alone(model, processor, question, processor_kwargs) for question in questions]
    options = {"max_new_tokens": 8, "do_sample": False, "processor_kwargs": processor_kwargs}
    assert answer_all(model, processor, questions, batch_size=batch_size, **options) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"repetition_penalty": 1.5},
        {"prompt_lookup_num_tokens": 2},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"min_new_tokens": 8},
    ],
)
def test_options_of_generate(model, processor, pictures, options):
    questions = [(name, text) for text in WORDS[:3] for name in pictures[:2]]
    expected = [alone(model, processor, question, **options) for question in questions]
    for batch_size in (1, 4):
        found = answer_all(
            model, processor, questions, batch_size=batch_size, max_new_tokens=8, do_sample=False, **options
        )
        assert found == expected


def test_stop_strings_and_sampling(model, processor, pictures):
    questions = [(name, text) for text in WORDS[:2] for name in pictures[:2]]
    whole = alone(model, processor, questions[0], max_new_tokens=8)
    stop = whole[2:4]
    expected = [alone(model, processor, one, stop_strings=[stop], tokenizer=processor.tokenizer) for one in questions]
    found = answer_all(model, processor, questions, max_new_tokens=8, do_sample=False, stop_strings=[stop])
    assert found == expected and len(found[0]) < len(whole)
    several = [
        answer_all(model, processor, questions, max_new_tokens=8, do_sample=True, temperature=2.0) for _ in range(2)
    ]
    assert several[0] != several[1]


def test_an_assistant_sees_the_pixels(model, processor, pictures):
    questions = [(name, WORDS[0]) for name in pictures[:2]]
    expected = [alone(model, processor, question) for question in questions]
    options = {"max_new_tokens": 8, "do_sample": False, "assistant_model": model}
    assert answer_all(model, processor, questions, **options) == expected


def test_videos_stand_beside_images_of_another_number_of_views(model, processor, pictures, tmp_path):
    frames = [Image.new("RGB", (20, 10), (index * 20, 0, 0)) for index in range(6)]
    clip = tmp_path / "clip.mp4"  # in truth an animation, which needs no decoder
    frames[0].save(clip, format="PNG", save_all=True, append_images=frames[1:], duration=500)
    video = {"type": "video", "video": str(clip)}
    kwargs = {"images_kwargs": {"image_hd": True}, "videos_kwargs": {"num_frames": 3}}
    questions = [(video, WORDS[0]), (pictures[0], WORDS[0]), (None, WORDS[1]), (video, WORDS[2])]
    expected = [alone(model, processor, question, kwargs) for question in questions]
    assert answer_all(model, processor, questions, processor_kwargs=kwargs, max_new_tokens=8) == expected


def test_the_context_cuts_each_answer_as_it_does_alone(model, processor, pictures):
    long = "What? " * 60
    questions = [(pictures[0], WORDS[0]), (pictures[0], long), (pictures[1], long + long[:60])]
    context = model.config.text_config.max_position_embeddings
    room = [context - _length(processor, question) for question in questions]
    expected = [
        alone(model, processor, question, max_new_tokens=min(count, 150), eos_token_id=None)
        for question, count in zip(questions, room, strict=True)
    ]
    assert room[2] < 150 < room[0]
    for batch_size in (1, 3):
        assert (
            answer_all(model, processor, questions, batch_size=batch_size, max_new_tokens=150, eos_token_id=None)
            == expected
        )


def _length(processor, question) -> int:
    content = [{"type": "image", "image": question[0]}, {"type": "text", "text": question[1]}]
    messages = [{"role": "user", "content": content}]
    return len(
        processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ][0]
    )


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (("here.png", "What is <image>?"), "Question 2 of 2 cannot be asked: .*<image>"),
        (("nowhere.png", "What?"), "Question 2 of 2 cannot be asked: .*nowhere.png"),
        ((None, "What? " * 300), "Question 2 of 2 cannot be asked: it takes .* the model reads at most 255"),
        ("What?", "neither a pair"),
        (("a.png", ["What?"]), "neither a pair"),
        ([{"role": "assistant", "content": "This."}], "must stand"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(model, processor, question, said, encoded):
    with pytest.raises(ValueError, match=said):
        answer_all(model, processor, [(None, "What?"), question])
    assert not encoded


@pytest.mark.parametrize("batch_size", [1, 8])
def test_answers_end_before_a_text_wherever_it_begins(model, processor, pictures, batch_size):
    """Inside a token, in a row that others outlast, and not for what the prompt says; beside a user's own criterion."""
    questions = mixed(pictures)
    whole = answer_all(model, processor, questions, batch_size=batch_size, max_new_tokens=8)
    (first, second), steps = [answer[len(answer) // 2 :][:2] for answer in whole[:2]], []
    count = lambda ids, scores: steps.append(1) or torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    options = {"batch_size": batch_size, "max_new_tokens": 8, "stopping_criteria": [count]}
    found = answer_all(model, processor, questions, until=[first, second, "ASSISTANT:", "", WORDS[0]], **options)
    assert found == [answer.partition(first)[0].partition(second)[0].strip() for answer in whole] != whole
    assert steps
    del steps[:]
    assert answer_all(model, processor, questions[:1], until=first, **options) == found[:1]
    assert len(steps) < 8  # nothing is generated behind it


def test_other_refusals(model, processor):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        answer_all(model, processor, [], batch_size=0)
    with pytest.raises(ValueError, match="one answer"):
        answer_all(model, processor, [], num_return_sequences=2)
    assert answer_all(model, processor, []) == []


def test_features_are_kept_beyond_a_call(model, processor, pictures, encoded):
    store = FeatureStore(10**7)
    for _ in range(2):
        answer_all(model, processor, [(pictures[0], WORDS[0])], features=store, max_new_tokens=1)
    assert encoded == [1] and (store.hits, store.misses) == (1, 1)
    answer_all(model, processor, [(Image.open(pictures[0]), WORDS[0])], features=store, max_new_tokens=1)
    assert encoded == [1]  # however the same pixels come
    assert answers_module.DEFAULT_STORE_BYTES > 10**8


def test_decoders_that_cannot_be_padded_inside_get_features(model):
    assert plan.may_keep_prefix(model, {}, 8) and plan.may_keep_prefix(model, {}, 1)
    for name, value in (("layer_types", ["full_attention", "sliding_attention"]), ("sliding_window", 16)):
        text = model.config.text_config
        had = getattr(text, name, None)
        setattr(text, name, value)
        try:
            assert plan.may_keep_prefix(model, {}, 1) and not plan.may_keep_prefix(model, {}, 8)
        finally:
            setattr(text, name, had)
