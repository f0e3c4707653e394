"""`--eval_answers`: the recipes ask held-out questions while they train, and nothing of the training shows it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import set_seed

datasets = pytest.importorskip("datasets")
pytest.importorskip("trl")

from tests.training.training_files import llava_rows, write_images, write_rows  # noqa: E402
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor  # noqa: E402
from transformers_flashsloth.checkpoints.opening import InputError  # noqa: E402
from transformers_flashsloth.training import answering_trainer, lora, stage1, stage2  # noqa: E402
from transformers_flashsloth.training.answering_trainer import table  # noqa: E402
from transformers_flashsloth.training.held_out import HeldOut  # noqa: E402
from transformers_flashsloth.training.row_files import TrainingDataError  # noqa: E402

TOKENS = 4
FLAGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 3,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
ASKING = {"eval_strategy": "steps", "eval_steps": 1, "eval_max_new_tokens": TOKENS}


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory) -> str:
    """With weights large enough for images and questions to matter."""
    directory = tmp_path_factory.mktemp("loud")
    model = FlashSlothForConditionalGeneration.from_pretrained(tiny_checkpoint)
    set_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    FlashSlothProcessor.from_pretrained(tiny_checkpoint).save_pretrained(directory)
    return str(directory)


def turn(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture(scope="module")
def held_out() -> list[dict]:
    """Rows with one image, two, the same one again, none, and of several turns with images in some."""
    rows = [
        {"image": "0.png", "conversations": turn("What is it?", "x")},
        {"conversations": turn("And nothing at all?", "x")},
        {"image": ["1.png", "2.png"], "conversations": turn("<image><image>\nWhich of the two?", "x")},
        {"image": "0.png", "conversations": turn("Which colour, in one word?", "x")},
        {"image": "3.png", "conversations": turn("First?", "Yes, first.") + turn("And second?", "x")},
        {"image": ["4.png", "5.png"], "conversations": turn("A<image>", "b") + turn("C<image>", "d") + turn("E?", "x")},
        {"conversations": turn("One?", "Two.") + turn("Three?", "x")},
    ]
    return [{"id": f"h{number}"} | row for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("rows") / "images", 12)


@pytest.fixture
def flags(images, checkpoint, tmp_path, monkeypatch) -> list[str]:
    """A quick run on rows that are not held out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = ["--llava_json", str(write_rows(tmp_path / "rows.json", llava_rows(12))), "--image_folder", str(images)]
    source += ["--model_name_or_path", checkpoint, "--output_dir", str(tmp_path / "output")]
    return with_flags(source, **FLAGS)


def with_flags(arguments: list[str], **flags) -> list[str]:
    return [*arguments, *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]


def answers_by_hand(model, checkpoint, rows: list[dict], images: Path, **options) -> list[str]:
    """`generate`, one row at a time, of what stands before the last answer."""
    processor = FlashSlothProcessor.from_pretrained(checkpoint)
    model.eval()
    answers = []
    for row in rows:
        names = row.get("image") or []
        opened = [Image.open(images / name) for name in ([names] if isinstance(names, str) else names)]
        messages = []
        for number, said in enumerate(row["conversations"][:-1]):
            text = said["value"]
            count = text.count("<image>") or (len(opened) if not number else 0)
            content = [{"type": "image", "image": opened.pop(0)} for _ in range(count)] if number % 2 == 0 else []
            content.append({"type": "text", "text": text.replace("<image>", "").strip()})
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
        )
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


def with_answers(rows: list[dict], answers: list[str]) -> list[dict]:
    return [
        row | {"conversations": [*row["conversations"][:-1], {"from": "gpt", "value": answer}]}
        for row, answer in zip(rows, answers, strict=True)
    ]


def evaluations(trainer) -> list[tuple[float, float]]:
    """Exact match and ANLS beside each loss."""
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return [(entry["eval_exact_match"], entry["eval_anls"]) for entry in entries]


