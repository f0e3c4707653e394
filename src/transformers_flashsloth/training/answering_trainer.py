"""TRL's trainer, which answers held-out questions whenever it evaluates, and says how many answers are right."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from ..answering.answers import answer_all
from ..answering.features import FeatureStore
from ..answering.scoring import scores
from .held_out import BARE_TEMPLATE, HeldOut, Question, text_of

# Rows whose images are held at once.
SLICE = 128
# All features of an evaluation. They are dropped after it: an optimiser may change weights where no count of it shows.
STORE_BYTES = 2**28
# Rows of the table, and the width of its columns.
SHOWN, WIDTHS = 5, (48, 32, 32)


class Asking(NamedTuple):
    """
    How held-out rows are asked.

    Attributes:
        rows ([`HeldOut`]): what is asked.
        max_new_tokens (`int`, *optional*): longest answer. By default twice the tokens of the longest expected one, as
            longer ones are worth nothing.
        chat_template (`str`, *optional*): writes the prompts; by default the processor's.
        answers_end (`bool`): whether the model learns where an answer ends. If not, answers are cut to the tokens of
            the expected ones.
    """

    rows: HeldOut
    max_new_tokens: int | None = None
    chat_template: str | None = None
    answers_end: bool = True


class AnsweringTrainer(SFTTrainer):
    """
    `SFTTrainer` whose evaluations also report `eval_exact_match` and `eval_anls` of greedy answers, and print some.

    The figures are in the same entry of the log as the loss, so that `report_to`, `metric_for_best_model` and callbacks
    see them. Nothing of the training depends on an evaluation: neither weights nor modes nor what is drawn.

    Args:
        asking ([`Asking`]): what is asked, and how. Answered `per_device_eval_batch_size` at once, each question by one
            of the ranks.
        args, kwargs: of `SFTTrainer`, with the model's processor as `processing_class`.

    Raises:
        ValueError: if accelerate's FSDP or ZeRO-3 spreads the model over the ranks.
    """

    def __init__(self, *args, asking: Asking, **kwargs):
        super().__init__(*args, **kwargs)
        if is_spread(self.accelerator.state):
            raise ValueError(
                "--eval_answers needs a model that is whole on each rank, or that transformers shards "
                "(`distributed_config`): leave it out with accelerate's FSDP and ZeRO-3, and evaluate what they save"
            )
        self.asking = asking
        self._asks = True
        for module in self.model.modules():  # its weights are gathered for `forward`, and for what else is named
            if isinstance(module, FSDPModule) and hasattr(module, "get_image_features"):
                register_fsdp_forward_method(module, "get_image_features")

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """As `SFTTrainer`'s. Another data set than the trainer's own has a loss, and is not asked."""
        self._asks = eval_dataset is None
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._asks = True

    def predict(self, *args, **kwargs):
        """As `SFTTrainer`'s, which asks nothing."""
        self._asks = False
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._asks = True

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """As `SFTTrainer`'s, with the answers' figures among its metrics."""
        # Data loaders draw a seed whenever they begin; dropout goes on as if nothing had been evaluated.
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            if self._asks:
                found = self.answer_held_out()
                output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def answer_held_out(self) -> dict[str, float]:
        """Asks the held-out questions, prints the first few with their answers, and returns the figures."""
        model, asking = self.model, self.asking
        expected = asking.rows.expected()
        # Ranks that have parts of the model answer in step, all of them everything.
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        alone = ranks == 1 or self._is_split()
        mine = list(range(len(expected)))[slice(None) if alone else slice(rank, None, ranks)]
        with _evaluating(model), self.accelerator.autocast():
            answers = self._answers(mine, expected)
        said = list(zip(mine, answers, strict=True))
        said = dict(said if alone else gather_object(said))
        answers = [said[index] for index in range(len(expected))]
        if rank == 0:
            shown = asking.rows.questions(list(range(min(SHOWN, len(expected)))))
            asked = [text_of(question.conversation[-1]) for question in shown]
            self.accelerator.print(table(list(zip(asked, expected, answers, strict=False))))
        return scores(answers, expected)

    def _answers(self, indices: list[int], expected: list[str]) -> list[str]:
        tokenizer, asking = self.processing_class.tokenizer, self.asking
        lengths = [len(ids) for ids in tokenizer(expected, add_special_tokens=False)["input_ids"]]
        longest = asking.max_new_tokens or max(lengths) * (2 if asking.answers_end else 1)
        store, found = FeatureStore(STORE_BYTES), []
        for start in range(0, len(indices), SLICE):
            questions = list(asking.rows.questions(indices[start : start + SLICE]))
            found += answer_all(
                self.model,
                self._processor(questions),
                [question.conversation for question in questions],
                batch_size=self.args.per_device_eval_batch_size,
                features=store,
                max_new_tokens=longest,
                do_sample=False,
                num_beams=1,
                use_cache=True,  # which training switches off
            )
        if not asking.answers_end:
            found = [self._cut(answer, lengths[index]) for answer, index in zip(found, indices, strict=True)]
        return found

    def _processor(self, questions: list[Question]):
        """The processor, which writes prompts as the rows are asked; all of a data set are of one kind."""
        template = BARE_TEMPLATE if questions[0].is_bare else self.asking.chat_template
        processor = copy.copy(self.processing_class)
        processor.chat_template = template or processor.chat_template
        return processor

    def _cut(self, answer: str, length: int) -> str:
        tokenizer = self.processing_class.tokenizer
        return tokenizer.decode(tokenizer(answer, add_special_tokens=False)["input_ids"][:length]).strip()

    def _is_split(self) -> bool:
        return any(isinstance(parameter, DTensor) for parameter in self.model.parameters())


def is_spread(state: AcceleratorState) -> bool:
    """Whether accelerate leaves parts of a model on each rank, which nothing but `forward` puts together."""
    zero = state.deepspeed_plugin
    return getattr(state, "fsdp_plugin", None) is not None or (zero is not None and zero.zero_stage == 3)


def table(rows: list[tuple[str, str, str]]) -> str:
    """Questions, expected and given answers as lines of text, long ones shortened."""
    lines = [("question", "expected", "answered"), *rows]
    cells = [[_cell(text, width) for text, width in zip(line, WIDTHS, strict=True)] for line in lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(WIDTHS))]
    padded = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([padded[0], "  ".join("-" * width for width in widths), *padded[1:]])


def _cell(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
