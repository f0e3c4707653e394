"""
Benchmarks of the paper with documents of our own: lmms-eval's task files, prompts and metrics, as they are, over tiny
pictures that are drawn here.
"""

from pathlib import Path

import lmms_eval
from datasets import Dataset, Image, List
from lmms_eval.llm_judge.base import ServerInterface
from lmms_eval.llm_judge.protocol import Request, Response
from PIL import Image as Pictures

TASKS = Path(lmms_eval.__file__).parent / "tasks"
PICTURE = Pictures.new("RGB", (24, 16), (200, 30, 30))
# What MathVista says about a document.
ABOUT = dict.fromkeys(("language", "source", "category", "task", "context", "grade"), "ours") | {
    "split": "testmini",
    "skills": ["arithmetic"],
}
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
    # Two questions about an image, of a category of either kind.
    "mme": (
        "mme/mme.yaml",
        "test",
        [
            {"question_id": f"{category}.png", "category": category, "answer": a}
            for category in ("existence", "code_reasoning")
            for a in ("Yes", "No")
        ],
    ),
    # The last is the third again, its options moved on.
    "mmbench_en_dev": (
        "mmbench/mmbench_en_dev.yaml",
        "dev",
        [
            {"index": index, "A": a, "B": b, "C": "mars", "D": "nan", "answer": answer}
            | {"hint": "nan", "category": "sky", "L2-category": "nature", "source": "ours", "split": "dev"}
            for index, a, b, answer in (
                (1, "sun", "moon", "A"),
                (2, "sun", "moon", "B"),
                (3, "sun", "moon", "A"),
                (1_000_003, "moon", "sun", "B"),
            )
        ],
    ),
    "mmvet": (
        "mmvet/mmvet.yaml",
        "test",
        [
            {"question_id": f"v1_{n}", "answer": a, "capability": c}
            for n, (a, c) in enumerate([("-1<AND>-5", "ocr,math"), ("-1<AND>-5", "ocr,math"), ("dog<OR>puppy", "rec")])
        ],
    ),
    "seedbench": (
        "seedbench/seedbench.yaml",
        "test",
        [
            {"choice_a": "sun", "choice_b": "moon", "choice_c": "mars", "choice_d": "star", "answer": a}
            | {"data_type": "image", "question_id": str(n)}
            for n, a in enumerate("ABA")
        ],
    ),
    "mathvista_testmini_format": (
        "mathvista/mathvista_testmini_format.yaml",
        "testmini",
        [
            {"pid": str(n), "question_type": kind, "answer_type": of, "answer": a, "precision": 1, "query": "Q"}
            | {"unit": "", "choices": ["sun", "moon"] if kind == "multi_choice" else [], "metadata": ABOUT}
            for n, (kind, of, a) in enumerate(
                [
                    ("multi_choice", "text", "moon"),
                    ("multi_choice", "text", "moon"),
                    ("free_form", "integer", "12"),
                    ("free_form", "float", "0.5"),
                    ("free_form", "integer", "12"),
                ]
            )
        ],
    ),
    "gqa": ("gqa/gqa.yaml", "testdev", [{"answer": a} for a in ("red", "green", "dog")]),
}
# The column of a document's picture, where it is not `image`.
COLUMNS = {"mmmu_val": "image_1", "mathvista_testmini_format": "decoded_image"}
# What a task file would do first: GQA's joins the documents with a second data set, of images.
CHANGES = {"gqa": "process_docs: null\n"}
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
    # Percent of the questions, and of the images with both right: 100 + 100, and 50 + 0.
    "mme": (["Yes.", "no", "Y", "perhaps"], {"mme_perception_score": 200, "mme_cognition_score": 50}),
    # A letter, an option's text, and a question that is right in one order of its options alone.
    "mmbench_en_dev": (["A.", "It is the moon", "A", "A"], {"gpt_eval_score": 200 / 3}),
    # By the rule below: all of two, one of two, none.
    "mmvet": (["x = -1 or x = -5", "x = -1", "a cat"], {"gpt_eval_score": 50}),
    "seedbench": (["A", "B. moon", "the sun"], {"seed_image": 2 / 3, "seed_all": 2 / 3}),
    # An option, a letter and a number that are found in a sentence, a number that is rounded, and a wrong one.
    "mathvista_testmini_format": (
        ["moon", "The answer is B.", "There are 12.", "0.49", "14"],
        {"llm_as_judge_eval": 80},
    ),
    "gqa": (["Red.", "blue", "Dog"], {"exact_match": 2 / 3}),
}


class JudgeByRule(ServerInterface):
    """
    Stands where a model of OpenAI judges MM-Vet's answers, and finds MathVista's in a sentence: the share of what has
    to be in an answer that is there, and the last word.
    """

    def is_available(self) -> bool:
        return True

    def evaluate(self, request: Request) -> Response:
        prompt = request.messages[-1]["content"]
        return Response(self._found(prompt) if prompt.endswith("Extracted answer: ") else self._worth(prompt), "rule")

    @staticmethod
    def _found(prompt: str) -> str:
        return prompt.removesuffix("Extracted answer: ").split()[-1].strip(".")

    @staticmethod
    def _worth(prompt: str) -> str:
        _, expected, said, _ = prompt.splitlines()[-1].split("|")
        ways = [[part.strip() for part in way.split("<AND>")] for way in expected.split("<OR>")]
        return f"{max(sum(part in said for part in way) / len(way) for way in ways)} "


def write_task(directory: Path, name: str) -> str:
    """Writes a task file over documents of its own; returns the task's name. Question n of a task is `Question n?`."""
    source, split, documents = KINDS[name]
    column = COLUMNS.get(name, "image")
    picture, feature = ([PICTURE], List(Image())) if name == "seedbench" else (PICTURE, Image())
    mark = "<image 1> " if name == "mmmu_val" else ""
    rows = [{"question": f"{mark}Question {n}?", column: picture} | row for n, row in enumerate(documents)]
    data = directory / f"{name}.parquet"
    Dataset.from_list(rows).cast_column(column, feature).to_parquet(data)
    return write_yaml(directory, f"local_{name}", TASKS / source, data, split, CHANGES.get(name, ""))


def write_yaml(directory: Path, task: str, source: Path, data: Path, split: str, changes: str = "") -> str:
    """A task that is another's, over this parquet file, with further lines."""
    (directory / f"{task}.yaml").write_text(
        f"include: {source}\ntask: {task}\ndataset_path: parquet\ndataset_name: null\ntest_split: {split}\n"
        f"dataset_kwargs:\n  data_files:\n    {split}: {data}\n{changes}"
    )
    return task
