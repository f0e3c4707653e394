"""The recipes, run as a user runs them but for a few steps: what they train, on what, and what they refuse."""

import json
import shutil

import pytest
import torch

datasets = pytest.importorskip("datasets")
pytest.importorskip("trl")

from jinja2 import TemplateError  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402
from trl import SFTTrainer  # noqa: E402

from tests.chat_tokenizers import build_chat_tokenizer  # noqa: E402
from tests.training.training_files import llava_rows, write_images, write_rows  # noqa: E402
from transformers_flashsloth import (  # noqa: E402
    FlashSlothForConditionalGeneration,
    FlashSlothProcessor,
)
from transformers_flashsloth.checkpoints.opening import InputError  # noqa: E402
from transformers_flashsloth.training import lora as finetune_lora  # noqa: E402
from transformers_flashsloth.training import splits as training_splits  # noqa: E402
from transformers_flashsloth.training import stage1 as train_stage1  # noqa: E402
from transformers_flashsloth.training import stage2 as train_stage2  # noqa: E402
from transformers_flashsloth.training.arguments import run_command  # noqa: E402
from transformers_flashsloth.training.row_files import TrainingDataError  # noqa: E402

PROJECTOR = "model.multi_modal_projector."
SAP = PROJECTOR + "pooling."
TOWER = "model.vision_tower."
QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
BATCH = ["--global_batch_size", "4"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict:
    """A handful of images, and rows about them as LLaVA's JSON and as a table."""
    directory = tmp_path_factory.mktemp("rows")
    rows = llava_rows(12)
    table = [{"image": row["image"], "question": "What is it?", "answer": f"number {row['id']}"} for row in rows]
    return {
        "images": write_images(directory / "images", 12),
        "llava": write_rows(directory / "rows.json", rows),
        "csv": write_rows(directory / "rows.csv", table),
    }


@pytest.fixture
def llava(files, tmp_path, tiny_checkpoint, monkeypatch) -> list[str]:
    """The flags of a quick run on LLaVA's JSON."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = ["--llava_json", str(files["llava"]), "--image_folder", str(files["images"])]
    source += ["--model_name_or_path", tiny_checkpoint, "--output_dir", str(tmp_path / "output")]
    return replaced(source, **QUICK)


def replaced(arguments: list[str], **flags) -> list[str]:
    """The arguments, with flags that win over them."""
    return [*arguments, *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]


def load(directory) -> FlashSlothForConditionalGeneration:
    return FlashSlothForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    after = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def labelled(trainer) -> tuple[str, str]:
    """The first row of a batch as text: all of it, and what is trained on."""
    batch = next(iter(trainer.get_train_dataloader()))
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    tokenizer = trainer.processing_class.tokenizer
    return tokenizer.decode(ids[batch["attention_mask"][0] == 1]), tokenizer.decode(labels[labels != -100])


def test_stage_1_trains_projector_and_sap_on_captions(llava, tiny_checkpoint, tmp_path):
    trainer = train_stage1.main(llava + BATCH)
    before, after = load(tiny_checkpoint), load(tmp_path / "output")
    moved = changed(before, after)
    assert moved and all(name.startswith(PROJECTOR) for name in moved)
    # The last bias of SAP shifts the scores of a window alike, which a softmax does not see.
    still = {name for name in before.state_dict() if name.startswith(PROJECTOR)} - moved
    assert len(still) <= 1 and any(name.startswith(SAP) for name in moved)

    text, answer = labelled(trainer)
    caption = answer.removesuffix("\n")
    assert caption.startswith("It is ") and answer == caption + "\n"
    assert text == "<image>" + caption + "<learnable>" * 9 + "\n"
    assert trainer.args.gradient_accumulation_steps == 2
    # The saved processor writes conversations, not stage 1's rows.
    assert "ASSISTANT" in FlashSlothProcessor.from_pretrained(tmp_path / "output").chat_template


def test_stage_2_begins_with_stage_1s_sap_and_trains_all_but_the_tower(llava, tmp_path, monkeypatch):
    train_stage1.main(llava + BATCH)
    stage1 = load(tmp_path / "output")
    arguments = replaced(llava, model_name_or_path=tmp_path / "output", output_dir=tmp_path / "stage2") + BATCH
    with monkeypatch.context() as patch:
        patch.setattr(train_stage2, "run", lambda trainer, *_: trainer)
        assert not changed(stage1, train_stage2.main(arguments).model)

    trainer = train_stage2.main(arguments)
    stage2 = load(tmp_path / "stage2")
    moved = changed(stage1, stage2)
    assert not any(name.startswith(TOWER) for name in moved)
    learning = [name for name in stage1.state_dict() if not name.startswith(TOWER)]
    # Biases of keys and of SAP's score move nothing: a softmax does not see them.
    still = [name for name in learning if name not in moved]
    assert all(name.endswith((".bias", "embed_tokens.weight")) for name in still), still
    assert len(moved) > 0.8 * len(learning)
    text, answer = labelled(trainer)
    assert text.endswith("<learnable>" * 9 + " ASSISTANT:" + answer) and answer.endswith("</s>")
    assert answer.startswith(" It is ")


@pytest.mark.slow
def test_the_tower_learns_if_asked_to(llava, tiny_checkpoint, tmp_path):
    trainer = train_stage2.main([*llava, *BATCH, "--train_vision_tower", "--image_hd", "True", "--max_steps", "1"])
    moved = changed(load(tiny_checkpoint), load(tmp_path / "output"))
    assert any(name.startswith(TOWER) for name in moved)
    assert FlashSlothProcessor.from_pretrained(tmp_path / "output").image_processor.image_hd
    assert labelled(trainer)[0].count("<image>") == 5


@pytest.mark.parametrize("compressor", [False, True])
def test_lora_trains_adapters_of_the_decoder(llava, files, tiny_checkpoint, tmp_path, compressor):
    table = ["--csv", str(files["csv"]), *llava[2:]]
    trainer = finetune_lora.main([*table, *(["--train_compressor"] if compressor else [])])
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if ".lora_" in name}
    assert all(".language_model.layers." in name for name in adapters)
    assert len(adapters) == 2 * 2 * 6  # A and B, of six linears in two layers
    parts = {name.split(".modules_to_save")[0].rpartition(".")[2] for name in trained - adapters}
    assert parts == ({"multi_modal_projector", "query_tokens", "embq"} if compressor else set())

    _, answer = labelled(trainer)
    assert answer.startswith(" number r") and answer.endswith("</s>")
    batch = next(iter(trainer.get_train_dataloader()))
    again = PeftModel.from_pretrained(load(tiny_checkpoint), tmp_path / "output").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, trainer.model.eval()(**batch).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(again(**batch).logits, load(tiny_checkpoint).eval()(**batch).logits, atol=1e-3)


def test_lora_on_the_authors_format(llava, authors_directory, tmp_path):
    """As it lies on the Hub; the adapter finds its model there again."""
    flags = replaced(llava, model_name_or_path=authors_directory, dtype="float32", bf16=False)
    trained = finetune_lora.main(flags).model.eval()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "output")
    assert type(model) is FlashSlothForConditionalGeneration
    ids = torch.arange(100)[None]
    torch.testing.assert_close(model(ids).logits, trained(ids).logits, atol=1e-4, rtol=1e-4)


def test_datasets_in_trls_formats_and_evaluation(llava, files, tmp_path, monkeypatch):
    images = [[str(files["images"] / f"{n}.png")] for n in range(8)]
    features = {"images": datasets.List(datasets.Image())}
    question, answer = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "Blue."}
    rows = {"prompt": [[question]] * 8, "completion": [[answer]] * 8}
    split = datasets.Dataset.from_dict({"images": images}, features=datasets.Features(features))
    for name, values in rows.items():
        split = split.add_column(name, values)
    datasets.DatasetDict({"train": split, "test": split.select(range(4))}).save_to_disk(tmp_path / "saved")
    source = ["--dataset_name", str(tmp_path / "saved"), *llava[4:]]
    trainer = finetune_lora.main([*source, "--eval_strategy", "steps", "--eval_steps", "2"])
    assert labelled(trainer)[1] == " Blue.</s>"
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    lengths = trainer.train_dataset["length"][:]
    assert lengths == [trainer.data_collator([row])["input_ids"].shape[1] for row in trainer.train_dataset]

    messages = split.remove_columns(["prompt", "completion"]).add_column("messages", [[question, answer]] * 8)
    messages.save_to_disk(tmp_path / "messages")
    source[1] = str(tmp_path / "messages")
    assert labelled(finetune_lora.main(source))[1] == " Blue.</s>"
    answers = [[question, answer | {"content": " " if n == 5 else "Blue."}] for n in range(8)]
    split.remove_columns(["prompt", "completion"]).add_column("messages", answers).save_to_disk(tmp_path / "broken")
    source[1] = str(tmp_path / "broken")
    with pytest.raises(TrainingDataError, match="broken, split train, row 5: an answer is empty"):
        finetune_lora.main(source)
    assert len(finetune_lora.main([*source, "--on_error", "skip"]).train_dataset) == 7
    (files["images"] / "cut.png").write_bytes((files["images"] / "3.png").read_bytes()[:50])
    images[6] = [str(files["images"] / "cut.png")]
    cut = datasets.Dataset.from_dict({"images": images, "messages": [[question, answer]] * 8})
    cut.cast_column("images", features["images"]).save_to_disk(tmp_path / "cut")
    source[1] = str(tmp_path / "cut")
    with pytest.raises(TrainingDataError, match="cut, split train, row 6: its image cannot be decoded"):
        finetune_lora.main(source)


@pytest.mark.slow
def test_rows_of_files_are_evaluated_and_streamed(llava, tmp_path):
    trainer = finetune_lora.main([*llava, "--eval_fraction", "0.25", "--eval_strategy", "epoch", "--max_steps", "5"])
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (9, 3)
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    trainer = finetune_lora.main([*llava, "--dataset_streaming", "--dataloader_num_workers", "2"])
    assert len(losses(trainer)) == 2


def test_batches_have_one_modality_and_rows_of_one_length(llava, files, tmp_path):
    rows = llava_rows(12)
    for number in range(1, 12, 2):
        rows[number].pop("image")
        rows[number]["conversations"][0]["value"] = "A longer question without any image" + ", indeed" * number
    path = write_rows(tmp_path / "mixed.json", rows)
    trainer = finetune_lora.main(replaced(llava, llava_json=path, gradient_accumulation_steps=6, max_steps=1))
    batches = list(trainer.get_train_dataloader())
    assert sorted(len(batch.get("pixel_values", ())) for batch in batches) == [0, 0, 0, 2, 2, 2]
    padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padding < 0.1 * sum(batch["attention_mask"].numel() for batch in batches)


def test_a_resumed_run_equals_an_uninterrupted_one(llava, tmp_path, monkeypatch):
    run = replaced(llava, save_strategy="steps", save_steps=2, max_steps=4)
    whole = finetune_lora.main(run)
    checkpoint = tmp_path / "output" / "checkpoint-2"
    record = json.loads((checkpoint / "recipe.json").read_text())
    assert record["recipe"] == {"name": "lora"} and record["data"] == {"rows or shards": 12}
    resume = replaced(run, resume_from_checkpoint=checkpoint, output_dir=tmp_path / "resumed")
    # Another place to write to and other things to log are no other run.
    resumed = finetune_lora.main(replaced(resume, logging_first_step=False))
    assert losses(resumed) == losses(whole) and len(losses(whole)) == 4
    ours, theirs = (dict(trainer.model.named_parameters()) for trainer in (whole, resumed))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0)

    with pytest.raises(InputError, match=r"learning_rate was 0.01 and is 0.02.*another --output_dir"):
        finetune_lora.main(replaced(resume, learning_rate=0.02))
    with pytest.raises(InputError, match="of a run with other flags: lora_r was 16 and is 4; resume"):
        finetune_lora.main(replaced(resume, lora_r=4))
    shutil.copytree(checkpoint, tmp_path / "last" / "checkpoint-2")
    (tmp_path / "last" / "checkpoint-10").mkdir()  # as a run leaves it that ends while it saves
    asked = []
    monkeypatch.setattr(SFTTrainer, "train", lambda self, resume_from_checkpoint: asked.append(resume_from_checkpoint))
    finetune_lora.main(replaced(run, resume_from_checkpoint="true", output_dir=tmp_path / "last"))
    assert asked == [str(tmp_path / "last" / "checkpoint-2")]
    with pytest.raises(InputError, match="nothing of this recipe to resume from"):
        finetune_lora.main(replaced(run, resume_from_checkpoint="true", output_dir=tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"nothing left to train: .*checkpoint-4' is the last step"):
        finetune_lora.main(replaced(run, resume_from_checkpoint="true"))
    (checkpoint / "recipe.json").write_text("{")
    with pytest.raises(InputError, match=r"recipe.json' is damaged .* resume from an earlier checkpoint"):
        finetune_lora.main(resume)
    with pytest.raises(InputError, match="checkpoint-4' is an adapter: train its model, or merge"):
        finetune_lora.main(replaced(run, model_name_or_path=tmp_path / "output" / "checkpoint-4"))


def test_the_schedule_of_the_release(llava, tmp_path, monkeypatch):
    """The defaults, without the flags that make a run quick."""
    bare = llava[: llava.index("--max_steps")]
    stages = {train_stage1: (1e-3, 256), train_stage2: (2e-5, 128)}
    for recipe, (learning_rate, rows) in stages.items():
        monkeypatch.setattr(recipe, "run", lambda trainer, *_: trainer)
        training = recipe.main(bare).args
        assert training.learning_rate == learning_rate
        assert training.gradient_accumulation_steps * training.per_device_train_batch_size == rows
        assert (training.num_train_epochs, training.weight_decay, training.warmup_steps) == (1, 0, 0.03)
        assert training.lr_scheduler_type == "cosine" and training.optim == "adamw_torch"
        assert training.train_sampling_strategy == "group_by_length"
        assert recipe.main([*bare, "--gradient_accumulation_steps", "5"]).args.gradient_accumulation_steps == 5
        with pytest.raises(InputError, match="--use_peft is for `flashsloth train lora`"):
            recipe.main([*bare, "--use_peft"])
        with pytest.raises(InputError, match="--global_batch_size 9 is no multiple of the 2 rows of 1 processes"):
            recipe.main([*bare, "--global_batch_size", "9", "--per_device_train_batch_size", "2"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_folder": "nowhere"}, "There is no image folder .*nowhere"),
        ({"llava_json": "gone.json"}, r"There is no file 'gone.json'"),
        ({"max_length": 40}, "12 of the first 12 rows .* more than the 40 allowed"),
        ({"lora_target_modules": "q_prj"}, "no linear of the model is called q_prj"),
        ({"model_name_or_path": "no/where"}, "the model 'no/where' cannot be loaded"),
        ({"eval_strategy": "epoch"}, "give --eval_fraction"),
        ({"eval_fraction": 0.5}, "--eval_fraction needs --eval_strategy"),
        ({"eval_fraction": 2}, "at least 0 and less than 1"),
        ({"eval_fraction": 0.99, "eval_strategy": "epoch"}, "rows enough to part"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size must be at least 1"),
        ({"lora_r": 0}, "`r` should be a positive integer"),
        ({"report_to": "nobody"}, "nobody is not supported, only"),
        ({"learning_rate": -1}, "Invalid learning rate: -1"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "eval_fraction": 0.5},
            "save and eval strategy .*Save strategy",
        ),
        ({"dataset_name": "some/data"}, "give one of .* not dataset_name and llava_json"),
        ({"pooling_windows": "7"}, r"windows of 7 x 7 patches do not tile a view; choose among"),
        ({"pooling_windows": "3,x"}, "--pooling_windows are sides in patches, such as 3,9, not 3,x"),
        ({"dataset_streaming": True, "max_steps": -1}, "say where to stop with --max_steps"),
    ],
)
def test_what_is_given_wrong_ends_in_a_sentence(llava, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((InputError, TrainingDataError), match=message):
        finetune_lora.main(replaced(llava, **flags))
    assert run_command(lambda: finetune_lora.main(replaced(llava, **flags))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")


def test_a_config_that_is_no_yaml_ends_in_a_sentence(tmp_path):
    (tmp_path / "recipe.yaml").write_text("csv: [1,\n b")
    with pytest.raises(InputError, match=r"while parsing .*recipe.yaml") as error:
        finetune_lora.main(["--config", str(tmp_path / "recipe.yaml")])
    assert "\n" not in str(error.value)


def test_a_window_is_drawn_for_each_batch(llava, tiny_checkpoint, tmp_path):
    processor = FlashSlothProcessor.from_pretrained(tiny_checkpoint)
    sides = {side: tokens for tokens, (side, width) in processor.windows.items() if side == width}
    finest, coarsest = min(sides), max(sides)
    assert sides[finest] > sides[coarsest]
    flags = [*BATCH, "--pooling_windows", f"{finest},{coarsest}"]
    trainer = train_stage2.main([*llava, *flags, "--max_steps", "3"])

    image = processor.image_token_id
    collate, rows = trainer.data_collator, [trainer.train_dataset[[index]] for index in range(12)]
    rows = [{name: values[0] for name, values in row.items()} for row in rows]
    counts = {int((collate([row])["input_ids"] == image).sum()) // max(len(row["images"]), 1) for row in rows}
    assert {sides[finest], sides[coarsest]} <= counts <= {0, sides[finest], sides[coarsest]}
    again = [collate.window_of([row]) for row in rows]
    assert again == [collate.window_of([row]) for row in rows] and len(set(again)) == 2
    assert trainer.processing_class.pooling_window == processor.pooling_window
    assert load(tmp_path / "output").config.pooling_windows == [[finest] * 2, [coarsest] * 2]

    # Rows are measured at their longest.
    context = str(max(len(ids) for row in rows for ids in collate([row])["input_ids"]) - sides[finest] + 2)
    with pytest.raises(TrainingDataError, match=r"it takes \d+ tokens, more than the"):
        train_stage2.main([*llava, *flags, "--max_length", context, "--output_dir", str(tmp_path / "short")])


def test_what_fails_once_training_runs_keeps_its_traceback(llava, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of order")

    monkeypatch.setattr(SFTTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        finetune_lora.main(llava)


def test_wrong_datasets_end_in_a_sentence(llava, tmp_path, monkeypatch):
    source = ["--dataset_name", str(tmp_path / "saved"), *llava[4:]]
    with pytest.raises(InputError, match=r"the dataset .* cannot be loaded"):
        finetune_lora.main(source)
    datasets.Dataset.from_dict({"q": ["a"], "a": ["b"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="has the columns 'q', 'a', but `messages`, or `prompt` and `completion`"):
        finetune_lora.main(source)
    empty = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"messages": [], "images": []})})
    monkeypatch.setattr(training_splits, "load_dataset", lambda *_, **__: empty)
    source[1] = "some/data"
    with pytest.raises(InputError, match=r"the split 'train' of .* has no rows"):
        finetune_lora.main(source)
    with pytest.raises(InputError, match="no split 'other', only 'train'"):
        finetune_lora.main([*source, "--dataset_train_split", "other"])


def test_rows_that_stage_1_cannot_use_are_named(llava, files, tmp_path):
    rows = llava_rows(12)
    rows[4]["conversations"] *= 2
    rows[4]["image"] = ["0.png", "1.png"]
    path = write_rows(tmp_path / "rows.json", rows)
    with pytest.raises(TrainingDataError, match=r"row 4 \(id 'r4'\): Stage 1 needs rows of one image"):
        train_stage1.main(replaced(llava, llava_json=path) + BATCH)
    trainer = train_stage1.main([*replaced(llava, llava_json=path, on_error="skip"), *BATCH])
    assert len(trainer.train_dataset) == 11


def test_captions_with_special_tokens_of_any_tokenizer_are_refused():
    messages = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat<|im_start|> on a mat."}]},
    ]
    tokenizer = build_chat_tokenizer("chatml")
    template = train_stage1.caption_template(tokenizer)
    with pytest.raises(TemplateError, match=r"text of the special token <\|im_start\|>"):
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    messages[1]["content"][0]["text"] = "A cat</s> on a mat."  # no special token of this one
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert text == "<image>A cat</s> on a mat.<learnable>\n"
