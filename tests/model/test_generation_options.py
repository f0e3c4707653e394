"""Inputs, limits and outputs of `generate` on the shipped default model."""

import copy
from threading import Thread

import pytest
import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer, TextStreamer

from tests.default_model.chats import answer, ask, default_model, default_processor, encode, new_tokens

MODEL, PROCESSOR = default_model(), default_processor()
CONFIG = MODEL.config
EOS, CONTEXT = CONFIG.text_config.eos_token_id, CONFIG.text_config.max_position_embeddings
# Answers go on, so that there is something to compare.
LONG = {"max_new_tokens": 5, "suppress_tokens": [EOS], "do_sample": False}
ROW = encode([ask(0)])
CHATS = [[ask(0)], [ask(0), answer("fox"), ask(3, 7)], [ask(question="Hello there")]]
BATCH = encode(*CHATS)


def generate(inputs=ROW, model=MODEL, **options) -> list[list[int]]:
    return new_tokens(inputs, model.generate(**inputs, **LONG | options))


@pytest.fixture(scope="module")
def greedy() -> list[list[int]]:
    return generate()


@pytest.fixture(scope="module")
def batched() -> list[list[int]]:
    return generate(BATCH)


class TestEmbeddings:
    @staticmethod
    def embedded(inputs: dict) -> dict:
        return inputs | {"inputs_embeds": MODEL.get_input_embeddings()(inputs["input_ids"]).detach()}

    @pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
    def test_with_and_without_ids(self, options):
        expected, inputs = generate(BATCH, **options), self.embedded(BATCH)
        assert generate(inputs, **options) == expected
        del inputs["input_ids"]
        assert MODEL.generate(**inputs, **LONG | options).tolist() == expected

    def test_the_context_is_theirs_too(self):
        inputs = self.embedded(ROW)
        del inputs["input_ids"]
        room = CONTEXT - inputs["inputs_embeds"].shape[1]
        with pytest.raises(ValueError, match=f"`max_new_tokens` to at most {room}"):
            MODEL.generate(**inputs, max_new_tokens=room + 1)


class TestPadding:
    @pytest.mark.parametrize("drop", [None, "attention_mask"])
    def test_right_padding_is_moved_to_the_left(self, drop, batched):
        right = encode(*CHATS, padding_side="right")
        assert not right["attention_mask"][:, -1].all()
        sequences = MODEL.generate(**{name: value for name, value in right.items() if name != drop}, **LONG)
        assert sequences[:, : right["input_ids"].shape[1]].tolist() == BATCH["input_ids"].tolist()
        assert new_tokens(right, sequences) == batched

    def test_right_padded_embeddings(self, batched):
        right = TestEmbeddings.embedded(encode(*CHATS, padding_side="right", return_mm_token_type_ids=True))
        assert generate(right) == batched

    def test_a_right_padded_turn_over_the_cache(self):
        texts = ["</s>USER: Why?<learnable> ASSISTANT:", "</s>USER: Is there a pear?<learnable> ASSISTANT:", "</s>"]
        answers = []
        for side in ("left", "right"):
            cache = DynamicCache(config=CONFIG)
            first = MODEL.generate(**BATCH, **LONG, past_key_values=cache)
            turn = PROCESSOR(text=texts, padding=True, padding_side=side, return_tensors="pt")
            mask = [BATCH["attention_mask"], torch.ones(3, LONG["max_new_tokens"]).long(), turn["attention_mask"]]
            whole = {
                "input_ids": torch.cat([first, turn["input_ids"]], dim=1),
                "attention_mask": torch.cat(mask, dim=1),
            }
            answers.append(generate(whole, past_key_values=cache))
        assert answers[0] == answers[1]


