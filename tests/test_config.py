"""config.py: every setting is described and checked in one place; files are read, never executed.

Flags, TOML and nanoGPT's .py are three ways to the same values. nanoGPT's numbers below are the definition
of its recipe.
"""

import dataclasses
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import sampan
from sampan.cli.flags import make_parser
from sampan.cli.main import COMMANDS
from sampan.config import SampleConfig, TrainConfig, build, change, check_keys, convert, types_of
from sampan.config_files import find_file, read_file
from sampan.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "src" / "sampan" / "configs").glob("*.toml"))
FIELDS = [(cls, f) for cls in (TrainConfig, SampleConfig) for f in dataclasses.fields(cls)]
NAMES = [f"{cls.__name__}.{f.name}" for cls, f in FIELDS]
OPTIONAL = [(cls, f.name) for cls, f in FIELDS if types_of(cls)[f.name][1] and f.name != "start"]


def write(text: str, name: str) -> Path:
    Path(name).write_text(text, encoding="utf-8")
    return Path(name)


def parser_of(command: str):
    return make_parser(command, COMMANDS[command])


# ---- settings ----


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=NAMES)
def test_a_setting_has_help_and_a_default_that_it_allows(cls, field):
    assert field.metadata["help"].strip()
    assert field.default is not dataclasses.MISSING
    assert convert(cls, field.name, field.default) == field.default


SAYABLE = [
    (cls, f) for cls, f in FIELDS if f.default is not None and types_of(cls)[f.name][0] in (int, float, bool, str)
]


@pytest.mark.parametrize(("cls", "field"), SAYABLE, ids=[f"{c.__name__}.{f.name}" for c, f in SAYABLE])
def test_a_default_given_as_a_flag_is_the_default(cls, field):
    assert convert(cls, field.name, str(field.default)) == field.default
    args = vars(parser_of("train" if cls is TrainConfig else "sample").parse_args([f"--{field.name}={field.default}"]))
    assert getattr(build(cls, {field.name: args[field.name]}), field.name) == field.default


@pytest.mark.parametrize(("cls", "name"), OPTIONAL, ids=[f"{c.__name__}.{n}" for c, n in OPTIONAL])
def test_auto_is_what_help_shows_for_an_unset_value(cls, name):
    assert convert(cls, name, "auto") is None


def test_a_prompt_may_be_the_word_auto():
    assert convert(SampleConfig, "start", "auto") == "auto" and convert(SampleConfig, "start", "None") == "None"


@pytest.mark.parametrize("command", ["prepare", "train", "plan", "sample"])
def test_help_shows_every_flag(command):
    shown = parser_of(command).format_help()
    for f in dataclasses.fields(COMMANDS[command].settings):
        assert (f"--{f.name} " in shown) == (f.name != "rope_scaling"), f.name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_short_and_says_what_it_leaves_out(command):
    first, settings = COMMANDS[command].first, COMMANDS[command].settings
    shown = make_parser(command, COMMANDS[command], everything=False).format_help()
    named = [f.name for f in dataclasses.fields(settings) if f"--{f.name} " in shown]
    assert sorted(named) == sorted(first or (f.name for f in dataclasses.fields(settings)))
    assert (f"more flags: sampan {command} --help all" in shown) == bool(first)
    assert len(shown.splitlines()) <= 50, "one look at a terminal"


def test_the_whole_help_is_in_groups_by_topic():
    shown = parser_of("train").format_help()
    order = [shown.index(f"\n{title}:\n") for title in ("training", "model", "data", "machine")]
    assert order == sorted(order)
    for title, flag in (("model", "--n_layer"), ("data", "--tokenizer"), ("machine", "--device")):
        group = shown[shown.index(f"\n{title}:\n") + 1 :].split("\n\n")[0]
        assert f"  {flag} " in group


