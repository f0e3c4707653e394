"""ANLS is what lmms-eval counts, but that blanks around a text, which it takes for letters there, are none."""

from random import Random

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.api.metrics import anls as theirs

from transformers_flashsloth.answering.scoring import anls


def test_anls_is_lmms_eval_s():
    random = Random(0)
    for _ in range(200):
        texts = ("".join(random.choices("aAbc  é", k=random.randrange(1, 14))) for _ in range(4))
        answer, *references = (" ".join(text.split()) for text in texts)
        assert anls(answer, references) == pytest.approx(theirs(references, [answer])["anls"]), (answer, references)
