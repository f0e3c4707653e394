import torch

from tests.golden_model import EOS, IMAGE, PAD, QUERY, USER_PREFIX, pad, tiny_config
from transformers_flashsloth.model.question_spans import find_query_spans

NEWLINE, ASSISTANT = 198, [24994, 8808, 8643, 25]
SYSTEM = [32, 8537, 13, 1294, 1137, 25, 220]
RUN = [QUERY] * 9


def first_turn(question: list[int], images: int = 1, system: list[int] = SYSTEM) -> list[int]:
    return system + ([IMAGE] * 9 + [NEWLINE]) * images + question + RUN + ASSISTANT


def later_turn(answer: list[int], question: list[int], images: int = 0) -> list[int]:
    return answer + USER_PREFIX + ([IMAGE] * 9 + [NEWLINE]) * images + question + RUN + ASSISTANT


def questions(
    rows: list[list[int]], side: str = "right", pad_token_id: int = PAD
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """What each run of each row reads: the question's ids, and the numbers of the images it sees."""
    ids, config = pad(rows, side, pad_token_id), tiny_config()
    config.text_config.pad_token_id = pad_token_id
    num_images = int((ids == IMAGE).sum()) // 9
    runs = [row.count(QUERY) // 9 for row in rows]
    spans = find_query_spans(ids, config, max_runs=max(runs), num_images=num_images, tokens_per_image=9)
    assert spans.valid.sum(1).tolist() == runs
    texts, seen = [], []
    for b, n in enumerate(runs):
        assert all((ids[b, spans.positions[b, r]] == QUERY).all() for r in range(n))
        texts.append([ids[b, spans.question[b, r]].tolist() for r in range(n)])
        seen.append([((spans.image_rows == b) & spans.visible[:, r]).nonzero().flatten().tolist() for r in range(n)])
    return texts, seen


ROWS = [
    first_turn([10, 11, 12]) + later_turn([500, 501], [20, 21]) + later_turn([502], [30]),
    first_turn([10], images=2),
    first_turn([10, 11], images=0) + later_turn([500], [20, 21]),
    first_turn([10, 11], images=0) + later_turn([500], [20], images=1) + later_turn([501], [30, 31], images=1),
    first_turn([40, 41], system=[]),
    [10, 11, 12],
]
QUESTIONS = [[[10, 11, 12], [20, 21], [30]], [[10]], None, [None, [20], [30, 31]], [[40, 41]], []]
SEEN = [[[0], [0], [0]], [[1, 2]], [[], []], [[], [3], [3, 4]], [[5]], []]


def test_each_run_reads_its_own_turn_and_the_images_before_it():
    for side in ("right", "left"):
        texts, seen = questions(ROWS, side)
        assert seen == SEEN
        for found, expected in zip(texts, QUESTIONS, strict=True):
            for run, question in enumerate(expected or []):
                assert question is None or found[run] == question


def test_a_typed_header_or_newline_is_part_of_the_question():
    header_without_end_token = [10, 29904, 25, 11]
    assert questions([first_turn(header_without_end_token)])[0] == [[header_without_end_token]]
    assert questions([first_turn([10, NEWLINE, 11])])[0] == [[[10, NEWLINE, 11]]]


def test_padding_belongs_to_no_question():
    for side in ("left", "right"):
        texts, _ = questions([first_turn([10]), first_turn([10, 11, 12, 13, 14])], side)
        assert not any(PAD in question or EOS in question for row in texts for question in row)


def test_an_empty_question_is_empty():
    assert questions([first_turn([])])[0] == [[[]]]


def test_spare_runs_and_images_are_not_valid():
    ids = torch.tensor([first_turn([10])])
    spans = find_query_spans(ids, tiny_config(), max_runs=4, num_images=2, tokens_per_image=9)
    assert spans.valid.tolist() == [[True, False, False, False]]
    assert spans.visible.tolist() == [[True, False, False, False], [False] * 4]
    assert not spans.question[:, 1:].any()


def test_more_runs_than_positions_are_harmless():
    spans = find_query_spans(torch.tensor([[5]]), tiny_config(), max_runs=2, num_images=0, tokens_per_image=9)
    assert spans.positions.shape == (1, 2, 9)
    assert not spans.valid.any()


def test_padding_behind_an_answer_that_ended_early():
    turn = [*USER_PREFIX[1:], 20, 21, *RUN, *ASSISTANT]
    assert questions([[*first_turn([10]), 500, EOS, PAD, PAD, *turn]])[0] == [[[10], [20, 21]]]
    # Nothing else may stand there, and padding alone opens no turn.
    assert questions([[*first_turn([10]), 500, EOS, 501, PAD, *turn]])[0] != [[[10], [20, 21]]]
    assert (
        questions([first_turn([10]) + turn], "left")[0] == questions([first_turn([10]) + turn, ROWS[0]], "left")[0][:1]
    )


def test_padding_may_be_the_token_that_opens_the_header():
    """ChatML pads with the `<|im_end|>` that ends a turn."""
    opener = USER_PREFIX[0]
    early = [*first_turn([10, 11]), 500, opener, opener, opener, *USER_PREFIX[1:], 20, 21, *RUN, *ASSISTANT]
    rows = [ROWS[0], early, first_turn([40])]
    for side in ("right", "left"):
        assert questions(rows, side, opener)[0] == [QUESTIONS[0], [[10, 11], [20, 21]], [[40]]]


def test_padding_by_a_mask_is_in_no_question():
    """Wherever it stands: before a question, between an image and its newline, and inside."""
    config = tiny_config()
    question = [10, 11]
    row = [5, *[IMAGE] * 9, PAD, 198, PAD, PAD, question[0], PAD, question[1], *[QUERY] * 9]
    mask = [0 if token == PAD else 1 for token in row]
    spans = find_query_spans(
        torch.tensor([row]),
        config,
        max_runs=1,
        num_images=1,
        tokens_per_image=9,
        attention_mask=torch.tensor([mask]),
    )
    assert torch.tensor(row)[spans.question[0, 0]].tolist() == question
    four = torch.zeros(1, 1, 2, 64).masked_fill(~torch.tensor(mask + [0] * (64 - len(row))).bool(), -1e4)
    for other in (four, {"full_attention": four}, four == 0):
        again = find_query_spans(
            torch.tensor([row]), config, max_runs=1, num_images=1, tokens_per_image=9, attention_mask=other
        )
        assert torch.equal(again.question, spans.question)
