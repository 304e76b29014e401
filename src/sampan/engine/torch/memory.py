"""What training takes of memory in the torch engine, by part: an estimate, without importing torch.

    parts = memory(shape, MachineConfig(), OptimizerSettings(), batch=12, tokens=1024)     # {"weights": bytes, ...}

PyTorch's autograd keeps more of a forward pass than its outputs, by factors that bench/plan.py measures. What
torch.compile saves and what the allocator wastes are not counted.
"""

from sampan.config import MachineConfig, OptimizerSettings
from sampan.model.count import count_parameters
from sampan.model.parameters import parameters
from sampan.model.shape import ModelShape


def memory(
    shape: ModelShape, machine: MachineConfig, optimizer: OptimizerSettings, batch: int, tokens: int
) -> dict[str, int]:
    """Return the bytes by part: weights, gradients, optimizer, and activations of `batch` sequences of `tokens` tokens."""
    N = count_parameters(shape)
    moments = sum(p.size * len(p.moments(optimizer.optimizer)) for p in parameters(shape))
    activations = activation_bytes(shape, batch * tokens, optimizer.gradient_checkpointing)
    return {"weights": 4 * N, "gradients": 4 * N, "optimizer": 4 * moments, "activations": activations}


def activation_bytes(c: ModelShape, M: int, gradient_checkpointing: bool) -> int:
    """Return the bytes that M tokens keep between their forward and backward pass, and the buffers of both."""
    C, F, D, H, KV = c.n_embd, c.n_inner, c.head_dim, c.n_head, c.n_kv_head
    qkv, inner = (H + 2 * KV) * D, 2 * F if c.gated else F
    block = 4 * C + 4 + qkv + H * D + H + inner + F  # x, ln_1, x_mid, ln_2; q k v, y; the MLP before and after
    block += (H + KV) * (D + 1) if c.qk_norm else 0
    block += 3 * C + qkv + inner  # norms in float32, rotated copies, a product's factors
    shared = 4 * C + qkv + H * D + inner + F  # x_out and ln_f; gradients of what the blocks keep
    blocks = block + c.n_layer * C if gradient_checkpointing else c.n_layer * block
    return 4 * (M * (blocks + shared) + 3 * M * c.vocab_size)