@pytest.mark.parametrize("image_hd", [False, True])
def test_figures_are_those_counted_by_hand(flags, held_out, images, checkpoint, tmp_path, image_hd, capsys):
    model = FlashSlothForConditionalGeneration.from_pretrained(checkpoint)
    said = answers_by_hand(model, checkpoint, held_out, images, image_hd=image_hd)
    assert len(set(said)) >= 5 and all(len(answer) > 4 for answer in said)
    # Three right, two with one letter of theirs wrong, two with nothing in common.
    expected = [*said[:3], "~" + said[3][1:], "~" + said[4][1:], "~", "~"]
    worth = (3 + sum(1 - 1 / len(said[number]) for number in (3, 4))) / 7
    rows = write_rows(tmp_path / "held.json", with_answers(held_out, expected))
    arguments = with_flags(flags, **ASKING, eval_answers=rows, learning_rate=0, image_hd=image_hd, max_steps=1)
    trainer = lora.main([*arguments, "--eval_on_start"])
    assert evaluations(trainer) == [pytest.approx((3 / 7, worth))] * 2

    shown = capsys.readouterr().out.splitlines()
    heads = [number for number, line in enumerate(shown) if line.startswith("question ")]
    assert len(heads) == 2 and "And second?" in shown[heads[0] + 6] and len(shown[heads[0] + 1].split()) == 3


def test_figures_of_a_trained_adapter_are_its_own(flags, held_out, images, checkpoint, tmp_path):
    """With activations checkpointed, and no figure of an evaluation before."""
    before = FlashSlothForConditionalGeneration.from_pretrained(checkpoint)
    said = answers_by_hand(before, checkpoint, held_out, images)
    rows = write_rows(tmp_path / "held.json", with_answers(held_out, said))
    arguments = with_flags(flags, **ASKING, eval_answers=rows, learning_rate=0.05, gradient_checkpointing=True)
    trainer = lora.main([*arguments, "--eval_on_start", "--eval_steps", "2"])
    after = answers_by_hand(trainer.model, checkpoint, held_out, images)
    right = sum(one == other for one, other in zip(after, said, strict=True))
    first, last = evaluations(trainer)
    assert first == (1, 1) and last[0] == right / 7 < 1


