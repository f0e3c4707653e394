import importlib.util
import json
import time
from threading import Lock, Thread

import pytest
import torch
from PIL import Image

from transformers_flashsloth.asking import conversation as conversation_module
from transformers_flashsloth.asking.conversation import Conversation
from transformers_flashsloth.checkpoints.opening import InputError


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "blue.png"
    Image.new("RGB", (20, 10), "blue").save(path)
    return str(path)


@pytest.fixture
def conversation(image, tiny_checkpoint):
    return Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu")


def inputs_of(conversation, monkeypatch, *questions):
    """Asks the questions and returns what `generate` got for the last one, with the first answer."""
    seen = []
    generate = conversation.model.generate
    monkeypatch.setattr(conversation.model, "generate", lambda **kwargs: seen.append(kwargs) or generate(**kwargs))
    answers = [conversation.ask(question) for question in questions]
    return seen[-1], answers[0]


def test_answer_is_that_of_the_public_interfaces(conversation, image):
    messages = [{"role": "user", "content": [{"type": "image", "path": image}, {"type": "text", "text": "What?"}]}]
    inputs = conversation.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    output = conversation.model.generate(**inputs, max_new_tokens=5)
    expected = conversation.processor.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    assert conversation.ask("  What?\n") == expected.strip() != ""


def test_later_questions_follow_the_history_and_send_each_image_once(conversation, monkeypatch):
    inputs, answer = inputs_of(conversation, monkeypatch, "What?", "And where?")

    text = conversation.processor.decode(inputs["input_ids"][0])
    assert text.count("<image>") == 1 and len(inputs["pixel_values"]) == 1
    assert text.index("What?") < text.index(f" ASSISTANT: {answer}</s>USER: And where?")


def test_several_images_in_high_definition(image, tiny_checkpoint, monkeypatch):
    conversation = Conversation([image, image], checkpoint=tiny_checkpoint, image_hd=True, device="cpu")

    inputs, _ = inputs_of(conversation, monkeypatch, "What?")

    assert inputs["pixel_values"].shape[:2] == (2, 5)


def test_a_refused_question_is_forgotten(conversation):
    with pytest.raises(InputError, match="<image>"):
        conversation.ask("What is <image>?")
    with pytest.raises(InputError, match="empty"):
        conversation.ask(" \n")

    assert conversation.messages == []
    assert conversation.ask("What?")


def test_the_context_cuts_an_answer_short_and_refuses_a_long_question(image, tiny_checkpoint, monkeypatch):
    conversation = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=10_000, device="cpu")

    inputs, _ = inputs_of(conversation, monkeypatch, "What? " * 60)

    assert inputs["input_ids"].shape[1] + inputs["max_new_tokens"] == 256
    with pytest.raises(InputError, match="at most 255"):
        conversation.ask("What? " * 300)


def test_the_checkpoint_says_how_long_an_answer_may_be(image, tiny_checkpoint, monkeypatch):
    conversation = Conversation([image], checkpoint=tiny_checkpoint, device="cpu")
    conversation.model.generation_config.max_new_tokens = 3

    inputs, _ = inputs_of(conversation, monkeypatch, "What?")

    assert inputs["max_new_tokens"] == 3


