import pytest

from tests.golden_model import tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_window": 2}, r"does not tile the 9x9 .* \[1, 3, 9\]"),
        ({"embq_layer": 10}, "0 to 9"),
        ({"embq_layer": -1}, "0 to 9"),
        ({"embq_num_heads": 7}, "does not divide embq_hidden_size"),
        ({"embq_hidden_size": 7, "embq_num_heads": 7}, "does not divide the vision width"),
        ({"num_query_tokens": -1}, "at least 0"),
        ({"image_token_id": 51200}, "0 to 51199"),
        ({"query_token_id": -1}, "0 to 51199"),
        ({"user_prefix_ids": [60000]}, r"user_prefix_ids\[0\]"),
        ({"image_token_id": 50295}, "must differ"),
        ({"user_prefix_ids": [50297]}, "must differ"),
        ({"pooling_window": "three"}, "pooling_window"),
    ],
)
def test_impossible_combinations_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**changes)