@given(
    st.integers(1, 4096),
    st.floats(1e-9, 1.0),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
def test_flags_round_trip(n, x, b, s):
    config = build(TrainConfig, {"n_layer": str(n), "learning_rate": str(x), "bias": str(b), "dataset": s})
    assert (config.n_layer, config.learning_rate, config.bias, config.dataset) == (n, x, b, (s,))
    assert build(TrainConfig, dataclasses.asdict(config)) == config


def test_every_flag_spelling_of_nanogpt():
    parser = parser_of("train")
    one = parser.parse_args(["--compile=False", "--n_layer=4", "--learning_rate=1e-3", "--max_iters=1e3"])
    two = parser.parse_args(["--compile", "False", "--n_layer", "4", "--learning_rate", "1e-3", "--max_iters", "1000"])
    settings = [{k: v for k, v in vars(a).items() if v is not None and k != "source"} for a in (one, two)]
    assert build(TrainConfig, settings[0]) == build(TrainConfig, settings[1])
    assert build(TrainConfig, settings[0]).max_iters == 1000 and build(TrainConfig, settings[0]).compile is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layer", "0"), ("n_layer", "1.5"), ("n_layer", "x"), ("n_layer", ""), ("n_layer", "nan"),
        ("n_layer", "inf"), ("n_layer", None), ("n_layer", [1]), ("n_layer", "auto"), ("learning_rate", "-1"),
        ("n_layer", True),
        ("learning_rate", "nan"), ("learning_rate", "inf"), ("learning_rate", "1e999"),
        ("learning_rate", True),
        ("learning_rate", {}), ("dropout", "1"), ("beta2", "1.0"), ("bias", "2"), ("bias", "ja"),
        ("family", "bert"),
        ("dtype", "int8"), ("val_fraction", "0.95"), ("threads", "0"), ("rope_scaling", "linear"),
        ("seed", "-1"),
        ("seed", "1" + "0" * 30), ("dataset", None), ("dataset", ["a", 1]), ("dataset", 5), ("out_dir", {"a": 1}),
        ("max_iters", "9" * 5000),
    ],
    ids=lambda v: repr(v)[:16],
)  # fmt: skip
def test_a_value_out_of_type_or_range_is_one_sentence_with_its_name(name, value):
    with pytest.raises(UserError) as error:
        convert(TrainConfig, name, value)
    assert str(error.value).startswith(name) and "\n" not in str(error.value)


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.sampled_from(dataclasses.fields(TrainConfig)), anything)
def test_any_value_is_converted_or_refused(field, value):
    try:
        result = convert(TrainConfig, field.name, value)
    except UserError:
        return
    kind, optional = types_of(TrainConfig)[field.name]
    assert isinstance(result, typing.get_origin(kind) or kind) or (optional and result is None)
    assert convert(TrainConfig, field.name, result) == result


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda f: f.name)
def test_a_slip_of_the_pen_is_told_the_nearest_name(field):
    with pytest.raises(UserError, match=rf"{field.name}x.*did you mean {field.name}\?"):
        check_keys(TrainConfig, [field.name + "x"], "here")


@pytest.mark.parametrize(("slip", "near"), [("promt", "prompt"), ("prompts", "prompt"), ("tempratur", "temperature")])
def test_a_slip_in_sampling_too(slip, near):
    with pytest.raises(UserError, match=f"did you mean {near}"):
        check_keys(SampleConfig, [slip], "command line")


def test_change_checks_what_it_changes():
    config = TrainConfig()
    assert change(config, {"n_layer": "3"}).n_layer == 3 and config.n_layer == 12
    with pytest.raises(UserError, match="n_layer"):
        change(config, {"n_layer": 0})
    with pytest.raises(UserError, match="did you mean n_layer"):
        change(config, {"n_layers": 1})


# ---- TOML ----


def test_toml_gives_the_values_that_flags_give():
    path = write('dataset = "三国.txt"\nn_layer = 4\nlearning_rate = 1e-3\nbias = true\n# a note\n', "a.toml")
    assert read_file(path) == {"dataset": "三国.txt", "n_layer": 4, "learning_rate": 1e-3, "bias": True}


@pytest.mark.parametrize("name", ["a.toml", "a.py"])
def test_a_byte_order_mark_is_no_part_of_a_file(name):
    assert read_file(write("\ufeffseed = 1\n", name)) == {"seed": 1}


BAD_TOML = {
    "not toml": "n_layer = ", "key twice": "seed = 1\nseed = 2", "unknown key": "n_layers = 4",
    "table": "[n_layer]\na = 1",
    "wrong type": "n_layer = 'four'", "range": "dropout = 2.0", "date": "n_layer = 1979-05-27",
    "nan": "learning_rate = nan",
    "deep": "seed = " + "[" * 100_000, "long number": "seed = " + "9" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_TOML.values(), ids=BAD_TOML)
def test_a_bad_toml_is_one_sentence_with_its_path(text):
    with pytest.raises(UserError, match=r"bad\.toml"):
        read_file(write(text, "bad.toml"))


@pytest.mark.parametrize("name", ["bad.toml", "bad.py"])
def test_what_is_no_text_is_one_sentence(name):
    Path(name).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=name):
        read_file(name)
    Path(name).unlink()
    Path(name).mkdir()
    with pytest.raises(UserError, match=name):
        read_file(name)


def test_a_missing_recipe_names_those_that_ship():
    with pytest.raises(UserError, match=r"no such file.*shakespeare_char\.toml"):
        find_file("configs/nothing.toml")


