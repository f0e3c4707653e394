"""The chat template of a decoder, extended by images and queries, and what of its structure the model has to know."""

import json
from itertools import takewhile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

EXTENSION = Path(__file__).with_name("decoder_chat_template.jinja")
# Goes through the text that the decoder's template wrote: no message can contain a header or the end of a turn.
ANSWER_MARKS = """\
{% endset %}
{%- for flashsloth_part in flashsloth_chat.split(ANSWER_HEADER) -%}
    {%- if loop.first -%}
        {{- flashsloth_part -}}
    {%- else -%}
        {%- set flashsloth_pieces = flashsloth_part.split(ANSWER_FOOTER, 1) -%}
        {{- ANSWER_HEADER -}}
        {%- generation -%}
            {{- flashsloth_pieces[0] ~ (ANSWER_END if flashsloth_pieces | length > 1 else "") -}}
        {%- endgeneration -%}
        {{- flashsloth_part[(flashsloth_pieces[0] ~ ANSWER_END) | length :] -}}
    {%- endif -%}
{%- endfor -%}
"""
# Stands for what was typed; no template contains it, and none changes it.
TYPED = "qzxjvk"


def extend_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """
    The tokenizer's chat template, unchanged, behind a part that turns images and queries into text of its messages
    and refuses messages that contain structure. Where it does not mark answers (`generation` blocks), which training on
    answers alone needs, a part behind it does.

    Raises:
        ValueError: if the tokenizer has no chat template, or one that does not repeat what was typed.
    """
    header, footer = _render_turns(tokenizer)
    between = [text.strip() for text in (header, footer)]
    special = sorted(special_texts(tokenizer))
    headers = [text for text in between if text and not any(token in text for token in special)]
    reserved = json.dumps(special + headers, ensure_ascii=False)
    extension = EXTENSION.read_text(encoding="utf-8").replace("RESERVED_TEXTS", reserved)
    own = tokenizer.chat_template
    if "endgeneration" in own or not header.strip():
        return extension + own
    # An answer ends with the token that ends its turn, or else where the next question's header begins.
    end = next((token for token in special if footer.startswith(token)), "")
    words = {"HEADER": header, "FOOTER": end or footer, "END": end}
    marks = ANSWER_MARKS
    for word, text in words.items():
        marks = marks.replace(f"ANSWER_{word}", json.dumps(text, ensure_ascii=False))
    return f"{extension}{{% set flashsloth_chat %}}{own.removesuffix(chr(10))}{marks}"


def user_prefix_ids(tokenizer: PreTrainedTokenizerBase, image_token: str) -> list[int]:
    """
    The ids that stand between an answer and what the user types next, in the tokenizer's chat template. Ids that what
    is typed could change, such as a blank that joins the first word, are left out.

    Raises:
        ValueError: as `extend_chat_template`.
    """
    header = _render_turns(tokenizer)[1]
    begun = [tokenizer(header + text, add_special_tokens=False).input_ids for text in ("Why", "1", image_token)]
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*begun, strict=False))]


def _render_turns(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the template writes between a question and its answer, and between the answer and the next question."""
    if not tokenizer.chat_template:
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no chat template to extend.")
    roles = ("user", "assistant", "user")
    turns = [{"role": role, "content": f"{TYPED}{index}"} for index, role in enumerate(roles)]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    pieces = text.split(TYPED)
    if [piece[:1] for piece in pieces[1:]] != ["0", "1", "2"]:
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} does not write each message once and as it is, so "
            "queries cannot be put behind questions. Pass a tokenizer with another `chat_template`."
        )
    return pieces[1][1:], pieces[2][1:]


def special_texts(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """What stands for a special token wherever it is typed."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)
