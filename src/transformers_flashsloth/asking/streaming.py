"""Text that is generated in one thread and read, while it grows, in another."""

from collections.abc import Callable, Generator
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextStreamer

Result = TypeVar("Result")


def stream_text(generate: Callable[..., Result], tokenizer: PreTrainedTokenizerBase) -> Generator[str, None, Result]:
    """
    Yields the pieces of an answer, without the blanks that it begins with. If the reader stops, generation does before
    the next token.

    Args:
        generate: takes `streamer` and `stopping_criteria` as the `generate` of transformers does.
        tokenizer: of the model that answers.

    Returns:
        What `generate` returned; what it raised is raised here.
    """
    pieces = SimpleQueue()
    stop = _Stop()
    ended = []

    def run():
        try:
            result = generate(streamer=_Pieces(tokenizer, pieces), stopping_criteria=StoppingCriteriaList([stop]))
            ended.append((result, None))
        except BaseException as error:  # for the thread that reads
            ended.append((None, error))
        pieces.put(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    has_begun = False
    try:
        while (piece := pieces.get()) is not None:
            piece = piece if has_begun else piece.lstrip()
            if piece:
                has_begun = True
                yield piece
    finally:
        stop.asked.set()
    thread.join()
    result, error = ended[0]
    if error is not None:
        raise error
    return result


class _Pieces(TextStreamer):
    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: SimpleQueue):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces = pieces

    def on_finalized_text(self, text: str, stream_end: bool = False):
        self.pieces.put(text)


class _Stop(StoppingCriteria):
    def __init__(self):
        self.asked = Event()

    def __call__(self, input_ids, scores, **kwargs) -> bool:
        return self.asked.is_set()
