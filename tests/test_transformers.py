"""Our families against Hugging Face transformers: logits, loss, every gradient, greedy text, folders both ways.

The reference is computed live by AutoModelForCausalLM on a folder that we wrote, with random weights in every
parameter, biases and norms too.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_config
from helpers import TOLERANCE, random_config, random_weights, relative_error
from safetensors.numpy import load_file, save_file

from sampan.checkpoint.folder import load_model, load_model_config, save_model
from sampan.checkpoint.huggingface import to_hf_config, to_hf_weights
from sampan.config import FAMILIES, MachineConfig, ModelSettings, SampleConfig, TrainConfig, change
from sampan.engine.open import open_engine
from sampan.model.shape import resolve
from sampan.sampling.draw import generate
from sampan.tokens.characters import characters


def both(seed: int, tmp_path, engine_name: str = "torch"):
    config = random_config(seed)
    weights = random_weights(config, seed)
    save_model(tmp_path, config, weights, None)
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report  # no tensor missing, left over or of another shape
    settings = change(
        TrainConfig(),
        dict(engine=engine_name, device="cpu", dtype="float32", batch_size=3, gradient_accumulation_steps=1),
    )
    engine = open_engine(config, settings, settings)
    engine.load(weights)
    return config, weights, reference.eval(), engine


@pytest.mark.parametrize("seed", range(25))
def test_logits_loss_and_every_gradient(seed, tmp_path, engine_name):
    config, weights, reference, engine = both(seed, tmp_path, engine_name)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (3, config.block_size + 1), dtype=np.int32)
    x, y = ids[:, :-1], ids[:, 1:].copy()
    y[0, :4] = -1

    logits = reference(torch.from_numpy(x).long()).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(y).long().flatten(), ignore_index=-1
    )
    loss.backward()
    assert relative_error(engine.session(3).feed(x), logits[:, -1].detach().numpy()) < TOLERANCE
    assert relative_error(np.array(engine.loss(x, y)), np.array(loss.item())) < TOLERANCE

    engine.accumulate(x, y)
    gradients = to_hf_weights(config, engine.gradients())
    theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    for name, gradient in gradients.items():
        if name.endswith("bias") and not config.qkv_bias:
            continue  # Hugging Face's GPT-2 has biases that are zero in ours
        # A bias on the keys moves all scores of a query alike, so that its true gradient is zero: what is left is
        # rounding, and is measured against the gradient of its whole tensor's neighbour, the weight
        if name.endswith(("k_proj.bias",)):
            size = np.linalg.norm(theirs[name.replace("bias", "weight")])
            assert np.linalg.norm(gradient - theirs[name]) < TOLERANCE * size
            continue
        assert relative_error(gradient, theirs[name]) < TOLERANCE, name


@pytest.mark.parametrize("seed", range(10))
def test_greedy_text_is_equal(seed, tmp_path, engine_name):
    config, _, reference, engine = both(seed, tmp_path, engine_name)
    ids = np.arange(1, 4, dtype=np.int32)  # not 0, which is told to be padding
    count = config.block_size - 3
    theirs = reference.generate(
        torch.from_numpy(ids).long()[None], do_sample=False, max_new_tokens=count, pad_token_id=0, eos_token_id=None
    )
    ours = generate(engine, config, ids, SampleConfig(temperature=0.0))
    assert theirs[0, 3:].tolist() == [int(next(ours)[0]) for _ in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_a_folder_of_theirs_loads_in_ours(seed, tmp_path):
    config, weights, reference, _ = both(seed, tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    again, loaded = load_model(tmp_path / "theirs")
    for field in config.__dataclass_fields__:
        if not (config.family == "gpt2" and field == "rope_theta"):
            assert getattr(again, field) == pytest.approx(getattr(config, field)), field
    for name, weight in weights.items():
        assert np.array_equal(loaded[name], weight), name


@pytest.mark.parametrize(
    "family,changed",
    [
        (
            "gpt2",
            dict(hidden_size=24, n_embd=..., num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=9),
        ),
        ("gpt2", dict(hidden_size=24)),  # beside n_embd: 32, and it wins
        ("mistral", dict(num_attention_heads=16, num_key_value_heads=...)),
        ("llama", dict(num_key_value_heads=None, rope_theta=...)),
        ("llama", dict(rope_theta=..., rope_parameters={"rope_type": "default"})),
    ],
)
def test_a_config_is_read_as_transformers_reads_it(family, changed, tmp_path):
    """Synonyms, and keys that are missing or null."""
    described = to_hf_config(tiny_config(family), {}) | changed
    described = {name: value for name, value in described.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(described))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.random.fork_rng():
        transformers.AutoModelForCausalLM.from_config(theirs).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    assert relative_error(*logits_of_both(tmp_path / "model")) < TOLERANCE
    assert load_model_config(tmp_path / "model").n_layer == theirs.num_hidden_layers


def test_half_precision_and_shards_are_read(tmp_path):
    config, weights, reference, _ = both(2, tmp_path / "ours")
    reference.to(torch.bfloat16).save_pretrained(tmp_path / "theirs", max_shard_size=1000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    _, loaded = load_model(tmp_path / "theirs")
    for name, weight in weights.items():
        assert np.array_equal(loaded[name], torch.from_numpy(weight).bfloat16().float().numpy()), name


def logits_of_both(folder, ids=((1, 2, 3, 4, 5),)):
    """Our logits of a folder and those of transformers, float32 (V,) each."""
    model, weights = load_model(folder)
    engine = open_engine(model, MachineConfig(engine="torch", device="cpu", dtype="float32"))
    engine.load(weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor(ids)).logits[:, -1]
    return engine.session(len(ids)).feed(np.array(ids, np.int32))[0], theirs[0].detach().numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("stored", ["its own head", "the head alone", "the same twice"])
def test_the_head_is_the_one_in_the_file(family, stored, tmp_path):
    """config.json says tied, and the file decides, as in transformers."""
    config = tiny_config(family, tie_word_embeddings=True)
    save_model(tmp_path, config, random_weights(config, 0), None)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(n for n in tensors if n.endswith(("wte.weight", "embed_tokens.weight")))
    tensors["lm_head.weight"] = tensors[name] * np.float32(2 if stored == "its own head" else 1)
    if stored == "the head alone":
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_model_config(tmp_path).tie_word_embeddings == (stored != "its own head")
    assert relative_error(*logits_of_both(tmp_path)) < TOLERANCE
    save_model(tmp_path / "again", *load_model(tmp_path), None)
    ours, theirs = logits_of_both(tmp_path / "again")
    assert relative_error(ours, logits_of_both(tmp_path)[1]) < TOLERANCE and relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize(
    "family,said",
    [
        ("mistral", dict(sliding_window=5)),
        ("mistral", dict(sliding_window=...)),  # 4096, as transformers has it
        ("mistral", dict(sliding_window=99)),
        ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
        ("qwen3", dict(use_sliding_window=True, sliding_window=None)),
    ],
)
def test_a_sliding_window_ends_the_context(family, said, tmp_path, recwarn):
    save_model(tmp_path, tiny_config(family), random_weights(tiny_config(family), 0), None)
    path = tmp_path / "config.json"
    described = json.loads(path.read_text()) | said
    path.write_text(json.dumps({name: value for name, value in described.items() if value is not ...}))
    crops = said.get("sliding_window") == 5
    assert load_model_config(tmp_path).block_size == (5 if crops else tiny_config(family).block_size)
    assert any("cropped from 16 to 5 tokens" in str(warning.message) for warning in recwarn) == crops
    assert relative_error(*logits_of_both(tmp_path)) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_saved_without_its_head_is_read(family, tmp_path):
    """As AutoModel saves it: names without the prefix, and the head is the embedding."""
    config = tiny_config(family, tie_word_embeddings=True)
    weights = random_weights(config, 0)
    save_model(tmp_path / "whole", config, weights, None)
    transformers.AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "bare")
    assert not any(
        name.startswith(("model.", "transformer.")) for name in load_file(tmp_path / "bare/model.safetensors")
    )
    loaded = load_model(tmp_path / "bare")[1]
    assert all(np.array_equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("form", ["archive", "before 1.6", "shards", "half precision"])
def test_a_folder_of_pickled_weights_is_read_as_torch_reads_it(form, tmp_path):
    config, weights, reference, _ = both(0 if form == "before 1.6" else 1, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = reference.to(torch.bfloat16 if form == "half precision" else torch.float32).state_dict()
    if form == "shards":
        index = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
        for file in set(index.values()):
            torch.save({name: t for name, t in tensors.items() if index[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form != "before 1.6")
    loaded = load_model(tmp_path)[1]
    for name, weight in weights.items():
        expected = torch.from_numpy(weight).bfloat16().float().numpy() if form == "half precision" else weight
        assert np.array_equal(loaded[name], expected), name


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_scaled_rotary_positions(scaling, tmp_path, engine_name):
    config = replace(random_config(1), rope_scaling=scaling)
    weights = random_weights(config, 1)
    save_model(tmp_path, config, weights, None)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    engine = open_engine(config, MachineConfig(engine=engine_name, device="cpu", dtype="float32"))
    engine.load(weights)
    ids = np.arange(config.block_size, dtype=np.int32)[None] % config.vocab_size
    theirs = reference(torch.from_numpy(ids).long()).logits[:, -1].detach().numpy()
    assert relative_error(engine.session(1).feed(ids), theirs) < TOLERANCE
    reference.save_pretrained(tmp_path / "theirs")
    assert load_model_config(tmp_path / "theirs").rope_scaling == scaling
    plain = open_engine(random_config(1), MachineConfig(engine=engine_name, device="cpu", dtype="float32"))
    plain.load(weights)
    assert relative_error(plain.session(1).feed(ids), theirs) > 1e-3  # the scaling is what is tested


def test_the_tokenizer_travels_with_the_model(tmp_path):
    tokenizer = characters("hello, 世界\n")
    config = resolve(ModelSettings(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=tokenizer.vocab_size))
    save_model(tmp_path, config, random_weights(config, 0), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "hello, 世  oo\n\nhe"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs(text)["input_ids"]) == text
