"""What is chosen when nobody chose. The machine's speed is made up here, so that the choices are the same everywhere."""

from dataclasses import replace

import pytest
from conftest import readable
from hypothesis import given, settings as hypothesis_settings, strategies as st

import sampan.training.recipe
from sampan.config import SIZES, DataConfig, TrainConfig, build
from sampan.data.prepare import prepare
from sampan.errors import UserError
from sampan.model.count import flops_per_token
from sampan.report.plan_lines import plan_lines
from sampan.training.cost import Costs, fit_memory, run_seconds, total_memory
from sampan.training.plan import check_processes, make_plan
from sampan.training.recipe import BATCH, EPOCHS, choose, fitting_block, resolved

FLOPS = 2e11  # a second


def measure(engine, model, config, seconds=0.0):
    per_window = flops_per_token(model) * config.block_size / FLOPS
    return Costs(per_window * config.batch_size * config.gradient_accumulation_steps, per_window / 3)


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setattr(sampan.training.recipe, "time_step", measure)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "text.txt").write_text(readable(60_000))
    return prepare(str(folder / "text.txt"), DataConfig(data_dir=str(folder / "data"), tokenizer="char"))


def chosen_for(data, **settings):
    config = build(TrainConfig, settings | {"device": "cpu"})
    chosen, reasons = choose(data, settings, config, None)
    assert chosen.keys() == reasons.keys() and not chosen.keys() & settings.keys()
    config = build(TrainConfig, settings | chosen | {"device": "cpu"})
    return config, resolved(config, data), reasons


@given(st.lists(st.floats(0.01, 1000), min_size=2, max_size=2).map(sorted))
@hypothesis_settings(max_examples=25)
def test_more_minutes_are_never_a_smaller_model_and_are_kept(data, minutes):
    less, more = (chosen_for(data, minutes=m) for m in minutes)
    assert less[0].n_layer <= more[0].n_layer
    for m, (config, model, reasons) in zip(minutes, (less, more), strict=True):
        costs = measure(None, model, config)
        assert run_seconds(config, model, data, costs) <= 60 * m * 1.1 + 3 * costs.step
        epochs = config.max_iters * config.batch_size * config.block_size / data.meta.train_tokens
        assert epochs <= EPOCHS
        assert (
            "epochs" in reasons["max_iters"] or run_seconds(config, model, data, costs) > 60 * m * 0.8 - 2 * costs.step
        )


@given(
    st.fixed_dictionaries(
        {},
        optional=dict(
            n_embd=st.sampled_from([48, 100, 384, 96]), n_layer=st.integers(1, 5), block_size=st.integers(4, 200),
            batch_size=st.integers(1, 9), max_iters=st.integers(1, 99), learning_rate=st.floats(1e-5, 1.0),
            optimizer=st.sampled_from(["adamw", "muon"]), family=st.sampled_from(["gpt2", "llama", "qwen3"]),
            size=st.sampled_from(sorted(SIZES)), patience=st.integers(1, 9), minutes=st.floats(0.01, 5.0),
        ),
    )
)  # fmt: skip
def test_what_is_asked_is_kept_and_built_on(data, settings):
    config, model, _ = chosen_for(data, **settings)
    for name, value in settings.items():
        assert getattr(config, name) == value, name
    assert model.n_embd % model.n_head == 0
    if not {"n_layer", "n_embd"} & settings.keys() and "size" in settings:
        assert model.n_layer == SIZES[settings["size"]]


@pytest.mark.parametrize("settings", [dict(max_iters=31), dict(max_iters=40), dict(max_iters=3000), dict(size="tiny")])
@pytest.mark.parametrize("tuned", [False, True])
def test_evaluations_follow_from_the_steps_and_not_from_the_speed(data, monkeypatch, settings, tuned):
    """A machine under load evaluates when an idle one does, so best weights and patience are the same."""
    given = resolved(build(TrainConfig, {"n_layer": 2, "n_head": 2, "n_embd": 32, "device": "cpu"}), data)
    found = []
    for slower in (1, 300):
        monkeypatch.setattr(
            sampan.training.recipe,
            "time_step",
            lambda *a, slower=slower, **k: Costs(*(slower * c for c in measure(*a, **k))),
        )
        config = build(TrainConfig, settings | {"device": "cpu", "init_from": "base" if tuned else "scratch"})
        found.append(choose(data, settings, config, given if tuned else None)[0])
    assert found[0] == found[1]
    steps = settings.get("max_iters", found[0].get("max_iters"))
    assert steps <= 5 or found[0]["eval_interval"] >= 5, "not after every second step"
    assert steps / found[0]["eval_interval"] <= 20