# ---- nanoGPT's .py ----

FINETUNE = """
import time
from math import pi

'''a note'''
out_dir = 'out-boat'
eval_interval = 5  # steps
eval_iters = 8 * 5
wandb_log = False # feel free to turn on
wandb_project = 'boats'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl' # this is the largest GPT-2

# one micro-batch is 1 window x 32
batch_size = 1
gradient_accumulation_steps = 5 * 8
max_iters = (20 + 2 ** 1) if False else 20
"""


def test_the_shape_of_nanogpts_finetune_file_is_read():
    last = "(20 + 4) // 2 - -1\nlearning_rate = 3e-5 / 2"
    path = write(FINETUNE.replace("(20 + 2 ** 1) if False else 20", last), "finetune.py")
    before = time.time()
    settings = read_file(path)
    assert before <= float(settings.pop("wandb_run_name").removeprefix("ft-")) <= time.time()
    assert settings == {
        "out_dir": "out-boat", "eval_interval": 5, "eval_iters": 40, "wandb_log": False,
        "wandb_project": "boats",
        "dataset": "tinyshakespeare", "tokenizer": "gpt2", "init_from": "gpt2-xl", "batch_size": 1,
        "gradient_accumulation_steps": 40, "max_iters": 13, "learning_rate": 1.5e-5,
    }  # fmt: skip
    build(TrainConfig, settings)


def test_what_is_more_than_arithmetic_is_refused_with_its_line():
    with pytest.raises(UserError, match=rf"finetune\.py, line {FINETUNE.count(chr(10))}: .*never executed"):
        read_file(write(FINETUNE, "finetune.py"))


def test_names_assigned_above_can_be_used():
    settings = read_file(write("max_iters = 100\nlr_decay_iters = max_iters * 2\n", "a.py"))
    assert settings == {"max_iters": 100, "lr_decay_iters": 200}
    with pytest.raises(UserError, match="line 1"):
        read_file(write("lr_decay_iters = max_iters\nmax_iters = 100\n", "a.py"))


numbers = st.integers(0, 99).map(str) | st.sampled_from(["0.5", "1e-3", ".25", "1_000"])
operators = st.sampled_from([" + ", " - ", " * ", " / ", " // ", " % "])
grow = lambda e: st.tuples(e, operators, e).map(lambda t: f"({''.join(t)})") | e.map("-{}".format)  # noqa: E731


@given(st.recursive(numbers, grow, max_leaves=8))
def test_arithmetic_is_pythons(expression):
    import ast

    from sampan.config_files import evaluate_expression

    try:
        expected = eval(expression)  # the oracle; our own digits and operators
    except ArithmeticError:
        return
    assert evaluate_expression(ast.parse(expression, mode="eval").body, {}) == expected


EVIL = {
    "import": "out_dir = __import__('os').system('touch evil')",
    "open": "out_dir = open('evil', 'w').write('x')",
    "statement": "open('evil', 'w').write('x')",
    "function": "def f():\n    open('evil', 'w')\nf()",
    "class": "class A:\n    open('evil', 'w')",
    "decorated": "@open('evil', 'w').write\ndef f(): pass",
    "with": "with open('evil', 'w'): seed = 1",
    "if": "if open('evil', 'w'): seed = 1",
    "comprehension": "seed = [open('evil', 'w') for _ in range(2)]",
    "lambda": "seed = (lambda: open('evil', 'w'))()",
    "f-string": "out_dir = f\"{open('evil', 'w')}\"",
    "walrus": "seed = (x := open('evil', 'w'))",
    "attribute": "seed = (1).__class__",
    "str of a call": "out_dir = str(open('evil', 'w'))",
    "exec": "exec(\"open('evil', 'w')\")",
    "target": "open('evil', 'w').x = 1",
    "subscript": "a = {}\na[open('evil', 'w')] = 1",
    "annotated": "seed: open('evil', 'w') = 1",
    "augmented": "seed = 1\nseed += 1",
    "two targets": "seed = max_iters = 1",
    "starred": "seed, max_iters = 1, 2",
    "keyword": "seed = int('1', base=open('evil', 'w'))",
    "conditional": "seed = 1 if open('evil', 'w') else 2",
    "type": "seed = 1 + None",
    "zero": "seed = 1 // 0",
    "unknown key": "n_layers = 4",
    "not python": "seed = = 1",
    "zero byte": "seed = 1\0",
    "deep": "seed = " + "(" * 5000 + "1" + ")" * 5000,
    "deep minus": "seed = " + "-" * 20_000 + "1",
    "long sum": "seed = " + "1 + " * 20_000 + "1",
}


