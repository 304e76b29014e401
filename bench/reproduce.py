"""Reproduce the losses that nanoGPT, its tutorials and llm.c publish, and print both in a table.

    python bench/reproduce.py                          # everything that takes a CPU a few minutes; a table at the end
    python bench/reproduce.py --only sanzijing llmc    # only these, including runs that need weights or a GPU
    python bench/reproduce.py --llmc ../llm.c          # also run llm.c's own programs, from a clone where they are built
    python bench/reproduce.py --list                   # print the commands and what each needs; run nothing

RUNS is the only list of runs: docs/REPRODUCE.md explains it, and tests/test_reproduce.py keeps the two in step. Each run
has its own folder, with the output in log.txt, in a temporary folder or in --work. Texts come from the cache,
SAMPAN_MIRROR or their addresses. The exit status is 1 if a command failed. The script does not judge whether two losses
are close enough.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contest import machine

from sampan.checkpoint.folder import load_model
from sampan.checkpoint.run import Run as Folder
from sampan.config import change
from sampan.data.meta import open_folder
from sampan.engine.open import open_engine

BUILT = Path(__file__).resolve().parents[1] / "csrc" / "build"  # where `make -C csrc` puts sampan-c
SAMPLES = 1000  # random windows of a split, to see how much they differ


# ---- reading a run's output ----


def evaluations(output: str) -> list[tuple[int, float, float]]:
    """Return (step, train loss, val loss) of each evaluation of the last training in an output of sampan or sampan-c."""
    lines = re.findall(r"^step (\d+): train loss ([\d.]+), val loss ([\d.]+)$", output, re.M)
    found = [(int(step), float(train), float(val)) for step, train, val in lines]
    starts = [number for number, (step, _, _) in enumerate(found) if step == 0]
    return found[starts[-1] :]


def last(output: str) -> str:
    """Return the last evaluation's losses, "train / val"."""
    _, train, val = evaluations(output)[-1]
    return f"{train:.4f} / {val:.4f}"


def best(output: str) -> str:
    """Return the lowest val loss."""
    return f"val {min(val for _, _, val in evaluations(output)):.4f}"


def curve(output: str) -> str:
    """Return the first and last of the val losses that llm.c prints, one every ten of its 41 steps."""
    vals = re.findall(r"^val loss ([\d.]+)$", output, re.M)
    return f"val {float(vals[0]):.4f} to {float(vals[-1]):.4f}"


def tokens(output: str) -> str:
    """Return the token counts of both splits, "train / val"."""
    return " / ".join(re.search(r"([\d,]+) train tokens, ([\d,]+) val tokens", output).groups())


# ---- the runs ----


@dataclass(frozen=True)
class Run:
    name: str
    published: str  # train / val loss in nats per token, unless the text says otherwise
    commands: tuple[str, ...]
    read: Callable[[str], str] = last  # called with the output of all commands
    needs: str = ""  # in addition to a CPU and the texts; such a run needs --only
    random_windows: str = ""  # the run's folder, if the published loss is measured on random windows
    llmc: tuple[str, ...] = ()  # programs of llm.c that read the files of the commands


