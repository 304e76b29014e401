"""Logits to tokens, once for both engines.

    for tokens in generate(engine, model, ids, SampleConfig()): ...      # int32 (num_samples,), endlessly

An engine gives logits; what is drawn from them is here. The tokens of a sample follow from (seed, its number) and do not
depend on how many are drawn beside it. Text is write.py's.
"""

from collections.abc import Iterator

import numpy as np

from sampan.config import SampleConfig
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.shape import ModelShape
from sampan.tokens.bytes import BROKEN, WHOLE

WIDE = 2048  # tokens; in a vocabulary of more, those that cannot be drawn are left out before the arithmetic


def draw(logits: np.ndarray, uniform: np.ndarray, temperature=1.0, top_k: int | None = None, top_p=1.0) -> np.ndarray:
    """A token for each row of `logits`, float32 (B, V); `uniform` is (B,) in [0, 1). Returns int32 (B,).

    The logits are divided by `temperature` (0: the likeliest token); only the `top_k` likeliest stay (None or 0: all),
    with all that equal the last of them; of those only the fewest that hold `top_p` of the probability (Holtzman et
    al. 2020). Raises UserError for a row with NaN or +inf, or with no finite logit.
    """
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        raise UserError(_("the model's output is NaN or infinite: its weights are damaged, or its training diverged"))
    if temperature == 0:
        return logits.argmax(axis=1).astype(np.int32)
    ids = None  # of the columns that are left, where some have gone
    if top_k and top_k < logits.shape[1]:
        least = np.partition(logits, -top_k, axis=1)[:, -top_k, None]
        if logits.shape[1] > WIDE:
            ids = np.flatnonzero((logits >= least).any(axis=0))
            logits = logits[:, ids]
        logits = np.where(logits >= least, logits, -np.inf)
    scores = np.subtract(logits, top, dtype=np.float64)  # before the division, which then cannot overflow
    scores /= max(temperature, 1e-250)
    p = np.exp(scores, out=scores)
    if top_p < 1.0:
        p /= p.sum(axis=1, keepdims=True)
        if (
            p.shape[1] > WIDE
        ):  # tokens below this hold less than 1 - top_p together, after all that are kept: not sorted
            likely = np.flatnonzero((p >= (1 - top_p) / p.shape[1]).any(axis=0))
            ids, p = likely if ids is None else ids[likely], p[:, likely]
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        before = np.cumsum(ranked, axis=1) - ranked  # what the likelier tokens hold already
        keep = before < top_p
        keep[:, 0] = True
        np.put_along_axis(p, order, np.where(keep, ranked, 0.0), axis=1)
    cumulative = p.cumsum(axis=1)
    column = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1, dtype=np.int32)
    return column if ids is None else ids[column].astype(np.int32)


def generate(
    engine: Engine, model: ModelShape, ids: np.ndarray, config: SampleConfig, after: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Tokens that follow `ids`, int32 (n,) or a prompt for each sample (num_samples, n): endlessly, int32 (num_samples,)
    at a time.

    With `after`, the `transitions` of the vocabulary, only tokens are drawn that keep the bytes UTF-8; the options of
    `draw` see no others.

    Beyond block_size the context starts again from its newer half, which costs one pass every block_size / 2
    tokens; moving it along token by token, as nanoGPT does, would cost one for each.
    """
    B, block = config.num_samples, model.block_size
    uniforms = [np.random.default_rng([config.seed, i]).random for i in range(B)]
    allowed, state = None if after is None else after != BROKEN, np.full(B, WHOLE)
    context = np.empty((B, block), np.int32)  # of which `length` tokens are in use
    length = min(ids.shape[-1], block)
    context[:, :length] = ids[..., -block:]
    session = engine.session(B)
    logits = session.feed(context[:, :length])
    while True:
        uniform = np.array([draw_one() for draw_one in uniforms])
        if allowed is not None:
            logits = np.where(allowed[state], logits, -np.inf)
        tokens = draw(logits, uniform, config.temperature, config.top_k, config.top_p)
        if after is not None:
            state = after[state, tokens]
        yield tokens
        if length < block:
            context[:, length] = tokens
            length += 1
            logits = session.feed(tokens[:, None])
            continue
        length = max(1, block // 2)
        context[:, : length - 1] = context[:, block - length + 1 :]
        context[:, length - 1] = tokens
        session = engine.session(B)
        logits = session.feed(context[:, :length])