@pytest.mark.parametrize("text", EVIL.values(), ids=EVIL)
def test_a_file_is_never_executed(text):
    with pytest.raises(UserError, match=r"^bad\.py"):
        read_file(write(text, "bad.py"))
    assert not Path("evil").exists()


HUGE = {
    "power": "seed = 10 ** 10 ** 10",
    "shift": "seed = 1 << (1 << 40)",
    "repeated string": "out_dir = 'a' * 10 ** 9",
    "repeated string, no power": "out_dir = 1000000000000 * 'a'",
    "repeated list": "seed = [0] * 1000000000000",
    "format": "out_dir = '%1000000000d' % 1",
    "doubled string": "out_dir = 'aaaaaaaa'\n" + "out_dir = out_dir + out_dir\n" * 40,
    "squared number": "seed = 99999999999\n" + "seed = seed * seed\n" * 40,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_small_file_cannot_ask_for_a_huge_value(text):
    """In a process of its own, which may have 1 GB and a few seconds."""
    pytest.importorskip("resource")
    path = write(text, "bad.py")
    code = (
        "import resource, sys; from sampan.errors import UserError; from sampan.config_files import read_file\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5))\n"
        "try: read_file(sys.argv[1])\n"
        "except UserError as error: print(len(str(error)), 'UserError')\n"
    )
    environment = {"PYTHONPATH": str(Path(sampan.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout.endswith("UserError\n"), done.stderr[-300:]
    assert int(done.stdout.split()[0]) < 1000  # and the sentence is short


# ---- the recipes that ship ----

CHAR_ON_CPU = dict(
    eval_interval=250, eval_iters=20, log_interval=10, gradient_accumulation_steps=1, batch_size=12,
    block_size=64,
    n_layer=4, n_head=4, n_embd=128, dropout=0.0, learning_rate=1e-3, max_iters=2000, lr_decay_iters=2000,
    min_lr=1e-4,
    beta2=0.99, warmup_iters=100, tokenizer="char",
)  # fmt: skip
ON_GPU = dict(
    eval_iters=200, batch_size=64, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2,
    max_iters=5000,
    lr_decay_iters=5000, always_save_checkpoint=False,
)  # fmt: skip
FINE_TUNE = dict(
    eval_interval=5, eval_iters=40, always_save_checkpoint=False, batch_size=1,
    gradient_accumulation_steps=32,
    learning_rate=3e-5, decay_lr=False, tokenizer="gpt2",
)  # fmt: skip
EVALUATION = dict(eval_only=True, eval_iters=500, batch_size=8, dataset="openwebtext", tokenizer="gpt2")
NANOGPT = {
    "shakespeare_char": CHAR_ON_CPU | ON_GPU | dict(dataset="tinyshakespeare"),
    "sanzijing_char": CHAR_ON_CPU | dict(dataset="sanzijing"),
    "shuihu_char": CHAR_ON_CPU | dict(dataset="shuihu"),
    "finetune_shakespeare": FINE_TUNE | dict(dataset="tinyshakespeare", init_from="gpt2-xl", max_iters=20),
    "finetune_chuck_norris": FINE_TUNE | dict(dataset="chuck_norris"),
    "gpt2_124m": dict(
        n_layer=12, n_head=12, n_embd=768, batch_size=12, block_size=1024, gradient_accumulation_steps=40,
        max_iters=600000,
        lr_decay_iters=600000, warmup_iters=2000, learning_rate=6e-4, min_lr=6e-5, weight_decay=0.1,
        beta1=0.9, beta2=0.95,
        grad_clip=1.0, eval_interval=1000, eval_iters=200, log_interval=10, dropout=0.0, bias=False,
        vocab_size=50304,
    ),
    "eval_gpt2": EVALUATION | dict(init_from="gpt2"),
    "eval_gpt2_medium": EVALUATION | dict(init_from="gpt2-medium"),
    "eval_gpt2_large": EVALUATION | dict(init_from="gpt2-large"),
    "eval_gpt2_xl": EVALUATION | dict(init_from="gpt2-xl"),
}  # fmt: skip


def test_no_recipe_is_missing_here():
    assert [p.stem for p in CONFIGS] == sorted(NANOGPT)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_recipe_is_nanogpts(path):
    settings = read_file(find_file(path.name))
    config = build(TrainConfig, settings)
    wanted = dict(NANOGPT[path.stem])
    if "dataset" in wanted:
        wanted["dataset"] = (wanted["dataset"],)
    found = {name: getattr(config, name) for name in wanted}
    assert found | {"bias": bool(config.bias)} == {"bias": False} | wanted  # auto: gpt2 has none
