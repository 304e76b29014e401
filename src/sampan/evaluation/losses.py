"""Mean losses of a model over batches.

    loss = evaluate(engine, EvaluationBatches(tokens, block_size=64, batch_size=12, batches=20))
    loss, tokens = final_loss(engine, data, config)

It draws nothing: the batches are fixed.
"""

from collections.abc import Callable, Iterable, Iterator

from sampan.config import TrainConfig
from sampan.data.examples import Batch
from sampan.data.meta import Data
from sampan.data.windows import EvaluationBatches
from sampan.engine.protocol import Engine
from sampan.messages import _
from sampan.progress import Progress, silent

MOST_TOKENS = 2_000_000  # of a val split, that the last look at a model reads


def evaluate(engine: Engine, batches: Iterable[Batch]) -> float:
    """Return the mean loss per target over all batches, in nats."""
    return add_losses(engine, batches)[0]


def add_losses(engine: Engine, batches: Iterable[Batch]) -> tuple[float, int]:
    """Return the mean loss per target over all batches, in nats, and the number of targets."""
    total, count = 0.0, 0
    for x, y in batches:
        targets = int((y != -1).sum())
        total, count = total + engine.loss(x, y) * targets, count + targets
    return total / count, count


def final_loss(
    engine: Engine,
    data: Data,
    config: TrainConfig,
    progress: Progress = silent,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[float, int]:
    """Return the loss over `final_windows` of the val split, and the number of tokens read.

    When `stopped` becomes true, it is the loss over what was read until then.
    """
    count = -(-final_windows(config, data) // config.batch_size)
    batches = EvaluationBatches(data.val, config.block_size, config.batch_size, count, config.vocab_size)

    def read() -> Iterator[Batch]:
        with progress(_("loss over the val split"), len(batches)) as tick:
            for batch in batches:
                yield batch
                tick(1)
                if stopped():
                    return

    return add_losses(engine, read())


def final_windows(config: TrainConfig, data: Data) -> int:
    """Return how many windows of val the last look at a model reads: all, but at most MOST_TOKENS and a third of the
    windows that it was trained on, which takes about a tenth of the training time. No fewer than an evaluation reads.
    """
    most = max(config.max_iters * config.windows_per_step // 3, config.eval_iters * config.batch_size)
    return min(most, MOST_TOKENS // config.block_size + 1, data.meta.val_tokens // config.block_size)
