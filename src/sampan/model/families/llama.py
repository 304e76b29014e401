"""Llama (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped-query attention, biases optional.

The other families with rotary positions are written as their differences from this one.
"""

from sampan.model.family import Family, Fixed, Gguf, Key

KEYS = (
    Key("vocab_size", "vocab_size", required=True),
    Key("tie_word_embeddings", "tie_word_embeddings", False),
    Key("num_hidden_layers", "n_layer", required=True),
    Key("num_attention_heads", "n_head", required=True),
    Key("num_key_value_heads", "n_kv_head"),
    Key("hidden_size", "n_embd", required=True),
    Key("intermediate_size", "n_inner", required=True),
    Key("max_position_embeddings", "block_size", required=True),
    Key("hidden_act", "activation", "silu"),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("rope_theta", "rope_theta", 10000.0),
    Key("rope_scaling", "rope_scaling"),
    Key("attention_dropout", "dropout", read=False),
)

FAMILY = Family(
    architecture="LlamaForCausalLM",
    norm="rmsnorm",
    positions="rotary",
    activation="silu",
    gated=True,
    biases=("qkv_bias", "attn_proj_bias", "mlp_bias"),
    keys=(
        *KEYS,
        Key("head_dim", "head_dim"),
        Key("attention_bias", "bias", False),
        Key("mlp_bias", "bias", False),
    ),
    fixed=(Fixed("pretraining_tp", 1, default=1),),
    tensors={
        "wte": ("model.embed_tokens",),
        "ln_1": ("model.layers.{}.input_layernorm",),
        "attn.c_attn": (
            "model.layers.{}.self_attn.q_proj",
            "model.layers.{}.self_attn.k_proj",
            "model.layers.{}.self_attn.v_proj",
        ),
        "attn.c_proj": ("model.layers.{}.self_attn.o_proj",),
        "ln_2": ("model.layers.{}.post_attention_layernorm",),
        "mlp.c_fc": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
        "mlp.c_proj": ("model.layers.{}.mlp.down_proj",),
        "ln_f": ("model.norm",),
        "lm_head": ("lm_head",),
    },
    optional_prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    whole_heads=True,
    gguf=Gguf(
        "llama",
        biases=("qkv_bias", "attn_proj_bias", "mlp_bias"),
        rotates_neighbours=True,
        stretches=("default", "linear", "llama3"),
    ),
)