@pytest.mark.parametrize("device, dtype", [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_weights_are_float32_on_a_cpu_and_as_saved_elsewhere(image, tiny_checkpoint, monkeypatch, device, dtype):
    saved = Conversation([image], checkpoint=tiny_checkpoint, device="cpu", dtype="bfloat16")
    assert saved.model.dtype == torch.bfloat16
    directory = image + ".bf16"
    saved.model.save_pretrained(directory)
    saved.processor.save_pretrained(directory)
    monkeypatch.setattr(conversation_module, "usable_device", lambda _: torch.device(device))
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, *_: model)

    assert Conversation([image], checkpoint=directory).model.dtype == dtype


def test_a_checkpoint_without_all_weights_is_refused(conversation, tiny_checkpoint, tmp_path):
    state = conversation.model.state_dict()
    del state["model.embq.up_proj.weight"]
    conversation.model.save_pretrained(tmp_path, state_dict=state)
    conversation.processor.save_pretrained(tmp_path)

    broken = Conversation([], checkpoint=str(tmp_path), device="cpu")

    with pytest.raises(InputError, match=r"lacks 1 weights, such as 'model\.embq\.up_proj\.weight'"):
        broken.ask("What?")


def test_weights_are_not_read_for_bad_input(image, tiny_checkpoint, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "flashsloth"}))
    Conversation([image], checkpoint=tiny_checkpoint, device="cpu").processor.save_pretrained(tmp_path)

    conversation = Conversation([image], checkpoint=str(tmp_path), device="cpu")  # has no weights

    with pytest.raises(InputError, match="<image>"):
        conversation.ask("What is <image>?")
    with pytest.raises(InputError, match="cannot be loaded"):
        conversation.ask("What?")


def test_a_video_is_sampled_once_and_its_frames_are_explained(image, tiny_checkpoint, tmp_path, monkeypatch):
    frames = [Image.new("RGB", (20, 10), (index * 20, 0, 0)) for index in range(10)]
    path = tmp_path / "clip.mp4"  # in truth an animation, which needs no decoder
    frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:], duration=500)
    options = {"checkpoint": tiny_checkpoint, "device": "cpu", "max_new_tokens": 5}
    conversation = Conversation([image, str(path)], num_frames=3, **options)
    path.unlink()

    inputs, _ = inputs_of(conversation, monkeypatch, "What?", "And then?")

    text = conversation.processor.decode(inputs["input_ids"][0])
    assert "USER: <image>\nFrame 1, 0:00: <image>\nFrame 2, 0:02: <image>\nFrame 3, 0:04: <image>\nWhat?" in text
    pictures = [Image.open(image), frames[0], frames[5], frames[9]]
    expected = conversation.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)
    assert conversation.explain().height > 4 * 10


def test_a_video_that_cannot_be_read_is_refused_at_once(tiny_checkpoint, tmp_path):
    (tmp_path / "clip.webm").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"clip\.webm"):
        Conversation([str(tmp_path / "clip.webm")], checkpoint=tiny_checkpoint, device="cpu")
    with pytest.raises(InputError, match="there is no video file"):
        Conversation([str(tmp_path / "nothing.mp4")], checkpoint=tiny_checkpoint, device="cpu")


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_loading_in_few_bits_needs_bitsandbytes(load_in, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "transformers_flashsloth.checkpoints.opening.find_spec",
        lambda name: None if name == "bitsandbytes" else real(name),
    )
    with pytest.raises(InputError, match=f"loading in {load_in} needs bitsandbytes: pip install bitsandbytes"):
        Conversation([], load_in=load_in)


