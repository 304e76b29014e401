"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, GELU (tanh form), biases optional.

Hugging Face stores q, k and v as one matrix, each matrix of a block as (in, out), and biases always: zeros where a model
has none. The key `bias` of config.json is ours; transformers ignores it.
"""

from sampan.model.family import Family, Fixed, Gguf, Key

FAMILY = Family(
    architecture="GPT2LMHeadModel",
    norm="layernorm",
    positions="learned",
    activation="gelu_new",
    gated=False,
    biases=("qkv_bias", "attn_proj_bias", "mlp_bias", "norm_bias"),
    keys=(
        Key("vocab_size", "vocab_size", 50257),
        Key("tie_word_embeddings", "tie_word_embeddings", True),
        Key("n_layer", "n_layer", 12, synonym="num_hidden_layers"),
        Key("n_head", "n_head", 12, synonym="num_attention_heads"),
        Key("n_embd", "n_embd", 768, synonym="hidden_size"),
        Key("n_inner", "n_inner"),
        Key("n_positions", "block_size", 1024, synonym="max_position_embeddings"),
        Key("n_ctx", "block_size", read=False),
        Key("activation_function", "activation", "gelu_new", aliases={"gelu_pytorch_tanh": "gelu_new"}),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("embd_pdrop", "dropout", read=False),
        Key("attn_pdrop", "dropout", read=False),
        Key("resid_pdrop", "dropout", read=False),
        Key("bias", "bias", True),
    ),
    fixed=(
        Fixed("scale_attn_weights", True, default=True),
        Fixed("scale_attn_by_inverse_layer_idx", False, default=False),
        Fixed("add_cross_attention", False, default=False),
    ),
    tensors={
        "wte": ("transformer.wte",),
        "wpe": ("transformer.wpe",),
        "ln_1": ("transformer.h.{}.ln_1",),
        "attn.c_attn": ("transformer.h.{}.attn.c_attn",),
        "attn.c_proj": ("transformer.h.{}.attn.c_proj",),
        "ln_2": ("transformer.h.{}.ln_2",),
        "mlp.c_fc": ("transformer.h.{}.mlp.c_fc",),
        "mlp.c_proj": ("transformer.h.{}.mlp.c_proj",),
        "ln_f": ("transformer.ln_f",),
        "lm_head": ("lm_head",),
    },
    transposed=True,
    zero_biases=True,
    optional_prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
    gguf=Gguf("gpt2", biases=("qkv_bias", "attn_proj_bias", "mlp_bias", "norm_bias")),
)
