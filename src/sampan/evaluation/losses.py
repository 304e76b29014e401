"""Mean losses of a model over batches.

    loss = evaluate(engine, EvaluationBatches(tokens, block_size=64, batch_size=12, batches=20))

It draws nothing: the batches are fixed.
"""

from collections.abc import Iterable

from sampan.config import TrainConfig
from sampan.data.examples import Batch
from sampan.data.meta import Data
from sampan.data.windows import EvaluationBatches
from sampan.engine.protocol import Engine

AT_MOST = 2_000_000  # tokens of a val split that the last look at a model reads


def whole_loss(engine: Engine, data: Data, config: TrainConfig) -> tuple[float, int]:
    """Return the loss over the val split, or over its first AT_MOST tokens, and the number of tokens read."""
    tokens = data.val[: AT_MOST + 1]
    batches = EvaluationBatches(tokens, config.block_size, config.batch_size, len(tokens), config.vocab_size)
    return evaluate(engine, batches), len(tokens)


def evaluate(engine: Engine, batches: Iterable[Batch]) -> float:
    """Return the mean loss per target over all batches, in nats."""
    total, count = 0.0, 0
    for x, y in batches:
        targets = int((y != -1).sum())
        total, count = total + engine.loss(x, y) * targets, count + targets
    return total / count
