"""The decoding modes of `generate` on the shipped default model: sampling, constraints and assisted decoding."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    SuppressTokensLogitsProcessor,
    set_seed,
)

from tests.default_model.chats import answer, ask, default_model, default_processor, encode, new_tokens
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration

MODEL, PROCESSOR = default_model(), default_processor()
CONFIG = MODEL.config
EOS, PLACEHOLDERS = CONFIG.text_config.eos_token_id, [CONFIG.image_token_id, CONFIG.query_token_id]
# Answers go on, so that there is something to compare.
LONG = {"max_new_tokens": 9, "suppress_tokens": [EOS]}
CHAT = [ask(0), answer("fox"), ask(3, 7)]
INPUTS = encode(CHAT)
BATCH = encode([ask(0)], CHAT, [ask(4, question="What is this?")])
TEXT_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def generate(inputs=INPUTS, model=MODEL, **options) -> list[list[int]]:
    return new_tokens(inputs, model.generate(**inputs, **{"do_sample": False} | LONG | options))


@pytest.fixture(scope="module")
def greedy() -> list[list[int]]:
    return generate()


def longing_for_placeholders() -> FlashSlothForConditionalGeneration:
    model = copy.deepcopy(MODEL)
    model.lm_head.bias.data[PLACEHOLDERS] = 1e4
    return model


def smaller(**changes) -> FlashSlothForConditionalGeneration:
    """An untrained FlashSloth that reads the default model's prompts."""
    config = CONFIG.to_dict() | {"embq_layer": 1, "embq_hidden_size": 48, "embq_num_heads": 2} | changes
    vision = config["vision_config"] | {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config["text_config"] |= TEXT_SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 2}
    config["vision_config"] = vision | {"num_attention_heads": 2}
    return FlashSlothForConditionalGeneration(FlashSlothConfig(**config)).eval()


