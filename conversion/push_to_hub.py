"""
Uploads a checkpoint in this package's format to the Hub: weights, processor, code and a model card, in one commit.

    python conversion/push_to_hub.py flashsloth-3.2b me/flashsloth-3.2b

Needs a token with write access (`hf auth login`, or HF_TOKEN). A broken upload is resumed by running it again.
"""

import argparse
from pathlib import Path

from command_line import run
from huggingface_hub import HfApi, ModelCard, ModelCardData

from transformers_flashsloth import FlashSlothConfig
from transformers_flashsloth.authors_checkpoint import read_authors_config

MODEL_CARD = Path(__file__).parent.parent / "MODEL_CARD.md"
BASE_MODELS = ["microsoft/phi-2", "google/siglip-so400m-patch14-384"]


def push_to_hub(directory: Path, repo_id: str, *, private: bool = False, model_card: Path = MODEL_CARD) -> str:
    """
    Uploads a directory, creating the repository where there is none.

    Args:
        directory (`Path`): checkpoint in this package's format. A README.md in it is taken as its model card.
        repo_id (`str`): such as `"me/flashsloth-3.2b"`.
        private (`bool`, defaults to `False`): whether a new repository is private.
        model_card (`Path`, *optional*): text of the card where the directory has no README.md.

    Returns:
        `str`: address of the repository.

    Raises:
        OSError: if the directory or the Hub refuses.
        ValueError: if the directory holds no checkpoint of ours.
    """
    if read_authors_config(directory) is not None:
        raise ValueError(f"{directory} is in the authors' format: convert it first.")
    FlashSlothConfig.from_pretrained(directory)
    if not list(directory.glob("*.safetensors")):
        raise FileNotFoundError(f"There are no weights in {directory}.")
    readme = directory / "README.md"
    if not readme.exists():
        make_card(model_card, repo_id).save(readme)
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(folder_path=directory, repo_id=url.repo_id, commit_message="Upload FlashSloth")
    return str(url)


def make_card(text: Path, repo_id: str) -> ModelCard:
    """
    Makes the model card of a repository.

    Args:
        text (`Path`): Markdown file; what its metadata says stays, what it does not say is filled in.
        repo_id (`str`): takes the place of `REPO_ID` in the text.
    """
    card = ModelCard(text.read_text(encoding="utf-8").replace("REPO_ID", repo_id))
    filled = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=BASE_MODELS,
        tags=["flashsloth", "custom_code"],
        language="en",
    )
    card.data = ModelCardData(**filled.to_dict() | card.data.to_dict())
    return card


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="checkpoint in this package's format")
    parser.add_argument("repo_id", metavar="REPO", help="such as me/name")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--model-card", type=Path, default=MODEL_CARD, help="Markdown file (default: this project's)")
    options = vars(parser.parse_args())
    return f"Uploaded it to {push_to_hub(options.pop('directory'), options.pop('repo_id'), **options)}."


if __name__ == "__main__":
    run(main)
