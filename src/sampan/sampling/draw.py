"""Logits to tokens, once for both engines.

    for tokens in generate(engine, model, ids, SampleConfig()): ...      # int32 (num_samples,), endlessly

An engine gives logits; what is drawn from them is here. The tokens of a sample follow from (seed, its number) and do not
depend on how many are drawn beside it. Text is write.py's.
"""

import secrets
from collections.abc import Iterator, Sequence

import numpy as np

from sampan.config import SampleConfig
from sampan.engine.protocol import Engine
from sampan.errors import UserError
from sampan.messages import _
from sampan.model.shape import ModelShape
from sampan.sampling.repetition import History
from sampan.tokens.bytes import BROKEN, WHOLE

WIDE = 2048  # tokens; in a vocabulary of more, those that cannot be drawn are left out before the arithmetic


def draw(
    logits: np.ndarray,
    uniform: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> np.ndarray:
    """Return a random token for each row of `logits`, float32 (B, V): int32 (B,).

    `uniform`, float (B,) in [0, 1), decides which: the same numbers give the same tokens. `temperature` divides the
    logits; at 0 the most probable token is taken. `top_k` keeps the k most probable tokens (Fan et al. 2018) and ties
    with the last of them; None or 0 keeps all. `top_p` is nucleus sampling (Holtzman et al. 2020): of the tokens that
    top_k keeps, it keeps the smallest set whose probabilities add up to top_p. `min_p`
    then drops tokens less probable than this share of the most probable one (Nguyen et al. 2024). The order is
    transformers'.

    Raise UserError if the largest logit of a row is NaN or infinite.
    """
    if len(logits) > 1 and logits.shape[1] > WIDE:  # row by row: which tokens are left out depends on no other row
        rows = zip(logits[:, None], uniform[:, None], strict=True)
        return np.concatenate([draw(row, u, temperature, top_k, top_p, min_p) for row, u in rows])
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
        if p.shape[1] > WIDE:
            # tokens below this hold less than 1 - top_p together, after all that are kept: not sorted
            likely = np.flatnonzero((p >= (1 - top_p) / p.shape[1]).any(axis=0))
            ids, p = likely if ids is None else ids[likely], p[:, likely]
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        before = np.cumsum(ranked, axis=1) - ranked  # what the likelier tokens hold already
        keep = before < top_p
        keep[:, 0] = True
        np.put_along_axis(p, order, np.where(keep, ranked, 0.0), axis=1)
    if min_p:
        p[p < min_p * p.max(axis=1, keepdims=True)] = 0.0
    cumulative = p.cumsum(axis=1)
    column = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1, dtype=np.int32)
    return column if ids is None else ids[column].astype(np.int32)


def generate(
    engine: Engine,
    model: ModelShape,
    ids: np.ndarray | Sequence[np.ndarray],
    config: SampleConfig,
    after: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yield the tokens that follow `ids`, without end: the next one of each sample, int32 (num_samples,), at a time.

    `ids` is one prompt for all samples, int32 (n,), or one for each, of any lengths n > 0. Sample i draws from its own
    random numbers, seeded with (config.seed, i). With `after`, uint8 (states, V) as from `transitions`, tokens that lead
    to BROKEN are not drawn, and top_k, top_p and min_p count only the others. A ban on n-grams is lifted where it leaves
    no token.

    A context that has reached block_size is cut to its newer half and computed again: one pass over the half every
    block_size / 2 tokens. Cutting off one token at a time, as nanoGPT does, would need a pass for every token.

    Raise UserError if the model's output is NaN or infinite.
    """
    B, block = config.num_samples, model.block_size
    seed = new_seed() if config.seed is None else config.seed
    uniforms = [np.random.default_rng([seed, i]).random for i in range(B)]
    allowed, state = None if after is None else after != BROKEN, np.full(B, WHOLE)
    prompts = [np.asarray(prompt) for prompt in ([ids] * B if np.ndim(ids[0]) == 0 else ids)]
    history = History(prompts, model.vocab_size, config)
    contexts = [[int(i) for i in prompt[-block:]] for prompt in prompts]  # what each slot of the session has
    session = engine.session(B)
    logits = np.concatenate(
        [session.feed(np.array([context], np.int32), [slot]) for slot, context in enumerate(contexts)]
    )
    while True:
        uniform = np.array([draw_one() for draw_one in uniforms])
        logits = history.penalize(logits)
        if allowed is not None:
            logits = np.where(allowed[state], logits, -np.inf)
        if (banned := history.banned()) is not None:
            banned &= ~(banned | (logits == -np.inf)).all(axis=1, keepdims=True)
            logits = np.where(banned, -np.inf, logits)
        tokens = draw(logits, uniform, config.temperature, config.top_k, config.top_p, config.min_p)
        if after is not None:
            state = after[state, tokens]
        history.add(tokens)
        yield tokens
        logits = np.empty((B, model.vocab_size), np.float32)
        with_room = [slot for slot, context in enumerate(contexts) if len(context) < block]
        for slot, token in enumerate(tokens.tolist()):
            if len(contexts[slot]) == block:
                kept = max(1, block // 2) - 1
                contexts[slot] = [*contexts[slot][block - kept :], token]
                session.clear(slot)
                logits[slot] = session.feed(np.array([contexts[slot]], np.int32), [slot])
            else:
                contexts[slot].append(token)
        if with_room:
            logits[with_room] = session.feed(tokens[with_room, None], with_room)


def new_seed() -> int:
    """Return a seed from the system's random numbers, short enough to be typed again."""
    return secrets.randbelow(2**32)
