"""Documents of easy-VQA's official test; lmms-eval loads this file by its path, from `easy_vqa.yaml`."""

from pathlib import Path

try:
    import easy_vqa
except ImportError as error:
    raise ImportError("the task easy_vqa needs its data: pip install easy-vqa==1.0") from error
from datasets import Dataset, Image

# lmms-eval wants a file to load; the package's own functions read it.
FILES = {"test": str(Path(easy_vqa.__file__).parent / "data" / "test" / "questions.json")}


def read_documents(loaded: Dataset) -> Dataset:
    """Every official question, in its order: `question`, `answer` and `image`."""
    questions, answers, image_ids = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    images = [paths[image_id] for image_id in image_ids]
    rows = {"question": questions, "answer": answers, "image": images}
    return Dataset.from_dict(rows).cast_column("image", Image())


def image_of(document: dict) -> list:
    """The picture that a question is about."""
    return [document["image"].convert("RGB")]


def score(document: dict, results: list[str]) -> dict[str, float]:
    """1 for the true answer, to the letter."""
    return {"exact_match": float(results[0] == document["answer"])}
