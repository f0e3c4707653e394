"""Uploads a checkpoint to the Hub: weights, processor, code and a model card, in one commit."""

from pathlib import Path

from huggingface_hub import HfApi

from ..checkpoints.weights import CheckpointFiles
from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.foreign_formats import foreign_format_at
from .card import MODEL_CARD, make_card
from .figures import read_card, read_figures, with_figures


def push_to_hub(
    directory: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    model_card: Path = MODEL_CARD,
    scores: str | None = None,
    results: Path | None = None,
) -> str:
    """
    Uploads a directory, creating the repository where there is none.

    Args:
        directory (`Path`): checkpoint in this package's format. A README.md in it is taken as its model card.
        repo_id (`str`): such as `"me/flashsloth-3.2b"`.
        private (`bool`, *optional*): whether a new repository is private; by default as the account says.
        model_card (`Path`, *optional*): text of the card where the directory has no README.md.
        scores (`str`, *optional*): `"base"` or `"hd"` adds what the authors published, for their weights unchanged.
        results (`Path`, *optional*): `results.json` of `flashsloth eval`, whose figures go into the card's
            `model-index`, that of the directory's README.md too.

    Returns:
        `str`: address of the repository.

    Raises:
        OSError: if files are missing or the Hub refuses.
        ValueError: if the directory holds no sound checkpoint in this package's format, or `results` no figures.
    """
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is no directory.")
    if foreign_format_at(directory)[0] is not None:
        raise ValueError(f"{directory} is in the authors' format: convert it first (`flashsloth convert`).")
    config = FlashSlothConfig.from_pretrained(directory)
    CheckpointFiles(directory)
    if "AutoModelForImageTextToText" not in (getattr(config, "auto_map", None) or {}):
        raise ValueError(f"{directory} does not carry the code: save the model again with `save_pretrained`.")
    card = directory / "README.md"
    if not card.exists():
        make_card(config, repo_id, model_card, scores, results).save(card)
    elif results is not None:
        with_figures(read_card(card), read_figures(results), repo_id.split("/")[-1]).save(card)
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(folder_path=directory, repo_id=url.repo_id, commit_message="Upload FlashSloth")
    except (OSError, ValueError):
        raise
    except Exception as error:  # of the HTTP library, or around one of its
        raise ConnectionError(f"The upload to {repo_id} broke off ({error}): run it again to go on with it.") from error
    return str(url)
