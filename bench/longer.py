"""Compare a finished run that goes on for as many steps again with a run that was planned for all of them.

    python bench/longer.py --text tinyshakespeare.txt --steps 1000 --seeds 1 2 3 4 [--size tiny --block_size 32 ...]

For each seed: the val loss of a run of N steps, of one of 2 N, and of the first after `--resume --max_iters 2N`, of the
last weights over the whole val split. Losses do not depend on the machine's load. Settings of `sampan train` follow.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from sampan.engine.open import open_engine
from sampan.evaluation.losses import final_loss
from sampan.training.loop import train
from sampan.training.plan import Plan, make_plan


def last_loss(plan: Plan) -> float:
    engine = open_engine(plan.model, plan.config, plan.config)
    for _record in train(plan, engine):
        pass
    return final_loss(engine, plan.data, plan.config)[0]


def measure(text: str, steps: int, seed: int, settings: dict) -> tuple[float, float, float]:
    """Return the losses of N steps, of 2 N planned, and of N that went on to 2 N."""
    with tempfile.TemporaryDirectory() as folder:
        short, long = f"{folder}/short", f"{folder}/long"
        common = {"data_dir": f"{folder}/data", "seed": seed, "patience": None, "eval_interval": steps // 4} | settings
        first = last_loss(make_plan(text, common | {"max_iters": steps, "out_dir": short}))
        planned = last_loss(make_plan(text, common | {"max_iters": 2 * steps, "out_dir": long}))
        gone_on = last_loss(make_plan(None, {"init_from": "resume", "out_dir": short, "max_iters": 2 * steps}))
        return first, planned, gone_on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    args, rest = parser.parse_known_args()
    settings = dict(zip((word.removeprefix("--") for word in rest[::2]), rest[1::2], strict=True))
    rows = []
    for seed in args.seeds:
        rows.append(measure(str(Path(args.text).resolve()), args.steps, seed, settings))
        first, planned, gone_on = rows[-1]
        about = f"{args.steps} steps {first:.4f}, {2 * args.steps} planned {planned:.4f}, gone on {gone_on:.4f}"
        print(f"seed {seed}: {about} ({gone_on - planned:+.4f})", flush=True)
    planned = [row[1] for row in rows]
    print(f"mean difference {statistics.fmean(g - p for _, p, g in rows):+.4f}; the planned runs differ", end=" ")
    print(f"by up to {max(planned) - min(planned):.4f} (standard deviation {statistics.stdev(planned):.4f})")


if __name__ == "__main__":
    main()