def test_the_decoder_is_loaded_in_few_bits(monkeypatch):
    """By transformers' own config, with the device that computes; nothing is moved afterwards."""
    monkeypatch.setattr("transformers_flashsloth.checkpoints.opening.find_spec", lambda name: True)
    seen = {}
    monkeypatch.setattr(conversation_module, "open_model", lambda checkpoint, **options: seen.update(options))
    assert Conversation([], load_in="4bit", device="cpu").model is None
    config = seen["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and not config.load_in_8bit
    assert seen["device_map"] == {"": torch.device("cpu")}
    assert Conversation([], load_in="8bit", device="cpu").model is None
    assert seen["quantization_config"].load_in_8bit
    with pytest.raises(InputError, match="4bit or 8bit, not in '2bit'"):
        Conversation([], load_in="2bit")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_answers_in_8_bits_and_refuses_4_where_they_do_not_fit(image):
    assert Conversation([image], load_in="8bit", device="cpu").ask("What?")
    with pytest.raises(InputError, match="multiple of 64 inputs, but this model has some of 160: load it in 8bit"):
        Conversation([image], load_in="4bit", device="cpu").ask("What?")


def test_the_number_of_visual_tokens(image):
    conversation = Conversation([image], visual_tokens=4)
    conversation.ask("What?")
    assert (conversation.inputs["input_ids"] == conversation.processor.image_token_id).sum() == 4
    with pytest.raises(InputError, match="5 visual tokens; the model's patches make 1, 4, 9, 16, 36, 144"):
        Conversation([image], visual_tokens=5)


def test_an_answer_comes_in_pieces_and_is_remembered(conversation, image, tiny_checkpoint):
    pieces = list(conversation.stream("What?"))

    other = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu")
    assert "".join(pieces).rstrip() == other.ask("What?") and len(pieces) > 1
    assert conversation.messages == other.messages
    assert "".join(conversation.stream("And where?")).rstrip() == other.ask("And where?")


def test_a_reader_who_stops_ends_the_answer(conversation):
    conversation.max_new_tokens = 200
    steps = []
    conversation.model.register_forward_pre_hook(lambda *args: steps.append(time.sleep(0.02)))

    pieces = conversation.stream("What?")
    next(pieces)
    pieces.close()

    time.sleep(0.3)
    done = len(steps)
    time.sleep(0.3)
    assert len(steps) == done < 100
    assert conversation.messages == [] and len(conversation.unseen_images) == 1


def test_what_fails_while_an_answer_grows_is_raised(conversation, monkeypatch):
    def run_out_of_memory(**kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(conversation.model, "generate", run_out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(conversation.stream("What?"))
    with pytest.raises(InputError, match="at most 255"):
        list(conversation.stream("What? " * 300))
    assert conversation.messages == []


def test_conversations_share_a_loaded_model_and_take_turns(conversation, image, tiny_checkpoint, monkeypatch):
    shared = {"model": conversation.model, "processor": conversation.processor, "lock": Lock()}
    generate, running, most = conversation.model.generate, [], []

    def watched(**kwargs):
        running.append(1)
        most.append(len(running))
        try:
            return generate(**kwargs)
        finally:
            running.pop()

    monkeypatch.setattr(conversation.model, "generate", watched)
    questions = ["What?", "And where?", "Which?", "Whose?"]
    several = [Conversation([image], max_new_tokens=5, **shared) for _ in questions]
    answers = {}

    def ask(one, question):
        answers[question] = "".join(one.stream(question)).rstrip()

    threads = [Thread(target=ask, args=pair) for pair in zip(several, questions, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert max(most) == 1
    for question in questions:
        alone = Conversation([image], checkpoint=tiny_checkpoint, max_new_tokens=5, device="cpu")
        assert answers[question] == alone.ask(question)
    with pytest.raises(ValueError, match="comes with its processor"):
        Conversation([], model=conversation.model)


def test_turns_bring_images_along_and_can_be_taken_up(image, tiny_checkpoint, tmp_path):
    red = Image.new("RGB", (10, 20), "red")
    options = {"checkpoint": tiny_checkpoint, "max_new_tokens": 5, "device": "cpu"}
    conversation = Conversation([], **options)
    first = conversation.ask("What?", [image])
    conversation.ask("And this?", [red])
    assert len(conversation.inputs["pixel_values"]) == 2

    other = Conversation([], **options)
    other.recall("What?", first, [image])
    assert other.ask("And this?", [red]) == conversation.messages[-1]["content"][0]["text"]
    assert torch.equal(other.inputs["input_ids"], conversation.inputs["input_ids"])
    with pytest.raises(InputError, match=r"no image file 'nothing\.png'"):
        conversation.ask("And this?", ["nothing.png"])


def test_only_an_answer_about_an_image_is_explained(conversation, image, monkeypatch):
    with pytest.raises(InputError, match="nothing to explain"):
        conversation.explain()
    conversation.recall("What?", "blue")
    explained = conversation.explain()
    with pytest.raises(InputError, match="at most 255"):
        conversation.ask("What? " * 300)  # after its prompt was made
    assert conversation.explain().tobytes() == explained.tobytes()
