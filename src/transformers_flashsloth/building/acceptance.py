"""What FlashSloth can be built on, as the classes of `model/` ask whenever a config or a part is made."""

from transformers import PreTrainedConfig, PreTrainedModel

from ..model.configuration_flashsloth import FlashSlothConfig
from .accepted_configs import check_numbers
from .accepted_decoders import check_decoder, check_text_config
from .accepted_towers import check_tower, check_vision_config


class Acceptance:
    """Refuses, each with a ValueError that gives the reason, what FlashSloth cannot be built on."""

    def check_configs(self, text_config: PreTrainedConfig, vision_config: PreTrainedConfig) -> None:
        """By what the configs say."""
        check_text_config(text_config)
        check_vision_config(vision_config)

    def check_numbers(self, config: FlashSlothConfig) -> None:
        """By whether the numbers of the model's own config fit each other and those of its parts."""
        check_numbers(config)

    def check_decoder(self, decoder: PreTrainedModel) -> None:
        """By what the decoder does."""
        check_decoder(decoder)

    def check_tower(
        self,
        config: PreTrainedConfig,
        kept: PreTrainedConfig,
        view_size: tuple[int, int],
        grid: tuple[int, int],
    ) -> None:
        """By what the tower does; see [`check_tower`]."""
        check_tower(config, kept, view_size, grid)
