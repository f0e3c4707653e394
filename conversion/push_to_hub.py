"""
Uploads a checkpoint in this package's format to the Hub: weights, processor, code and a model card, in one commit.

    python conversion/push_to_hub.py flashsloth-3.2b me/flashsloth-3.2b

Needs a token with write access (`hf auth login`, or HF_TOKEN). After a broken upload run it again: files that arrived
are not sent twice.
"""

import argparse
from pathlib import Path

from command_line import run
from huggingface_hub import HfApi
from model_card import MODEL_CARD, make_card

from transformers_flashsloth import FlashSlothConfig
from transformers_flashsloth.model.authors_checkpoint import read_authors_config
from transformers_flashsloth.model.checkpoint_files import CheckpointFiles


def push_to_hub(
    directory: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    model_card: Path = MODEL_CARD,
    scores: str | None = None,
) -> str:
    """
    Uploads a directory, creating the repository where there is none.

    Args:
        directory (`Path`): checkpoint in this package's format. A README.md in it is taken as its model card.
        repo_id (`str`): such as `"me/flashsloth-3.2b"`.
        private (`bool`, *optional*): whether a new repository is private; by default as the account says.
        model_card (`Path`, *optional*): text of the card where the directory has no README.md.
        scores (`str`, *optional*): `"base"` or `"hd"` adds what the authors published, for their weights unchanged.

    Returns:
        `str`: address of the repository.

    Raises:
        OSError: if files are missing or the Hub refuses.
        ValueError: if the directory holds no sound checkpoint in this package's format.
    """
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is no directory.")
    if read_authors_config(directory) is not None:
        raise ValueError(f"{directory} is in the authors' format: convert it first.")
    config = FlashSlothConfig.from_pretrained(directory)
    CheckpointFiles(directory)
    if "AutoModelForImageTextToText" not in (getattr(config, "auto_map", None) or {}):
        raise ValueError(f"{directory} does not carry the code: save the model again with `save_pretrained`.")
    if not (directory / "README.md").exists():
        make_card(config, repo_id, model_card, scores).save(directory / "README.md")
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=url.repo_id, commit_message="Upload FlashSloth")
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the HTTP library, or around one of its
        raise ConnectionError(f"The upload to {repo_id} broke off ({error}): run it again to go on with it.") from error
    return str(url)


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="DIRECTORY", type=Path, help="checkpoint in this package's format")
    parser.add_argument("repo_id", metavar="REPO", help="such as me/name")
    add_options(parser)
    parser.add_argument("--model-card", type=Path, default=MODEL_CARD, help="Markdown file (default: this project's)")
    options = vars(parser.parse_args())
    return f"Uploaded it to {push_to_hub(options.pop('directory'), options.pop('repo_id'), **options)}."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `convert_checkpoint.py --push-to-hub` takes as well."""
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument(
        "--scores", choices=("base", "hd"), help="add the authors' scores to the card, for their weights unchanged"
    )


if __name__ == "__main__":
    run(main)
