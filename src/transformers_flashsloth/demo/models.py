"""The models of a page: each is loaded once, when somebody first asks it."""

from threading import Lock

from ..asking.conversation import Conversation
from ..checkpoints.opening import DEFAULT_CHECKPOINT

DEFAULT_NAME = "flashsloth (small)"


class Models:
    """
    Args:
        checkpoints (`list[str]`): directories or Hub ids, which visitors choose from; the first is opened at once.
        loading: options of [`Conversation`], `device` and `dtype`.

    Raises:
        InputError: if the first cannot be opened.
    """

    def __init__(self, checkpoints: list[str], **loading):
        self.checkpoints = {DEFAULT_NAME if name == DEFAULT_CHECKPOINT else name: name for name in checkpoints}
        self.loading = loading
        self.opening = Lock()
        self.computing = Lock()  # memory is for one answer, and explaining looks into the layers
        self.opened = {}
        self.start(self.names[0])

    @property
    def names(self) -> list[str]:
        """What visitors read, in the order of the checkpoints."""
        return list(self.checkpoints)

    def start(self, name: str, image_hd: bool | None = None) -> Conversation:
        """
        A new conversation with a model, which other conversations may be using.

        Raises:
            InputError: if it cannot be opened.
        """
        with self.opening:
            if name not in self.opened:
                loaded = Conversation([], checkpoint=self.checkpoints[name], **self.loading)
                self.opened[name] = {"model": loaded.model, "processor": loaded.processor}
        return Conversation([], image_hd=image_hd, lock=self.computing, **self.opened[name])