def text_only(kind: str, vocab_size: int = CONFIG.text_config.vocab_size):
    config, model = {"phi": (PhiConfig, PhiForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    return model(config(vocab_size=vocab_size, **TEXT_SIZES, bos_token_id=0, eos_token_id=EOS, pad_token_id=0)).eval()


class TestSampling:
    @pytest.mark.parametrize(
        "options",
        [{"top_k": 1}, {"top_p": 1e-6, "top_k": 0}, {"min_p": 1.0}, {"temperature": 1e-6}, {"typical_p": 1.0}],
    )
    def test_options_narrow_the_choice(self, options):
        sampled = generate(BATCH, do_sample=True, **options)
        assert (sampled == generate(BATCH)) == (options != {"typical_p": 1.0})

    @pytest.mark.parametrize("batch", [INPUTS, BATCH], ids=["row", "batch"])
    def test_seeds_decide(self, batch):
        samples = []
        for seed in (1, 1, 2):
            set_seed(seed)
            options = {"temperature": 3.0, "top_k": 0, "top_p": 0.95, "num_return_sequences": 2}
            samples.append(generate(batch, do_sample=True, **options))
        assert samples[0] == samples[1] != samples[2]
        assert len(samples[0]) == 2 * len(batch["input_ids"])
        assert len({tuple(sample) for sample in samples[0]}) == len(samples[0])

    def test_guidance(self, greedy):
        assert generate(guidance_scale=1 + 1e-6) == greedy
        assert generate(guidance_scale=4.0) != greedy


class TestConstraints:
    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_allowed_tokens(self, num_beams):
        allowed = PROCESSOR.tokenizer.convert_tokens_to_ids(["Ġyes", "Ġno"])
        tokens = generate(BATCH, prefix_allowed_tokens_fn=lambda row, ids: allowed, num_beams=num_beams)
        assert {token for row in tokens for token in row} <= set(allowed)

    def test_forbidden_and_preferred_tokens(self, greedy):
        first = greedy[0][0]
        assert first not in generate(bad_words_ids=[[first]])[0]
        assert first not in generate(sequence_bias={(first,): -1e4})[0]
        assert generate(forced_eos_token_id=first)[0][-1] == first

    @pytest.mark.parametrize(
        "options",
        [{"repetition_penalty": 1e6}, {"encoder_repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}],
    )
    def test_repetitions_with_repeated_placeholders(self, options, greedy):
        tokens = generate(BATCH, **options)
        if "encoder_repetition_penalty" not in options:
            assert all(len(set(row)) == len(row) for row in tokens)
        assert tokens != generate(BATCH)


class TestPlaceholdersAreNeverGenerated:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"do_sample": True, "temperature": 1e-6},
            {"prompt_lookup_num_tokens": 3},
            {"use_cache": False},
        ],
        ids=str,
    )
    def test_however_likely(self, options, greedy):
        assert generate(model=longing_for_placeholders(), **options) == greedy

    @pytest.mark.parametrize("do_sample", [False, True])
    def test_by_beams(self, do_sample):
        options = {"num_beams": 3, "num_return_sequences": 3, "do_sample": do_sample}
        tokens = generate(BATCH, longing_for_placeholders(), **options)
        assert not {token for row in tokens for token in row} & {*PLACEHOLDERS, EOS}

    def test_by_an_assistant(self, greedy):
        assert generate(model=longing_for_placeholders(), assistant_model=longing_for_placeholders()) == greedy

    @pytest.mark.parametrize("form", ["option", "processor", "config"])
    def test_other_suppressed_tokens_add_up(self, form, greedy):
        banned = [EOS, greedy[0][0]]
        options = {"suppress_tokens": banned}
        if form == "processor":
            options = {"logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor(banned)])}
        model = longing_for_placeholders()
        if form == "config":
            options, model.generation_config.suppress_tokens = {"suppress_tokens": None}, banned
            tokens = new_tokens(INPUTS, model.generate(**INPUTS, do_sample=False, max_new_tokens=9))
        else:
            tokens = generate(model=model, **options)
        assert not set(tokens[0]) & {*banned, *PLACEHOLDERS}

    def test_a_processor_that_demands_them(self, greedy):
        def demand(input_ids, scores):
            return scores.index_fill(1, torch.tensor(PLACEHOLDERS), 1e4)

        assert generate(logits_processor=LogitsProcessorList([demand])) == greedy


class TestAssistedDecoding:
    @pytest.mark.parametrize("length", [2, 10])
    def test_prompt_lookup(self, greedy, length):
        # Two answers repeat: their tokens are found in the prompt, behind and before placeholders.
        assert generate(prompt_lookup_num_tokens=length) == greedy

    def test_lookup_proposes_no_placeholders(self):
        # A newline stands behind the images, and before them only in what is proposed.
        newline = PROCESSOR.tokenizer.encode("\n")
        options = {"prefix_allowed_tokens_fn": lambda row, ids: newline}
        assert generate(**options, prompt_lookup_num_tokens=5) == [newline * 9]

    @pytest.mark.parametrize("layers", [1, CONFIG.embq_layer + 1])
    def test_early_exit(self, greedy, layers):
        assert generate(assistant_early_exit=layers) == greedy
        assert CONFIG.text_config.num_hidden_layers == len(MODEL.model.language_model.layers)

    @pytest.mark.parametrize("kind", ["phi", "llama"])
    def test_a_text_only_assistant(self, greedy, kind):
        assert generate(assistant_model=text_only(kind)) == greedy

    def test_a_smaller_flashsloth_with_other_widths(self, greedy):
        assert generate(assistant_model=smaller()) == greedy

    def test_the_model_itself_assists(self, greedy):
        assert generate(assistant_model=MODEL) == greedy

    def test_a_flashsloth_assistant_sees_the_images(self, greedy):
        assistant, rounds, encoded = copy.deepcopy(MODEL), [], []
        assistant.generation_config.update(
            num_assistant_tokens=5, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
        )
        assistant.model.vision_tower.register_forward_hook(lambda *_: encoded.append(1))
        handle = MODEL.register_forward_hook(lambda *_: rounds.append(1))
        assert generate(assistant_model=assistant) == greedy
        handle.remove()
        # Its twin's drafts are all accepted: 9 tokens in rounds of 6 and 3.
        assert (len(rounds), len(encoded)) == (2, 1)

    def test_sampling_with_assistants(self):
        for assistant in (copy.deepcopy(MODEL), text_only("phi")):
            options = {"do_sample": True, "temperature": 1e-6, "assistant_model": assistant}
            assert generate(**options) == generate()

    def test_encoded_images_and_an_assistant(self, greedy):
        inputs = {name: value for name, value in INPUTS.items() if name != "pixel_values"}
        with torch.no_grad():
            images = MODEL.get_image_features(INPUTS["pixel_values"])
        inputs["mm_encoder_outputs"] = {"image": images}
        assert generate(inputs, assistant_model=MODEL) == generate(inputs, assistant_model=text_only("phi")) == greedy
        with pytest.raises(ValueError, match="pass `pixel_values`, not `mm_encoder_outputs`"):
            generate(inputs, assistant_model=smaller())

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("num_query_tokens", {"num_query_tokens": 3}),
            ("query_token_id", {"query_token_id": 7}),
            (
                "view_size",
                {
                    "image_size": [side * 2 for side in CONFIG.view_size],
                    "pooling_window": [side * 2 for side in CONFIG.window],
                },
            ),
        ],
    )
    def test_an_assistant_of_other_structure_is_refused(self, name, changes):
        with pytest.raises(ValueError, match=f"they differ in `{name}`"):
            generate(assistant_model=smaller(**changes))

    @pytest.mark.parametrize("mode", ["lookup", "model", "text"])
    def test_a_second_turn_over_the_cache(self, mode):
        options = {"prompt_lookup_num_tokens": 4} if mode == "lookup" else {}
        assistants = {"model": copy.deepcopy(MODEL), "text": text_only("phi")}
        options |= {"assistant_model": assistants[mode]} if mode in assistants else {}
        options |= LONG | {"do_sample": False, "return_dict_in_generate": True}
        cache = DynamicCache(config=CONFIG)
        first = MODEL.generate(**INPUTS, **options, past_key_values=cache)
        turn = PROCESSOR(text="</s>USER: Is there a pear?<learnable> ASSISTANT:", return_tensors="pt")["input_ids"]
        whole = {
            "input_ids": torch.cat([first.sequences, turn], dim=1),
            "pixel_values": INPUTS["pixel_values"],
        }
        continued = MODEL.generate(**whole, **options, past_key_values=cache).sequences
        assert new_tokens(whole, continued) == generate(whole)


class TestAssistantsWithAnotherTokenizer:
    @staticmethod
    def tokenizer(*words: str) -> PreTrainedTokenizerFast:
        """A word each of these and each character."""
        characters = [chr(code) for code in range(32, 127)]
        vocabulary = {word: index for index, word in enumerate(["<unk>", *words, *characters])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")

    @pytest.mark.parametrize("favourite", [None, "<image>", "<learnable>"])
    def test_equals_greedy_whatever_it_proposes(self, greedy, favourite):
        tokenizer = self.tokenizer("<image>", "<learnable>")
        assistant = text_only("phi", len(tokenizer))
        if favourite is not None:
            assistant.lm_head.bias.data[tokenizer.convert_tokens_to_ids(favourite)] = 1e4
        tokenizers = {"tokenizer": PROCESSOR.tokenizer, "assistant_tokenizer": tokenizer}
        assert generate(assistant_model=assistant, **tokenizers) == greedy