@pytest.mark.parametrize("count", [2, 7, 8, 64])
@pytest.mark.parametrize("asked", [{}, {"batch_size": 7}, {"gradient_accumulation_steps": 3}, {"block_size": 64}])
@pytest.mark.parametrize("tuned", [False, True])
def test_processes_can_share_the_batch_that_is_chosen(data, monkeypatch, count, asked, tuned):
    usual = choose_with(data, asked, tuned)
    monkeypatch.setenv("WORLD_SIZE", str(count))
    config = choose_with(data, asked, tuned)
    check_processes(config)
    assert all(getattr(config, name) == value for name, value in asked.items())
    if usual.windows_per_step % count == 0:
        assert config.windows_per_step == usual.windows_per_step, "changed only where it must be"


def choose_with(data, asked, tuned):
    given = resolved(build(TrainConfig, {"n_layer": 2, "n_head": 2, "n_embd": 32, "device": "cpu"}), data)
    config = build(TrainConfig, asked | {"device": "cpu", "max_iters": 20})
    chosen, _ = choose(data, asked | {"max_iters": 20}, config, given if tuned else None)
    return build(TrainConfig, vars(config) | chosen)


def test_epochs_are_a_limit_and_alone_the_training(data):
    per_step = 12 * 128
    alone = chosen_for(data, max_epochs=3.0)[0]
    assert alone.max_iters == 3 * data.meta.train_tokens // per_step and alone.minutes is None
    assert chosen_for(data, max_epochs=100.0)[0].max_iters == 100 * data.meta.train_tokens // per_step, "more than 60"
    assert chosen_for(data, max_epochs=3.0, minutes=100.0)[0].max_iters == alone.max_iters, "sooner than the minutes"
    assert chosen_for(data, max_epochs=100.0, minutes=0.01)[0].max_iters < 3000


def test_a_short_text_gets_a_small_model_and_few_steps(tmp_path):
    (tmp_path / "short.txt").write_text(readable(2000))
    config, model, reasons = chosen_for(prepare("short.txt", DataConfig()), minutes=60.0)
    assert model.n_layer == SIZES["tiny"] and "epochs" in reasons["max_iters"]


@pytest.mark.parametrize("characters", [40, 400, 4000, 12_000, 20_000])
@pytest.mark.parametrize("asked", [{}, {"block_size": 20}, {"block_size": 200}])
def test_a_step_reads_no_more_than_a_tenth_of_a_short_text(tmp_path, characters, asked):
    (tmp_path / "short.txt").write_text(readable(characters))
    data = prepare("short.txt", DataConfig(tokenizer="char", val_fraction=0.3))
    config, _, reasons = chosen_for(data, **asked)
    most, usual = data.meta.train_tokens / 10, BATCH["cpu"]
    step = config.batch_size * config.block_size
    assert step <= most or config.batch_size == 1
    assert asked or config.block_size <= fitting_block(data)
    if most >= usual["batch_size"] * usual["block_size"] and not asked:
        assert step == usual["batch_size"] * usual["block_size"] and "tenth" not in reasons["batch_size"]
    else:  # and not much less, where a split is long enough for the block
        assert step > most / 2 or config.block_size == fitting_block(data) or config.batch_size == 12
        assert asked or "a tenth of the text" in reasons["batch_size"]


