"""The plug-in of lmms-eval: what it answers is what `generate` says to each document alone."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT, InputError

pytest.importorskip("lmms_eval")

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model

from transformers_flashsloth.evaluation import harness

EXAMPLES = Path(DEFAULT_CHECKPOINT).parent / "examples"
SHAPES, CORNERS, FOX = (Image.open(EXAMPLES / f"{name}.png").convert("RGB") for name in ("shapes", "corners", "fox"))
SYSTEM = {"role": "system", "content": [{"type": "text", "text": "Answer with one word."}]}
# Ragged: none to three images, a video of frames, a conversation, a system prompt, texts of several lengths.
DOCUMENTS = [
    ([SHAPES], "What color is the triangle?"),
    ([CORNERS], "What is in the bottom left corner?"),
    ([], "What color is the sky?"),
    ([FOX], "What is this?"),
    ([CORNERS, SHAPES, FOX], "What is in the first picture, and in the second one, and what in the third?"),
    ([CORNERS], "What is in the top left corner?"),
    ([SHAPES], "Is there a circle? " * 9),
]


def model_of(**options):
    return get_model("flashsloth")(DEFAULT_CHECKPOINT, device="cpu", **options)


def messages_of(images, text: str) -> list[dict]:
    content = [{"type": "image", "url": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def request_of(kind: str, doc_to_messages, row: int, **options) -> Instance:
    arguments = ("", doc_to_messages, {"max_new_tokens": 6} | options, row, "task", "test")
    return Instance(kind, arguments, 0, {"task": "task", "doc_id": row, "repeats": 1})


def ask(model, conversations: list, kind: str = "generate_until", **options) -> list:
    model.task_dict = {"task": {"test": conversations}}
    requests = [request_of(kind, lambda doc: doc, row, **options) for row in range(len(conversations))]
    return getattr(model, kind)(requests)


def views_encoded(model) -> list[int]:
    """Grows by the views that the vision tower sees in a call."""
    seen = []
    tower = model.answerer.model.model.vision_tower
    tower.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    return seen


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """`generate` by itself, without anything of evaluation/."""
    processor = FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT).eval()
    answers = []
    for images, text in DOCUMENTS:
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_answers_are_those_of_generate_whatever_the_batch_and_the_order(alone, batch_size):
    assert alone[:2] == ["blue", "guitar"] and len(set(alone)) > 3
    model = model_of(batch_size=batch_size)
    conversations = [messages_of(*document) for document in DOCUMENTS]
    assert ask(model, conversations) == alone
    assert ask(model, conversations[::-1]) == alone[::-1]


@pytest.mark.parametrize(("batch_size", "size"), [(1, 128), (2, 128), (16, 128), (2, 3)])
def test_an_image_is_encoded_once_whatever_the_batch_and_the_order(batch_size, size, monkeypatch):
    """Documents have copies of their images, and come in slices of which none holds all."""
    monkeypatch.setattr(harness, "SLICE", size)
    questions = ["What is this?", "Is there a fox?", "What is in the bottom left corner?"]
    documents = [messages_of([image.copy()], text) for text in questions for image in (FOX, CORNERS, SHAPES)]
    model = model_of(batch_size=batch_size)
    expected = [ask(model_of(), [document])[0] for document in documents]
    seen = views_encoded(model)
    assert ask(model, documents) == expected and len(set(expected)) > 4
    assert ask(model, documents[::-1]) == expected[::-1]
    assert sum(seen) == 3 == model.answerer.features.misses


def test_sampled_answers_do_not_depend_on_slices(monkeypatch):
    conversations = [messages_of(*document) for document in [*DOCUMENTS[:2], *DOCUMENTS[:2]]]
    hot = {"temperature": 3.0, "do_sample": True}
    whole = ask(model_of(), conversations, **hot)
    monkeypatch.setattr(harness, "SLICE", 1)
    assert ask(model_of(), conversations, **hot) == whole and whole[:2] != whole[2:]


def test_rows_near_the_end_of_the_context_have_the_room_they_have_alone(tiny_checkpoint):
    conversations = [messages_of([], "word " * count) for count in (5, 60, 100, 130)]
    alone, together = (
        ask(get_model("flashsloth")(tiny_checkpoint, device="cpu", batch_size=size), conversations, max_new_tokens=9999)
        for size in (1, 4)
    )
    assert alone == together and all(alone)
    with pytest.raises(InputError, match=r"a document cannot be asked: it takes .* the model reads at most 255"):
        ask(get_model("flashsloth")(tiny_checkpoint, device="cpu"), [messages_of([], "word " * 400)])


def test_stop_strings_end_an_answer_and_are_not_looked_for_in_the_prompt():
    model = model_of(batch_size=2)
    conversations = [messages_of(*DOCUMENTS[0]), messages_of(*DOCUMENTS[1])]
    assert ask(model, conversations, until=["lu", "\n\n"]) == ["b", "guitar"]
    assert ask(model, conversations, until="tar") == ["blue", "gui"]
    assert ask(model, conversations, until=["ASSISTANT", ":", ""]) == ["blue", "guitar"]


def test_sampled_answers_do_not_depend_on_batch_and_order():
    conversations = [messages_of(*document) for document in [*DOCUMENTS, DOCUMENTS[0]]]
    hot = {"temperature": 3.0, "do_sample": True}
    first, again = (ask(model_of(batch_size=size), conversations, **hot) for size in (1, 8))
    assert first == again
    assert ask(model_of(), conversations[:-1][::-1], **hot)[::-1] == first[:-1]
    assert first[0] != first[-1] and ask(model_of(seed=1), conversations, **hot) != first
    greedy = ask(model_of(), conversations, temperature=0, do_sample=True, top_p=None)
    assert greedy == ask(model_of(), conversations)


def test_a_video_is_frames_and_a_file_of_them(tmp_path):
    clip = tmp_path / "clip.gif"
    SHAPES.save(clip, save_all=True, append_images=[CORNERS, FOX], duration=1000)
    content = [{"type": "video", "url": str(clip)}, {"type": "text", "text": "What is this?"}]
    model = model_of(num_frames=2)
    seen = views_encoded(model)
    assert ask(model, [[{"role": "user", "content": content}]]) != [""]
    assert seen == [2]


def test_system_prompts_change_the_prompt_and_come_from_a_file_too(tmp_path):
    file = tmp_path / "system.txt"
    file.write_text("Answer with one word.\n")
    model, prompted = model_of(), model_of(system_prompt=str(file))
    document = messages_of(*DOCUMENTS[4])
    prompts = []
    for each in (model, prompted):
        asked = each.answerer.model
        asked.generate = lambda kept=asked.generate, **inputs: prompts.append(inputs["input_ids"]) or kept(**inputs)
    by_document = ask(model, [[SYSTEM, *document]])
    assert ask(prompted, [document]) == by_document
    assert torch.equal(*prompts)
    assert "Answer with one word. USER:" in model.answerer.processor.decode(prompts[0][0])


def test_several_rounds_hand_the_answers_on():
    seen = []

    def doc_to_messages(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return messages_of([SHAPES], "What color is the triangle?")
        seen.append((round_idx, previous_output, previous_round_info))
        return messages_of([CORNERS], "What is in the bottom left corner?"), round_idx > doc, None, f"after {round_idx}"

    model = model_of(batch_size=2)
    model.task_dict = {"task": {"test": [1, 0]}}
    requests = [request_of("generate_until_multi_round", doc_to_messages, row) for row in range(2)]
    assert model.generate_until_multi_round(requests) == [["blue", "guitar"], ["blue"]]
    assert (2, ["blue", "guitar"], "after 1") in seen


def test_texts_that_name_special_tokens_are_read_as_typed():
    assert ask(model_of(), [messages_of([FOX], "What is this <image> </s>?")]) != [""]


def test_adapters_and_high_definition(tmp_path):
    peft = pytest.importorskip("peft")
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT)
    adapted = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    conversations = [messages_of(*document) for document in DOCUMENTS]
    plain = ask(model_of(), conversations)
    changed = [ask(model_of(peft=str(tmp_path / "adapter"), batch_size=size), conversations) for size in (1, 16)]
    assert changed[0] == changed[1] != plain
    assert model_of(image_hd=True).answerer.processor_kwargs == {"image_hd": True}
    assert ask(model_of(image_hd=True), conversations[:1]) != [""]
    with pytest.raises(InputError, match="the adapter 'nowhere' cannot be loaded"):
        model_of(peft="nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imagehd": True}, "model_args has imagehd, which FlashSloth does not know; it knows attn_implementation"),
        ({"batch_size": "auto"}, "--batch_size must be a number of at least 1, got 'auto'"),
        ({"load_in": "2bit"}, "weights are loaded in 4bit or 8bit, not in '2bit'"),
    ],
)
def test_refusals_say_what_to_do(options, message):
    with pytest.raises(InputError, match=message):
        model_of(**options)


def test_likelihoods_are_refused():
    with pytest.raises(NotImplementedError, match="choose a task with `output_type: generate_until`"):
        model_of().loglikelihood([])


def test_options_that_cannot_be_meant_are_refused():
    with pytest.raises(InputError, match="`temperature` must be 0"):
        ask(model_of(), [messages_of(*DOCUMENTS[0])], temperature=-1)
    assert json.dumps(ask(model_of(), [messages_of(*DOCUMENTS[0])], image_aspect_ratio="pad")) == '["blue"]'
