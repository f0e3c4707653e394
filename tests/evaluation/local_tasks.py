"""
Benchmarks of the paper with documents of our own: lmms-eval's task files, prompts and metrics, as they are, over tiny
pictures that are drawn here.
"""

from pathlib import Path

import lmms_eval
from datasets import Dataset, Image
from PIL import Image as Pictures

TASKS = Path(lmms_eval.__file__).parent / "tasks"
PICTURE = Pictures.new("RGB", (24, 16), (200, 30, 30))
# Task file, split, and what each document has beside its picture.
KINDS = {
    "ai2d": ("ai2d/ai2d.yaml", "test", [{"options": ["sun", "moon", "mars"], "answer": str(n)} for n in (0, 1, 2)]),
    "pope": (
        "pope/pope.yaml",
        "test",
        [{"answer": a, "question_id": str(n)} for n, a in enumerate(("yes", "no", "yes"))],
    ),
    "textvqa_val": (
        "textvqa/textvqa_val.yaml",
        "validation",
        [{"question_id": n, "answers": ["stop"] * n + ["go"] * (10 - n)} for n in (10, 3, 0)],
    ),
    "docvqa_val": (
        "docvqa/docvqa_val.yaml",
        "validation",
        [
            {"questionId": str(n), "answers": a}
            for n, a in enumerate((["invoice", "the invoice"], ["invoise"], ["other"]))
        ],
    ),
    "chartqa": (
        "chartqa/chartqa.yaml",
        "test",
        [
            {"answer": a, "type": t}
            for a, t in (("100", "human_test"), ("100", "augmented_test"), ("Red", "human_test"))
        ],
    ),
    "mmmu_val": (
        "mmmu/mmmu_val.yaml",
        "validation",
        [
            {"id": f"validation_Math_{n}", "question_type": kind, "answer": a, "options": o}
            for n, (kind, a, o) in enumerate(
                [("multiple-choice", "B", "['sun', 'moon']"), ("open", "12", "[]"), ("open", "0.5", "[]")]
            )
        ],
    ),
    "scienceqa_img": (
        "scienceqa/scienceqa_img.yaml",
        "test",
        [{"choices": ["sun", "moon"], "answer": n % 2, "hint": "Look up."} for n in range(3)],
    ),
    "realworldqa": ("realworldqa/realworldqa.yaml", "test", [{"answer": a} for a in ("A", "3", "B")]),
}
# What a model says to each document, and what that is worth: by hand, from each benchmark's rules.
SAID = {
    "ai2d": (["A", "B.", "A"], {"exact_match": 2 / 3}),
    "pope": (["Yes", "yes", "No"], {"pope_accuracy": 1 / 3, "pope_precision": 1 / 2, "pope_recall": 1 / 2}),
    # Ten references: an answer that n give is worth the mean of min(1, others / 3).
    "textvqa_val": (["Stop.", "stop", "stop"], {"exact_match": (1 + (3 * 2 / 3 + 7 * 1) / 10 + 0) / 3}),
    # One letter of seven is wrong: 6/7. Nothing in common: 0.
    "docvqa_val": (["The Invoice", "invoice", "zzzz"], {"anls": (1 + 6 / 7 + 0) / 3}),
    "chartqa": (["104", "106", "red"], {"relaxed_overall": 2 / 3, "relaxed_human_split": 1}),
    "mmmu_val": (["The answer is (B)", "so the answer is 12.", "0.7"], {"mmmu_acc": 2 / 3}),
    "scienceqa_img": (["A", "A", "A. sun"], {"exact_match": 2 / 3}),
    "realworldqa": (["The answer is A.", "3.", "C"], {"exact_match": 2 / 3}),
}


def write_task(directory: Path, name: str) -> str:
    """Writes a task file over documents of its own; returns the task's name. Question n of a task is `Question n?`."""
    source, split, documents = KINDS[name]
    picture = "image_1" if name == "mmmu_val" else "image"
    mark = "<image 1> " if name == "mmmu_val" else ""
    rows = [{"question": f"{mark}Question {n}?", picture: PICTURE} | row for n, row in enumerate(documents)]
    data = directory / f"{name}.parquet"
    Dataset.from_list(rows).cast_column(picture, Image()).to_parquet(data)
    return write_yaml(directory, f"local_{name}", TASKS / source, data, split)


def write_yaml(directory: Path, task: str, source: Path, data: Path, split: str) -> str:
    """A task that is another's, over this parquet file."""
    (directory / f"{task}.yaml").write_text(
        f"include: {source}\ntask: {task}\ndataset_path: parquet\ndataset_name: null\ntest_split: {split}\n"
        f"dataset_kwargs:\n  data_files:\n    {split}: {data}\n"
    )
    return task