@given(st.lists(st.integers(1, 40), min_size=2, max_size=2).map(sorted))
def test_a_wider_model_is_fine_tuned_at_no_higher_a_rate(data, widths):
    rates = []
    for heads in widths:
        given = resolved(build(TrainConfig, {"n_head": heads, "n_embd": 64 * heads, "device": "cpu"}), data)
        chosen, reasons = choose(data, {}, TrainConfig(device="cpu"), given)
        assert chosen["decay_lr"] is False and "fine-tuning" in reasons["learning_rate"]
        rates.append(chosen["learning_rate"])
    assert 1e-3 >= rates[0] >= rates[1] >= 3e-5
    assert all(rate == 3e-5 for rate, heads in zip(rates, widths, strict=True) if heads >= 12), "nanoGPT's, for GPT-2"
    assert all(rate == 1e-3 for rate, heads in zip(rates, widths, strict=True) if heads <= 2), "where 3e-5 moves little"


def test_every_choice_is_printed_with_its_reason(tmp_path):
    (tmp_path / "text.txt").write_text(readable(5000))
    plan = make_plan("text.txt", {"minutes": 0.05, "n_head": 1})
    said = "\n".join(plan_lines(plan))
    for name in ("family", "optimizer", "learning_rate", "n_layer", "n_embd", "batch_size", "max_iters", "patience"):
        assert name in plan.reasons and name in said
    assert "n_head:" not in said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert all(line[9] == " " != line[10] for line in said.splitlines()), "two columns: a name, and what it is"


def test_a_configuration_keeps_its_own_recipe(tmp_path):
    (tmp_path / "text.txt").write_text(readable(5000))
    config = make_plan("text.txt", {"block_size": 32}, recipe=False).config
    assert (config.optimizer, config.family, config.patience, config.beta2) == ("adamw", "gpt2", None, 0.95)
    with pytest.raises(UserError, match="minutes and --size"):
        make_plan("text.txt", {"block_size": 32, "minutes": 1.0}, recipe=False)


def test_fit_chooses_a_size_that_fits(data):
    large, large_model, _ = chosen_for(data, minutes=600.0, engine="c")
    limit = total_memory(large_model, replace(large, batch_size=1, gradient_checkpointing=True)) - 1000
    config, model, _ = chosen_for(data, minutes=600.0, engine="c", fit=str(limit))
    assert model.n_layer < large_model.n_layer
    assert total_memory(model, fit_memory(config, model)[0]) <= limit
    least, least_model, _ = chosen_for(data, size="tiny", max_iters=1, engine="c")
    limit = total_memory(least_model, replace(least, batch_size=1, gradient_checkpointing=True)) + 1000
    config, model, _ = chosen_for(data, minutes=600.0, engine="c", fit=str(limit))  # though larger shapes were measured
    assert model.n_layer == SIZES["tiny"] and fit_memory(config, model)[0].batch_size == 1


def test_fit_keeps_the_global_batch(tmp_path):
    (tmp_path / "text.txt").write_text(readable(5000))
    whole = make_plan("text.txt", {"size": "small"})
    before = whole.config.tokens_per_step

    def need(plan):
        return total_memory(plan.model, plan.config)

    windows = whole.config.batch_size

    def in_micro_batches(n, **settings):
        return replace(whole.config, batch_size=n, gradient_accumulation_steps=windows // n, **settings)

    for room, n in (
        (1, 1),
        (2, 2),
        (3, 3),
        (5, 4),
        (11, 6),
    ):  # windows that there is room for, and those that divide 12
        limit = total_memory(whole.model, in_micro_batches(room)) + 1000
        plan = make_plan("text.txt", {"size": "small", "fit": str(limit), "out_dir": f"fit{n}", "engine": "c"})
        assert plan.config.tokens_per_step == before and plan.config.batch_size == n, "the largest that fits"
        assert need(plan) <= limit < need(whole) and not plan.config.gradient_checkpointing
    limit = total_memory(whole.model, in_micro_batches(1, gradient_checkpointing=True)) + 1000
    again = make_plan("text.txt", {"size": "small", "fit": str(limit), "out_dir": "again", "engine": "c"})
    assert again.config.gradient_checkpointing and again.config.tokens_per_step == before and need(again) <= limit
    with pytest.raises(UserError, match="one window at a time needs"):
        make_plan("text.txt", {"size": "small", "fit": "1MB", "out_dir": "third", "engine": "c"})
    with pytest.raises(UserError, match="a size such as"):
        make_plan("text.txt", {"size": "small", "fit": "much", "out_dir": "third"})