CPU = (
    "sampan train configs/shakespeare_char.toml --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
SMALL = (  # a small GPT-2 with random weights
    "sampan train configs/gpt2_124m.toml --dataset=chuck_norris --vocab_size=auto --bias=True --n_layer=4 --n_head=4 "
    "--n_embd=128 --block_size=256 --batch_size=1 --gradient_accumulation_steps=1 --eval_iters=1 --max_iters=0 "
    "--out_dir=out/small"
)
FOR_LLMC = "sampan export tinyshakespeare --to llmc --out dev/data/tinyshakespeare"
TRAIN_AS_LLMC = (
    "sampan-c train --recipe=llmc --init_from=gpt2_124M.bin --out_dir=out/llmc "
    "--input_bin=dev/data/tinyshakespeare/tiny_shakespeare_train.bin "
    "--input_val_bin=dev/data/tinyshakespeare/tiny_shakespeare_val.bin"
)
TEST_AS_LLMC = "sampan-c test --init_from=gpt2_124M.bin --debug_state=gpt2_124M_debug_state.bin"
WEIGHTS = "GPT-2's weights"
RUNS = (
    Run("shakespeare", "1.7640 / 1.8925", (CPU,), random_windows="out/shakespeare_char"),
    Run(
        "sanzijing",
        "0.0445 / 8.9908",
        ("sampan train configs/sanzijing_char.toml",),
        random_windows="out/sanzijing_char",
    ),
    Run("shuihu", "4.2661 / 4.8593", ("sampan train configs/shuihu_char.toml",), random_windows="out/shuihu_char"),
    Run(
        "finetune",
        "none",
        (SMALL, "sampan train configs/finetune_chuck_norris.toml --init_from=out/small"),
    ),
    Run(
        "llmc",
        "none",
        (SMALL, "sampan export out/small --to llmc --out . --debug_state", FOR_LLMC, TRAIN_AS_LLMC, TEST_AS_LLMC),
        curve,
        llmc=("train_gpt2", "test_gpt2"),
    ),
    Run(
        "llmc-tokens",
        "305,260 / 32,768",
        (FOR_LLMC, "sampan import dev/data/tinyshakespeare/tiny_shakespeare_train.bin"),
        tokens,
    ),
    Run("finetune-gpt2", "none", ("sampan train configs/finetune_chuck_norris.toml",), needs=WEIGHTS),
    Run(
        "llmc-gpt2",
        "val 5.2520 to 4.1078",
        ("sampan export gpt2 --to llmc --out . --debug_state", FOR_LLMC, TRAIN_AS_LLMC, TEST_AS_LLMC),
        curve,
        needs=WEIGHTS,
        llmc=("train_gpt2", "test_gpt2"),
    ),
    *(
        Run(
            name.replace("_", "-"),
            published,
            (f"sampan train configs/eval_{name}.toml",),
            needs=f"{WEIGHTS}, openwebtext and a GPU",
        )
        for name, published in (
            ("gpt2", "3.11 / 3.12"),
            ("gpt2_medium", "2.85 / 2.84"),
            ("gpt2_large", "2.66 / 2.67"),
            ("gpt2_xl", "2.56 / 2.54"),
        )
    ),
    Run("shakespeare-gpu", "val 1.4697", ("sampan train configs/shakespeare_char.toml",), best, needs="a GPU"),
    Run(
        "gpt2-124m",
        "val about 2.85",
        ("torchrun --standalone --nproc_per_node=8 -m sampan train configs/gpt2_124m.toml",),
        best,
        needs="openwebtext and 8 GPUs for days",
    ),
)


# ---- running them ----


class Failed(Exception):
    """Say which command could not be started or ended with an error, and why."""


def run(command: str, folder: Path, programs: dict[str, str]) -> str:
    """Run a command and append its output to log.txt. Return the output. Raise Failed if its exit status is not 0."""
    name, *rest = shlex.split(command)
    start = (
        [sys.executable, "-m", "sampan", "--lang=en"]
        if name == "sampan"
        else [programs.get(name) or shutil.which(name)]
    )
    if start == [None]:
        build = ": make -C csrc builds it" if name == "sampan-c" else ""
        raise Failed(f"{name} was not found{build}")
    done = subprocess.run([*start, *rest], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode("utf-8", "replace")
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"$ {command}\n{output}\n")
    if done.returncode:
        raise Failed(
            f"{name} failed with status {done.returncode}: {output.strip().splitlines()[-1:]}; see {folder / 'log.txt'}"
        )
    return output


def scatter(folder: Path) -> str:
    """Measure the final weights on random windows. Return a sentence with the means and standard deviations.

    The deviation is that of an evaluation of as many windows as the run's own evaluations read. nanoGPT draws its windows
    at random, so its published losses vary by as much.
    """
    found = Folder(folder)
    config, data = found.settings(), open_folder(folder.parents[1] / found.data()["folder"])
    model, weights = load_model(found.last)
    engine = open_engine(model, change(config, {"threads": 1}))  # a window is too little to share
    engine.load(weights)
    draw = np.random.default_rng(0)
    means, deviations = [], []
    for ids in (data.train, data.val):
        starts = draw.integers(0, len(ids) - model.block_size, SAMPLES)
        windows = np.stack([ids[s : s + model.block_size + 1] for s in starts]).astype(np.int32)
        losses = [engine.loss(w[None, :-1].copy(), w[None, 1:].copy()) for w in windows]
        means.append(np.mean(losses))
        deviations.append(np.std(losses) / (config.eval_iters * config.batch_size) ** 0.5)
    return "{:.3f} / {:.3f}, and one evaluation moves by {:.3f} / {:.3f}".format(*means, *deviations)


def compare(ours: str, theirs: str) -> str:
    """Return a sentence with the largest difference between both programs' losses, and the result of llm.c's test."""
    pattern = r"^(?:step \d+: train loss|val loss) ([\d.]+)"
    pairs = list(zip(re.findall(pattern, ours, re.M), re.findall(pattern, theirs, re.M), strict=True))
    apart = max(abs(float(a) - float(b)) for a, b in pairs)
    val = re.findall(r"^val loss ([\d.]+)$", theirs, re.M)
    agrees, differs = (len(re.findall(line, theirs, re.M)) for line in ("^TENSOR OK", "^TENSOR NOT OK"))
    return (
        f"llm.c prints {len(pairs)} losses, val {float(val[0]):.4f} to {float(val[-1]):.4f}, within {apart:.1g} "
        f"of ours; its test finds {agrees} gradients right and {differs} wrong"
    )


def execute(item: Run, folder: Path, programs: dict[str, str], llmc: Path | None, engine: str | None) -> str:
    """Run all commands of an item in a new folder. Return the losses that it reads from the output. Raise Failed."""
    folder.mkdir(parents=True)
    output = ""
    for command in item.commands:
        if engine and command.startswith("sampan train"):
            command += f" --engine={engine}"
        print(
            textwrap.indent(textwrap.fill(command, 76, break_long_words=False, break_on_hyphens=False), "  "),
            flush=True,
        )
        output += run(command, folder, programs)
    if item.random_windows:
        print(f"  {SAMPLES:,} random windows: {scatter(folder / item.random_windows)}")
    if llmc and item.llmc:
        theirs = "\n".join(run(name, folder, {name: str(llmc / name)}) for name in item.llmc)
        print(textwrap.indent(textwrap.fill(compare(output, theirs), 76), "  "))
    return item.read(output)


def listing(items: tuple[Run, ...]) -> str:
    """Return the text of --list."""
    lines = []
    for item in items:
        lines.append(f"{item.name}: published {item.published}" + (f"; needs {item.needs}" if item.needs else ""))
        lines += [f"    {command}" for command in item.commands]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=[item.name for item in RUNS], metavar="NAME", help="run only these"
    )
    parser.add_argument("--list", action="store_true", help="print the commands of every run, and run nothing")
    parser.add_argument("--work", type=Path, help="folder to work in and keep (default: a temporary one)")
    parser.add_argument("--engine", choices=("c", "torch"), help="engine of sampan train")
    parser.add_argument(
        "--llmc", type=Path, metavar="FOLDER", help="clone of llm.c with train_gpt2 and test_gpt2 built"
    )
    args = parser.parse_args()
    if args.list:
        print(listing(RUNS))
        return 0
    chosen = [item for item in RUNS if (item.name in args.only if args.only else not item.needs)]
    programs = {"sampan-c": shutil.which("sampan-c", path=BUILT)}
    print(machine())
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        for item in chosen:
            print(f"\n{item.name}, published {item.published}", flush=True)
            start = time.perf_counter()
            try:
                if (work / item.name).exists():
                    raise Failed(f"{work / item.name} already exists")
                here = execute(item, work / item.name, programs, args.llmc and args.llmc.resolve(), args.engine)
            except Failed as error:
                here, failed = "failed", True
                print(f"  {error}")
            rows.append((item.name, item.published, here, f"{time.perf_counter() - start:.0f} s"))
    print(f"\n{'run':<18}{'published':>20}{'here':>24}{'time':>10}")
    for row in rows:
        print("{:<18}{:>20}{:>24}{:>10}".format(*row))
    if not args.only:
        rest = ", ".join(f"{item.name} ({item.needs})" for item in RUNS if item.needs)
        print(textwrap.fill(f"not run, because they need more (use --only NAME): {rest}", 80, break_on_hyphens=False))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
