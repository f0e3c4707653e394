"""The model card of an uploaded checkpoint: this project's MODEL_CARD.md, with metadata and how to use it."""

import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..model.configuration_flashsloth import FlashSlothConfig
from .figures import read_figures, with_figures

# In an installed package it lies here, in a checkout at the top.
_PACKAGED, _TOP = Path(__file__).with_name("MODEL_CARD.md"), Path(__file__).parents[3] / "MODEL_CARD.md"
MODEL_CARD = _PACKAGED if _PACKAGED.exists() else _TOP
BASE_MODELS = ["microsoft/phi-2", "google/siglip-so400m-patch14-384"]
# What the authors' README reports: base, high definition. MME counts points, the others per cent.
PUBLISHED_SCORES = {
    "POPE": (86.3, 87.2),
    "MME": (1702, 1745),
    "MMBench": (73.0, 75.7),
    "MM-Vet": (41.9, 49.0),
    "SEED-Image": (68.0, 71.2),
    "MMMU": (39.7, 37.8),
    "MathVista": (42.5, 40.6),
    "GQA": (61.1, 62.5),
    "ScienceQA": (88.6, 91.1),
    "TextVQA": (64.6, 71.0),
    "AI2D": (72.5, 75.3),
    "ChartQA": (51.0, 69.8),
    "DocVQA": (48.6, 74.8),
    "RealWorldQA": (54.8, 59.9),
}
USAGE = """
# {name}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{repo_id}", trust_remote_code=True)
content = [{{"type": "image", "url": "picture.jpg"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
```

Where the package `transformers-flashsloth` is installed and imported, `trust_remote_code` is not needed.
"""


def make_card(
    config: FlashSlothConfig | str | Path,
    repo_id: str,
    text: Path = MODEL_CARD,
    scores: str | None = None,
    results: Path | None = None,
) -> ModelCard:
    """
    Makes the model card of a repository.

    Args:
        config ([`FlashSlothConfig`] or `Path`): of the checkpoint, or the checkpoint's directory; where its parts have
            the released sizes, the card names the base models.
        repo_id (`str`): such as `"me/flashsloth-3.2b"`.
        text (`Path`, *optional*): Markdown file. What its metadata says goes before what is filled in here.
        scores (`str`, *optional*): `"base"` or `"hd"` adds what the authors published, for their weights unchanged.
        results (`Path`, *optional*): `results.json` of `flashsloth eval`, whose figures go into the `model-index`.

    Returns:
        [`~huggingface_hub.ModelCard`], whose `save` writes it.

    Raises:
        OSError: if a file is missing.
        ValueError: if `results` is no such file, or has the first documents of tasks only.

    Example:

    ```python
    >>> from transformers_flashsloth.publishing.card import make_card

    >>> card = make_card("flashsloth-3.2b", "me/flashsloth-3.2b", scores="base")
    >>> card.save("flashsloth-3.2b/README.md")
    ```
    """
    figures = [] if results is None else read_figures(results)
    if not isinstance(config, FlashSlothConfig):
        config = FlashSlothConfig.from_pretrained(config)
    markdown = text.read_text(encoding="utf-8")
    given = ModelCard(_without_relative_links(markdown) if text == MODEL_CARD else markdown)
    name = repo_id.split("/")[-1]
    metadata = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "language": "en",
        "metrics": ["accuracy"],
        "model_name": name,
    }
    released = FlashSlothConfig()
    if (config.text_config.hidden_size, config.vision_config.hidden_size) == (
        released.text_config.hidden_size,
        released.vision_config.hidden_size,
    ):
        metadata["base_model"] = BASE_MODELS
    if scores is not None:
        metadata["eval_results"] = _published(("base", "hd").index(scores))
    metadata |= given.data.to_dict()
    metadata["tags"] = sorted({"flashsloth", "custom_code", *(given.data.tags or [])})
    usage = USAGE.format(name=name, repo_id=repo_id)
    card = ModelCard(f"---\n{ModelCardData(**metadata)}\n---\n{usage}{given.text}")
    return with_figures(card, figures, name) if figures else card


def _without_relative_links(markdown: str) -> str:
    """This project's card without what leads to its own files, which no repository of a checkpoint has."""
    markdown = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", markdown)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", markdown)


def _published(column: int) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=benchmark.lower(),
            dataset_name=benchmark,
            metric_type="score" if benchmark == "MME" else "accuracy",
            metric_value=values[column],
            source_name="FlashSloth's authors",
            source_url="https://github.com/codefanw/FlashSloth",
        )
        for benchmark, values in PUBLISHED_SCORES.items()
    ]
