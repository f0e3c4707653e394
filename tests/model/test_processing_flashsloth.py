"""Prompts and images to model inputs: equal to the release, the same by every way in, and checked."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth.model.image_processing_flashsloth import FlashSlothImageProcessor
from transformers_flashsloth.model.processing_flashsloth import FlashSlothProcessor

CASES = json.loads((Path(__file__).parents[1] / "goldens" / "prompts.json").read_text(encoding="utf-8"))["cases"]
QUERY, END, IMAGE, PAD = 50295, 50296, 50297, 50256
RELEASED_IMAGE = -200
CAT, DOG, FOX = (Image.new("RGB", (20 + seed, 10), (seed, 0, 255)) for seed in range(3))


@pytest.fixture(scope="module")
def processor():
    return FlashSlothProcessor(FlashSlothImageProcessor(), build_phi_tokenizer())


@pytest.fixture(scope="module")
def small():
    """Views of 84 x 84 pixels become 2 x 2 tokens."""
    image_processor = FlashSlothImageProcessor(size={"height": 84, "width": 84})
    return FlashSlothProcessor(image_processor, build_phi_tokenizer())


def user(text: str, *images) -> dict:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def encode(processor, messages, **kwargs):
    kwargs = {"add_generation_prompt": True, "return_tensors": "pt"} | kwargs
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)


# Equal to the release


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("hd", [False, True], ids=["base", "hd"])
def test_prompts_and_ids_equal_the_release(processor, case, hd):
    messages = []
    for index, (question, answer) in enumerate(case["turns"]):
        messages.append(user(question, *([CAT] if case["image"] and index == 0 else [])))
        messages += [] if answer is None else [assistant(answer)]
    expansion = {RELEASED_IMAGE: [IMAGE] * (405 if hd else 81), QUERY: [QUERY] * 9}
    expected = [token for token_id in case["input_ids"] for token in expansion.get(token_id, [token_id])]

    assert processor.apply_chat_template(messages, add_generation_prompt=True) == case["prompt"]
    by_template = encode(processor, messages, processor_kwargs={"image_hd": hd})
    by_prompt = processor(images=CAT if case["image"] else None, text=case["prompt"], image_hd=hd, return_tensors="pt")
    for inputs in (by_template, by_prompt):
        assert inputs["input_ids"].tolist() == [expected]
        assert inputs["attention_mask"].tolist() == [[1] * len(expected)]
        keys = {"input_ids", "attention_mask"} | ({"pixel_values"} if case["image"] else set())
        assert set(inputs) == keys
        assert not case["image"] or inputs["pixel_values"].shape == (1, 5 if hd else 1, 3, 384, 384)


def test_a_prompt_is_taken_as_it_is(small):
    inputs = small(images=[CAT], text="USER: <image>\nHi<learnable> ASSISTANT:", return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert (ids.count(IMAGE), ids.count(QUERY)) == (4, 9)


# Batches


def test_rows_may_have_any_number_of_images(small):
    conversations = [[user("none")], [user("one", CAT)], [user("two", DOG, FOX)]]
    prompts = [small.apply_chat_template(rows, add_generation_prompt=True) for rows in conversations]
    batch = encode(small, conversations, processor_kwargs={"padding": True})
    assert (batch["input_ids"] == IMAGE).sum(1).tolist() == [0, 4, 8]
    assert (batch["input_ids"] == QUERY).sum(1).tolist() == [9, 9, 9]
    assert batch["pixel_values"].shape == (3, 1, 3, 84, 84)
    for images in ([CAT, DOG, FOX], [[], [CAT], [DOG, FOX]]):
        inputs = small(images=images, text=prompts, padding=True, return_tensors="pt")
        assert all(torch.equal(inputs[key], batch[key]) for key in batch)
    for row, conversation in enumerate(conversations):
        alone = encode(small, conversation)
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == alone["input_ids"][0].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_the_tokenizers_side(side):
    tokenizer = build_phi_tokenizer(padding_side=side)
    processor = FlashSlothProcessor(FlashSlothImageProcessor(), tokenizer)
    inputs = processor(text=["a a a a", "a"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"][1].tolist() == ([0, 0, 0, 1] if side == "left" else [1, 0, 0, 0])
    assert set(inputs["input_ids"][1][inputs["attention_mask"][1] == 0].tolist()) == {PAD}


@pytest.mark.parametrize("images", [None, [], [[]], [[], []]])
def test_texts_need_no_images(small, images):
    text = ["Hi<learnable>"] * (2 if images == [[], []] else 1)
    inputs = small(images=images, text=text, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_images_need_no_text(small):
    assert set(small(images=[CAT, DOG], return_tensors="pt")) == {"pixel_values"}


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (None, "<image>\nHi", r"hold \[1\] and the images are 0"),
        ([CAT], "Hi", r"hold \[0\] and the images are 1"),
        (CAT, "<image><image>", r"hold \[2\] and the images are 1"),
        ([CAT, DOG, FOX], ["<image>", "<image>"], r"hold \[1, 1\] and the images are 3"),
        ([[CAT], [DOG]], ["<image><image>", "Hi"], r"hold \[2, 0\] and the images are \[1, 1\]"),
        ([[CAT, DOG]], ["<image>", "<image>"], r"hold \[1, 1\] and the images are \[2\]"),
        ([CAT, [DOG]], ["<image>", "<image>"], "a list with a list for each text"),
        ([[[CAT]]], ["<image>"], "a list with a list for each text"),
        ("What is this?", CAT, "`text` must be a string or list of strings, got Image"),
        ("What is this?", "<image>", "text belongs to `text=`"),
        ([CAT], [CAT], "`text` must be a string or list of strings"),
        (None, None, "at least one input"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(small, images, text, message):
    with pytest.raises(ValueError, match=message):
        small(images, text)


# Truncation


def test_harmless_truncation_works(small):
    prompt = "USER: <image>\nHi<learnable> ASSISTANT: " + "word " * 50
    whole = small(images=CAT, text=prompt)["input_ids"][0]
    cut = small(images=CAT, text=prompt, truncation=True, max_length=30)["input_ids"][0]
    assert cut == whole[:30]


@pytest.mark.parametrize("max_length", [4, 6, 12, 17])
@pytest.mark.parametrize("return_tensors", [None, "pt", "np"])
def test_truncation_that_cuts_placeholders_is_refused(small, max_length, return_tensors):
    prompt = "USER: <image>\nHi<learnable> ASSISTANT:"  # 3 + 4 + 2 + 9 + 4 tokens
    token = "<image>" if max_length < 7 else "<learnable>"
    with pytest.raises(ValueError, match=f"Truncation cut {token} tokens: .*Raise `max_length`"):
        small(images=CAT, text=prompt, truncation=True, max_length=max_length, return_tensors=return_tensors)


# What else a call can return


def test_token_types_tell_images_from_text(small):
    inputs = encode(small, [user("Hi", CAT)], processor_kwargs={"return_mm_token_type_ids": True})
    assert torch.equal(inputs["mm_token_type_ids"], (inputs["input_ids"] == IMAGE).long())


def test_replacement_offsets_lead_from_placeholders_to_their_expansion(small):
    prompts = ["<image>\na<learnable> b<learnable>", "c<learnable>"]
    inputs = small(images=[CAT], text=prompts, return_text_replacement_offsets=True)
    assert [[offset["type"] for offset in row] for row in inputs["text_replacement_offsets"]] == [
        ["image", "query", "query"],
        ["query"],
    ]
    for prompt, ids, offsets in zip(prompts, inputs["input_ids"], inputs["text_replacement_offsets"], strict=True):
        expanded = small.decode(ids)
        for offset in offsets:
            assert prompt[slice(*offset["span"])] == offset["text"]
            assert expanded[slice(*offset["new_span"])] == offset["replacement"]


def test_placeholders_without_a_replacement_stay(small):
    (expanded,), (offsets,) = small.get_text_with_replacements(["<image> <video> What?<learnable>"])
    assert expanded == "<image> <video> What?" + 9 * "<learnable>"
    assert [offset["type"] for offset in offsets] == ["query"]
    (expanded,), _ = small.get_text_with_replacements(["<image> <video>"], videos_replacements=["Frame"])
    assert expanded == "<image> Frame"


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_assistant_mask_covers_answers_and_their_ends(small, side):
    conversations = [
        [user("What is this?", CAT), assistant("A cat."), user("And this?", DOG, FOX), assistant("A dog, a fox.")],
        [user("Hi"), assistant("Ho")],
    ]
    inputs = encode(
        small,
        conversations,
        add_generation_prompt=False,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": side},
    )
    rows = zip(inputs["input_ids"], inputs["assistant_masks"].bool(), strict=True)
    answers = [small.decode(ids[mask]) for ids, mask in rows]
    assert answers == [" A cat.</s> A dog, a fox.</s>", " Ho</s>"]


@pytest.mark.parametrize("options", [{}, {"image_hd": True}, {"size": {"height": 126, "width": 84}}, {"size": 42}])
def test_serving_engines_are_told_the_numbers_of_tokens(small, options):
    sizes = [(10, 20), (30, 5)]
    counted = small._get_num_multimodal_tokens(image_sizes=sizes, **options)
    images = [Image.new("RGB", size) for size in sizes]
    inputs = small(images=images, text=["<image>"] * 2, **options)
    assert counted["num_image_tokens"] == [ids.count(IMAGE) for ids in inputs["input_ids"]]
    assert counted["num_image_patches"] == [1, 1]


def test_views_too_small_for_a_token_are_refused(small):
    with pytest.raises(ValueError, match=r"28 x 84 pixels leaves no token.*at least 42 x 42 pixels"):
        small(images=CAT, text="<image>", size={"height": 28, "width": 84})


# Construction, saving and loading


def test_a_tokenizer_without_placeholders_is_refused():
    tokenizer = build_phi_tokenizer(image_token=None)
    with pytest.raises(ValueError, match=r"no token <image>.*`tokenizer.add_tokens\(\['<image>'\]"):
        FlashSlothProcessor(FlashSlothImageProcessor(), tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    processor = FlashSlothProcessor(FlashSlothImageProcessor(), tokenizer)
    assert (processor.image_token_id, processor.query_token_id) == (IMAGE, QUERY)


def test_only_names_that_models_take_come_out(processor):
    assert set(processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values"}
    inputs = processor(images=CAT, text="<image>", return_token_type_ids=True)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}


@pytest.mark.parametrize("load", [FlashSlothProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_saved_and_loaded_it_gives_the_same_inputs(tmp_path, load):
    image_processor = FlashSlothImageProcessor(size={"height": 70, "width": 70}, image_hd=True)
    template = "{{ '<picture>' }}{{ messages[0]['content'][0]['text'] }}{{ '<ask>' }}"
    tokenizer = build_phi_tokenizer(padding_side="left")
    tokenizer.add_tokens(["<picture>", "<ask>"], special_tokens=True)
    saved = FlashSlothProcessor(
        image_processor,
        tokenizer,
        image_token="<picture>",
        query_token="<ask>",
        num_query_tokens=3,
        patch_size=7,
        pooling_window=2,
        chat_template=template,
    )
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is FlashSlothProcessor
    assert loaded.to_dict() == saved.to_dict()
    expected = encode(saved, [user("Hi", CAT)])
    assert (expected["input_ids"] == saved.image_token_id).sum() == 5 * 25
    assert (expected["input_ids"] == saved.query_token_id).sum() == 3
    actual = encode(loaded, [user("Hi", CAT)])
    assert set(actual) == set(expected)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_the_default_template_is_saved_as_a_file(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == processor.chat_template
    assert FlashSlothProcessor.from_pretrained(tmp_path).chat_template == processor.chat_template


def test_a_tokenizer_may_name_other_placeholders():
    tokenizer = build_phi_tokenizer(image_token=None, extra_special_tokens={"image_token": "<pic>"})
    processor = FlashSlothProcessor(FlashSlothImageProcessor(), tokenizer, image_token="<pic>")
    assert processor.apply_chat_template([system(""), user("<image>", CAT)]) == "USER: <pic>\n<image><learnable>"
    ids = encode(processor, [user("Hi", CAT)])["input_ids"][0]
    assert (ids == tokenizer.convert_tokens_to_ids("<pic>")).sum() == 81


# Texts and processors as others keep them


def test_texts_of_columns_series_and_arrays(small):
    import numpy as np
    from datasets import Dataset

    prompts = ["USER: <image>\nWhat?<learnable> ASSISTANT:", "USER: <image>\nAnd where?<learnable> ASSISTANT:"]
    expected = small([CAT, DOG], prompts, padding=True, return_tensors="pt")
    column = Dataset.from_dict({"prompt": prompts})["prompt"]
    for texts in (column, np.array(prompts), np.array(prompts, dtype=object), tuple(prompts)):
        found = small([CAT, DOG], texts, padding=True, return_tensors="pt")
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    images = Dataset.from_dict({"image": [CAT, DOG]}).cast_column("image", __import__("datasets").Image())["image"]
    found = small(images, column, padding=True, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match="`text` must be a string or list of strings"):
        small([CAT], {"prompt": prompts})


def test_parts_that_were_saved_apart(tmp_path):
    """An image processor and a tokenizer beside a model: what they do not say is as in its config."""
    from tests.golden_model import tiny_config

    processor = FlashSlothProcessor(
        FlashSlothImageProcessor(size={"height": 126, "width": 126}), build_phi_tokenizer(), pooling_window=9
    )
    processor.image_processor.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no processor_config.json, and no config.json .*save_pretrained"):
        FlashSlothProcessor.from_pretrained(tmp_path)

    tiny_config(pooling_window=9, num_query_tokens=4).save_pretrained(tmp_path)
    for load in (AutoProcessor, FlashSlothProcessor):
        found = load.from_pretrained(tmp_path)
        assert (found.patch_size, found.num_query_tokens) == (14, 4)
        assert encode(found, [user("What?", CAT)])["input_ids"].tolist()[0].count(IMAGE) == 1
