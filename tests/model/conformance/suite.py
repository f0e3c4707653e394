"""
Transformers' own shared tests on FlashSloth's classes. `tests/model/test_conformance.py` puts this file into the
`tests` folder of transformers' source distribution, where its relative imports hold.
"""

import unittest

import torch
from transformers import PhiConfig, SiglipVisionConfig
from transformers.models.auto import modeling_auto

from tests.phi_tokenizer import build_phi_tokenizer
from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothImageProcessor,
    FlashSlothModel,
    FlashSlothProcessor,
    FlashSlothVideoProcessor,
)

from ...generation.test_utils import GenerationTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from ...test_processing_common import ProcessorTesterMixin

# The shared tests look classes up by name to know which are headless and which take labels.
modeling_auto.MODEL_MAPPING_NAMES["flashsloth"] = FlashSlothModel.__name__
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["flashsloth"] = FlashSlothForConditionalGeneration.__name__

IMAGE, QUERY, ORDINARY = 4, 5, 10


class ModelTester:
    """A tiny model, and rows of one image, a question and its queries."""

    batch_size = 7
    seq_length = encoder_seq_length = key_length = 20
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    vocab_size = 99
    is_training = True

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> FlashSlothConfig:
        sizes = {
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
        }
        ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
        return FlashSlothConfig(
            text_config=PhiConfig(vocab_size=self.vocab_size, max_position_embeddings=128, **sizes, **ids),
            vision_config=SiglipVisionConfig(image_size=24, patch_size=4, vision_use_head=False, **sizes),
            image_token_id=IMAGE,
            query_token_id=QUERY,
            query_init_token_id=6,
            user_prefix_ids=[2, 7],
            embq_layer=1,
            embq_hidden_size=32,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[FlashSlothConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - ORDINARY) + ORDINARY
        input_ids[:, 1:5] = IMAGE
        input_ids[:, 9:18] = QUERY
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": floats_tensor([self.batch_size, 1, 3, 24, 24]),
        }
        return self.get_config(), inputs

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class FlashSlothModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (FlashSlothModel, FlashSlothForConditionalGeneration)
    _is_composite = True
    # Without it some tests name images and pass none, which FlashSloth refuses.
    additional_model_inputs = ("pixel_values",)

    def setUp(self):
        self.model_tester = ModelTester(self)
        self.config_tester = ConfigTester(self, config_class=FlashSlothConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _longer_than_the_context(self):
        self.skipTest("runs sequences of 1.5 contexts, which FlashSloth refuses")

    test_model_rope_scaling_from_config_0_linear = _longer_than_the_context
    test_model_rope_scaling_from_config_1_dynamic = _longer_than_the_context
    test_model_rope_scaling_from_config_2_yarn = _longer_than_the_context

    def test_reverse_loading_mapping(self):
        self.skipTest("wants a model saved under the authors' names; ours are written, on purpose")


class FlashSlothImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs):
        super().__init__(parent, size={"height": 42, "width": 42}, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": FlashSlothImageProcessor}  # the other one needs torchvision

    def expected_output_image_shape(self, images) -> tuple[int, ...]:
        return (1, self.num_channels, 42, 42)  # one view


class FlashSlothImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = FlashSlothImageProcessingTester

    def test_new_models_require_torchvision_backend(self):
        self.skipTest("FlashSlothImageProcessorTorchvision is left out of this suite, as torchvision is optional")


class FlashSlothProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = FlashSlothProcessor
    videos_input_name = "pixel_values"  # frames are images

    @classmethod
    def _setup_tokenizer(cls):
        return build_phi_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return FlashSlothImageProcessor(size={"height": 42, "width": 42})

    @classmethod
    def _setup_video_processor(cls):
        return FlashSlothVideoProcessor(size={"height": 42, "width": 42})

    def _knows_no_queries(self):
        self.skipTest("compares with the tokenizer alone, which does not expand the query placeholder")

    test_apply_chat_template_image_0 = _knows_no_queries
    test_apply_chat_template_image_1 = _knows_no_queries
    test_apply_chat_template_decoded_video_0 = _knows_no_queries

    def _reads_videos_from_the_hub(self):
        self.skipTest("reads a video from the Hub; tests/model/test_video_inputs.py reads files that it writes")

    test_apply_chat_template_video_0 = _reads_videos_from_the_hub
    test_apply_chat_template_video_1 = _reads_videos_from_the_hub
    test_apply_chat_template_video_frame_sampling = _reads_videos_from_the_hub

    def test_init_arguments_not_in_processor_kwargs(self):
        self.skipTest("a call may choose another `pooling_window` than the processor's own, which is saved with it")

    def test_processor_text_has_no_visual(self):
        self.skipTest("reads an image from the Hub; tests/model/test_processing_flashsloth.py has ragged batches")