def test_training_is_as_if_nothing_had_been_asked(flags, held_out, tmp_path):
    """Dropout, whose draws an evaluation could move, is on; and so is what an evaluation could leave behind."""
    arguments = with_flags(flags, lora_dropout=0.3)
    plain = lora.main(arguments)
    rows = write_rows(tmp_path / "held.json", held_out[:3])
    asked = lora.main(with_flags(arguments, **ASKING, eval_answers=rows))
    assert len(evaluations(asked)) == 2 and not evaluations(plain)
    weights = [
        {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
        for trainer in (plain, asked)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert [entry["loss"] for entry in plain.state.log_history if "loss" in entry] == [
        entry["loss"] for entry in asked.state.log_history if "loss" in entry
    ]


def test_modes_and_the_processor_are_left_as_they_were(flags, held_out, tmp_path):
    rows = write_rows(tmp_path / "held.json", held_out)
    trainer = stage2.main(with_flags(flags, **ASKING, eval_answers=rows, global_batch_size=2, max_steps=1))
    trainer.model.train()
    trainer.model.model.vision_tower.eval()
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    template, state = trainer.processing_class.chat_template, torch.random.get_rng_state()
    assert set(modes.values()) == {True, False}
    figures = trainer.answer_held_out()
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert trainer.processing_class.chat_template == template
    assert torch.equal(state, torch.random.get_rng_state())
    assert figures == trainer.answer_held_out() and set(figures) == {"exact_match", "anls"}
    # A data set of one's own has a loss, but is not what was held out.
    found = trainer.evaluate(trainer.train_dataset)
    assert "eval_loss" in found and "eval_anls" not in found
    assert "eval_anls" in trainer.evaluate()


def test_the_best_model_can_be_the_one_that_answers_best(flags, tmp_path):
    best = {"metric_for_best_model": "anls", "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    arguments = with_flags(flags, **ASKING | best, eval_fraction=0.25, eval_answers=2)
    trainer = lora.main(arguments)
    figures = [anls for _, anls in evaluations(trainer)]
    assert trainer.state.best_metric == max(figures)
    assert trainer.state.best_global_step == figures.index(max(figures)) + 1
    assert len(trainer.asking.rows) == 2 and len(trainer.eval_dataset) == 3
    # Who asks otherwise resumes all the same, as no step depends on it.
    checkpoint = tmp_path / "output" / "checkpoint-1"
    resumed = lora.main(with_flags(arguments, eval_answers=1, eval_max_new_tokens=3, resume_from_checkpoint=checkpoint))
    assert resumed.state.global_step == 2


def test_stage_1_shows_images_and_cuts_captions_to_their_length(flags, images, checkpoint, tmp_path):
    arguments = with_flags(flags, eval_strategy="steps", eval_steps=1, global_batch_size=2, max_steps=1)
    trainer = stage1.main(with_flags(arguments, eval_answers=3, eval_fraction=0.4))
    assert len(evaluations(trainer)) == 1
    processor = FlashSlothProcessor.from_pretrained(checkpoint)
    expected = trainer.asking.rows.expected()
    lengths = [len(processor.tokenizer(text)["input_ids"]) for text in expected]
    assert len(set(lengths)) > 1
    trainer.model.eval()
    for number, row in enumerate(trainer.asking.rows.rows):
        inputs = processor(text="<image>", images=row["images"], return_tensors="pt")
        output = trainer.model.generate(**inputs, max_new_tokens=lengths[number], do_sample=False, use_cache=True)
        caption = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert trainer._answers([number], expected) == [caption]


@pytest.mark.parametrize("bare", [False, True])
def test_prompts_with_completions_and_streams(flags, images, checkpoint, tmp_path, monkeypatch, bare):
    """What TRL trains on: conversations in two parts, or texts with placeholders in them."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Blue."}]}
    prompt, completion = ("<image>\nWhat?<learnable>", " Blue.") if bare else ([question], [answer])
    rows = datasets.Dataset.from_dict(
        {
            "images": [[str(images / f"{n}.png")] for n in range(6)],
            "prompt": [prompt] * 6,
            "completion": [completion] * 6,
        }
    ).cast_column("images", datasets.List(datasets.Image()))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    arguments = with_flags(["--dataset_name", str(tmp_path / "saved"), *flags[4:]], **ASKING, eval_answers=3)
    monkeypatch.setattr(lora, "run", lambda trainer, *_: trainer)
    trainer = lora.main(arguments)
    model = trainer.model.eval()
    processor = FlashSlothProcessor.from_pretrained(checkpoint)
    text = prompt if bare else processor.apply_chat_template([question], add_generation_prompt=True)
    inputs = processor(text=text, images=[Image.open(images / "2.png")], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
    said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert trainer.asking.rows.expected() == ["Blue."] * 3
    assert trainer._answers([1], ["Blue."] * 3) == [said]  # rows 0, 2 and 4 of six

    stream = HeldOut(rows.to_iterable_dataset(), 2)
    (asked,) = stream.questions([1])
    assert len(stream) == 2 and stream.expected() == ["Blue."] * 2 and asked.is_bare == bare
    assert asked.conversation[0]["content"][0]["image"].size == (8, 8)


def test_what_comes_behind_the_last_answer_is_not_asked():
    content = [{"type": "image", "text": None}, {"type": "text", "text": "One?"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": " Two. "}]},
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Three?"}]},
    ]
    pictures = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(2)]
    rows = HeldOut(datasets.Dataset.from_list([{"messages": messages, "images": pictures, "rest": 1}]), 9)
    ((conversation, expected, is_bare),) = rows.questions([0])
    assert expected == "Two." and not is_bare and [message["role"] for message in conversation] == ["system", "user"]
    assert conversation[1]["content"][0]["image"].getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(InputError, match="no rows to ask"):
        HeldOut(datasets.Dataset.from_list([]))
    unanswered = {"messages": [{"role": "user", "content": "And this?"}]}
    with pytest.raises(InputError, match="a row kept for evaluation has none: 'And this"):
        HeldOut(datasets.Dataset.from_list([unanswered]))


def test_long_texts_are_shortened_in_the_table():
    lines = table([("What is\nit?", "word " * 30, "a"), ("b", "c", "x" * 99)]).splitlines()
    assert lines[0].split() == ["question", "expected", "answered"] and len(lines) == 4
    assert "What is it?" in lines[2] and lines[3].endswith("x…") and max(map(len, lines)) < 120


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_answers": 4}, "--eval_answers needs --eval_strategy, steps or epoch"),
        ({"eval_answers": 4, "eval_strategy": "steps"}, "give --eval_fraction, or a file with --eval_answers"),
        ({"eval_answers": 0}, "a number of held-out rows, at least 1, or a file of rows, not '0'"),
        ({"eval_answers": -4}, "not '-4'"),
        ({"eval_answers": "gone.json"}, "not 'gone.json'"),
        ({"eval_answers": __file__, "eval_strategy": "epoch"}, r"must be a .json, .jsonl, .csv file"),
        ({"eval_answers": __file__, "eval_strategy": "epoch", "eval_fraction": 0.5}, "names a file to evaluate on"),
        ({"eval_max_new_tokens": 4}, "say how many with --eval_answers"),
        ({"eval_answers": 4, "eval_max_new_tokens": 0}, "--eval_max_new_tokens must be at least 1"),
        ({"metric_for_best_model": "eval_exact_match"}, "ask for them with --eval_answers"),
    ],
)
def test_what_cannot_be_asked_ends_in_a_sentence(flags, given, message):
    with pytest.raises((InputError, TrainingDataError), match=message):
        lora.main(with_flags(flags, **given))


def test_files_of_either_kind_are_held_out(flags, tmp_path, monkeypatch):
    """A table beside LLaVA's JSON, and broken rows of it named."""
    table = [{"image": f"{n}.png", "question": "What is it?", "answer": f"number {n}"} for n in range(3)]
    monkeypatch.setattr(lora, "run", lambda trainer, *_: trainer)
    for name in ("held.csv", "held.jsonl"):
        file = write_rows(tmp_path / name, table)
        trainer = lora.main(with_flags(flags, **ASKING, eval_answers=file))
        assert trainer.asking.rows.expected() == ["number 0", "number 1", "number 2"]
        assert len(trainer.train_dataset) == 12 and len(trainer.eval_dataset) == 3
    broken = write_rows(tmp_path / "broken.csv", [*table, table[0] | {"image": "gone.png"}])
    with pytest.raises(TrainingDataError, match=r"broken.csv, row 3: there is no image file .*gone.png"):
        lora.main(with_flags(flags, **ASKING, eval_answers=broken))


def test_models_that_accelerate_spreads_are_refused_before_the_first_step(flags, monkeypatch):
    def state(fsdp_plugin=None, zero_stage=None):
        zero = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
        return SimpleNamespace(fsdp_plugin=fsdp_plugin, deepspeed_plugin=zero)

    states = [state(), state(zero_stage=2), state(zero_stage=3), state(fsdp_plugin="any")]
    assert [answering_trainer.is_spread(each) for each in states] == [False, False, True, True]
    monkeypatch.setattr(answering_trainer, "is_spread", lambda state: True)
    with pytest.raises(InputError, match="leave it out with accelerate's FSDP and ZeRO-3"):
        lora.main(with_flags(flags, **ASKING, eval_fraction=0.5, eval_answers=2))


SHARDED = """
import json, os, sys
import torch
from datasets import load_from_disk
from transformers.distributed import DistributedConfig
from trl import SFTConfig
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.training.answering_trainer import AnsweringTrainer, Asking
from transformers_flashsloth.training.held_out import HeldOut

out, checkpoint, rows = sys.argv[1:]
ranks, rank = int(os.environ["WORLD_SIZE"]), os.environ["RANK"]
torch.set_num_threads(1)
options = {"distributed_config": DistributedConfig(fsdp_size=2)} if ranks == 2 else {}
rows = load_from_disk(rows)
trainer = AnsweringTrainer(
    FlashSlothForConditionalGeneration.from_pretrained(checkpoint, pooling_dropout=0.0, **options),
    SFTConfig(
        out, use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=2 // ranks, max_length=None,
        optim="sgd", learning_rate=0.01, lr_scheduler_type="constant", report_to="none", save_strategy="no",
    ),
    train_dataset=rows,
    eval_dataset=rows,
    processing_class=FlashSlothProcessor.from_pretrained(checkpoint),
    asking=Asking(HeldOut(rows), 4),
)
trainer.train()
expected = trainer.asking.rows.expected()
report = {"answers": trainer._answers(list(range(len(rows))), expected), "figures": trainer.evaluate()["eval_anls"]}
with open(f"{out}.{rank}.json", "w") as file:
    json.dump(report | {"split": trainer._is_split()}, file)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_that_share_a_model_answer_in_step(images, checkpoint, tmp_path):
    """A model that transformers shards with FSDP2 answers after a step as it does whole."""
    question = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    rows = [
        {"images": [str(images / "0.png")], "messages": [{"role": "user", "content": question}]},
        {"images": [str(images / "5.png")], "messages": [{"role": "user", "content": question}]},
        {"images": [], "messages": [{"role": "user", "content": question[1:]}]},
    ]
    for row in rows:
        row["messages"].append({"role": "assistant", "content": [{"type": "text", "text": "yeah"}]})
    data = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    data.save_to_disk(tmp_path / "rows")
    (tmp_path / "sharded.py").write_text(SHARDED)
    reports = {}
    for ranks in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [*launcher, "sharded.py", f"of{ranks}", checkpoint, "rows"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        reports[ranks] = [json.loads((tmp_path / f"of{ranks}.{rank}.json").read_text()) for rank in range(ranks)]
    (alone,), shared = reports[1], reports[2]
    assert not alone.pop("split") and all(report.pop("split") for report in shared)
    assert shared == [alone, alone] and len(set(alone["answers"])) > 1


RANK = """
import json, sys
from transformers_flashsloth.training import answering_trainer, lora
asked, answer_all = [], answering_trainer.answer_all
def counted(model, processor, questions, **options):
    asked.extend(question[-1]["content"][-1]["text"] for question in questions)
    return answer_all(model, processor, questions, **options)
answering_trainer.answer_all = counted
trainer = lora.main(sys.argv[2:])
found = [entry for entry in trainer.state.log_history if "eval_anls" in entry]
with open(f"{sys.argv[1]}.{trainer.accelerator.process_index}.json", "w") as file:
    json.dump({"figures": [(e["eval_exact_match"], e["eval_anls"]) for e in found], "asked": asked}, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [7, 1])
def test_two_ranks_share_the_questions_and_agree(flags, held_out, images, checkpoint, tmp_path, number):
    """Seven questions on two ranks, and one: each asked by one rank, the figures those of one process."""
    model = FlashSlothForConditionalGeneration.from_pretrained(checkpoint)
    said = answers_by_hand(model, checkpoint, held_out[:number], images)
    rows = write_rows(tmp_path / "held.json", with_answers(held_out[:number], [said[0], *"~" * (number - 1)]))
    arguments = with_flags(flags, **ASKING | {"eval_steps": 2}, eval_answers=rows, learning_rate=0)
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    reports = {}
    for ranks in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [*launcher, str(script), str(tmp_path / f"of{ranks}"), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("\nquestion") == 1
        reports[ranks] = [json.loads((tmp_path / f"of{ranks}.{rank}.json").read_text()) for rank in range(ranks)]
    (alone,), two = reports[1], reports[2]
    assert alone["figures"][0][0] == 1 / number
    assert all(report["figures"] == alone["figures"] for report in two)
    assert sorted(two[0]["asked"] + two[1]["asked"]) == sorted(alone["asked"]) and len(alone["asked"]) == number
    assert [len(report["asked"]) for report in two] == [(number + 1) // 2, number // 2]