class TestLimits:
    @staticmethod
    def prompt_of(length: int) -> dict:
        """The row with words added to its question."""
        first = ROW["input_ids"][0].tolist().index(CONFIG.query_token_id)
        words = ROW["input_ids"][:, first - 2 : first - 1].expand(-1, length - ROW["input_ids"].shape[1])
        ids = [ROW["input_ids"][:, : first - 1], words, ROW["input_ids"][:, first - 1 :]]
        return ROW | {"input_ids": torch.cat(ids, dim=1), "attention_mask": torch.ones(1, length).long()}

    def test_up_to_the_last_position_of_the_context(self):
        inputs = self.prompt_of(CONTEXT - 3)
        assert len(generate(inputs, max_new_tokens=None, max_length=CONTEXT)[0]) == 3
        for options in ({"max_new_tokens": None, "max_length": CONTEXT + 1}, {"max_new_tokens": 4}):
            with pytest.raises(ValueError, match="`max_new_tokens` to at most 3"):
                generate(inputs, **options)

    def test_only_new_ids_over_a_cache_count_the_cached_ones(self):
        cache = DynamicCache(config=CONFIG)
        whole = MODEL.generate(**ROW, **LONG, past_key_values=cache)
        options = {"attention_mask": torch.ones_like(whole), "past_key_values": cache}
        room = CONTEXT - whole.shape[1]
        with pytest.raises(ValueError, match=f"`max_new_tokens` to at most {room}"):
            MODEL.generate(whole[:, -1:], **options, max_new_tokens=room + 1)
        new = MODEL.generate(whole[:, -1:], **options, **LONG)[0, 1:].tolist()
        assert [*whole[0].tolist(), *new] == MODEL.generate(**ROW, **LONG | {"max_new_tokens": 10})[0].tolist()

    def test_stop_strings(self, greedy):
        text = PROCESSOR.decode(greedy[0][:3])
        stopped = generate(stop_strings=[text[-2:]], tokenizer=PROCESSOR.tokenizer)[0]
        assert PROCESSOR.decode(stopped).endswith(text[-2:])
        assert stopped == greedy[0][: len(stopped)]
        assert len(stopped) <= 3

    def test_other_criteria(self, greedy):
        class TwoTokens(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                done = input_ids.shape[1] >= ROW["input_ids"].shape[1] + 2
                return torch.full(input_ids.shape[:1], done, device=input_ids.device)

        assert generate(stopping_criteria=StoppingCriteriaList([TwoTokens()])) == [greedy[0][:2]]


class TestStreaming:
    def test_to_the_terminal(self, greedy, capsys):
        generate(streamer=TextStreamer(PROCESSOR.tokenizer, skip_prompt=True))
        assert capsys.readouterr().out.strip() == PROCESSOR.decode(greedy[0]).strip()

    @pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}], ids=str)
    def test_to_an_iterator(self, greedy, options):
        streamer = TextIteratorStreamer(PROCESSOR.tokenizer, skip_prompt=True, timeout=60)
        thread = Thread(target=generate, kwargs={"streamer": streamer} | options)
        thread.start()
        assert "".join(streamer) == PROCESSOR.decode(greedy[0])
        thread.join()


class TestOutputs:
    def test_scores_logits_attentions_and_hidden_states(self, batched):
        model = copy.deepcopy(MODEL)
        model.set_attn_implementation("eager")
        names = ("scores", "logits", "attentions", "hidden_states")
        options = {f"output_{name}": True for name in names} | {"return_dict_in_generate": True}
        result = model.generate(**BATCH, **LONG, **options)

        assert new_tokens(BATCH, result.sequences) == batched
        (rows, length), steps = BATCH["input_ids"].shape, LONG["max_new_tokens"]
        layers, heads = CONFIG.text_config.num_hidden_layers, CONFIG.text_config.num_attention_heads
        assert [len(result[name]) for name in names] == [steps] * 4
        for step in range(steps):
            queries, keys = (length, length) if step == 0 else (1, length + step)
            assert [tuple(one.shape) for one in result.attentions[step]] == [(rows, heads, queries, keys)] * layers
            width = CONFIG.text_config.hidden_size
            assert [tuple(one.shape) for one in result.hidden_states[step]] == [(rows, queries, width)] * (layers + 1)
            last = result.attentions[step][-1][:, :, -1]
            torch.testing.assert_close(last.sum(-1), torch.ones(rows, heads))
            assert not last[:, :, :length].masked_select(~BATCH["attention_mask"].bool()[:, None]).any()
            suppressed = result.scores[step].isneginf()
            assert suppressed[0].nonzero()[:, 0].tolist() == sorted([CONFIG.image_token_id, CONFIG.query_token_id, EOS])
            torch.testing.assert_close(result.scores[step][~suppressed], result.logits[step][~suppressed])

    @pytest.mark.parametrize("beams", [1, 3])
    def test_transition_scores(self, beams):
        output = {"return_dict_in_generate": True, "output_scores": True}
        result = MODEL.generate(**BATCH, **LONG | {"num_beams": beams, "length_penalty": 1.0}, **output)
        indices = result.beam_indices if beams > 1 else None
        scores = MODEL.compute_transition_scores(result.sequences, result.scores, indices, normalize_logits=beams == 1)
        assert scores.shape == (3, LONG["max_new_tokens"])
        if beams > 1:
            torch.testing.assert_close(scores.sum(1) / LONG["max_new_tokens"], result.sequences_scores)
        else:
            chosen = result.sequences[:, BATCH["input_ids"].shape[1] :]
            for step, logits in enumerate(result.scores):
                expected = logits.log_softmax(-1).gather(1, chosen[:, step : step + 1])[:, 0]
                torch.testing.assert_close(scores[:, step], expected, atol=5e-5, rtol=0)  # theirs is 3e-5 from float64
