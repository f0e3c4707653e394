"""The authors' checkpoint format: the only file that knows their names."""

# Regular expression of the authors' tensor name -> ours. Read from left to right; every tensor matches exactly one.
AUTHORS_TO_OURS = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.pooling\.mlp\.0\.": "model.multi_modal_projector.pooling.hidden_proj.",
    r"^model\.pooling\.mlp\.3\.": "model.multi_modal_projector.pooling.score_proj.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.learnable_tokens\.token$": "model.query_tokens.weight",
    r"^model\.lqformer\.down_projector_learnable_text\.": "model.embq.text_down_proj.",
    r"^model\.lqformer\.down_projector_image\.": "model.embq.image_down_proj.",
    r"^model\.lqformer\.layers\.0\.t2q_attn\.": "model.embq.question_attention.",
    r"^model\.lqformer\.layers\.0\.i2q_attn\.": "model.embq.image_attention.",
    r"^model\.lqformer\.layers\.0\.ln_q\.": "model.embq.query_norm.",
    r"^model\.lqformer\.layers\.0\.ln_text\.": "model.embq.question_norm.",
    r"^model\.lqformer\.layers\.0\.ln_kv\.": "model.embq.image_norm.",
    r"^model\.lqformer\.up_projector\.": "model.embq.up_proj.",
    r"^model\.(embed_tokens|layers|final_layernorm)\.": r"model.language_model.\1.",
    r"^lm_head\.": "lm_head.",
}
