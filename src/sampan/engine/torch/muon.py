"""Muon for the torch engine: momentum, orthogonalized. csrc/ops/muon.inc has the same arithmetic.

    optimizer = Muon([(weight, (rows, ...)), ...], momentum=0.95, weight_decay=0.1)
    optimizer.step()                                   # after backward(); the rate is param_groups[0]["lr"]

The method is Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. It is for the matrices inside of blocks;
embeddings, head, norms and biases are AdamW's. It does not share its work among processes: each does all of it.
"""

from collections.abc import Iterable

import torch

Part = tuple[torch.Tensor, slice]  # a weight, and those of its rows that are one linear layer


class Muon(torch.optim.Optimizer):
    """`matrices` are pairs (weight (out, in), rows of the linear layers that stand on top of each other in it).

    Each such layer, q apart from k, is orthogonalized by itself; those of one shape together, in `dtype`.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[torch.Tensor, tuple[int, ...]]],
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__([weight for weight, _ in matrices], dict(lr=0.0, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype
        self.pieces: dict[tuple[int, int], list[Part]] = {}  # by the shape of the part
        for weight, rows in matrices:
            self.state[weight]["exp_avg"] = torch.zeros_like(weight)
            first = 0
            for count in rows:
                self.pieces.setdefault((count, weight.shape[1]), []).append((weight, slice(first, first + count)))
                first += count

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # it takes no closure: the gradients are there
        group = self.param_groups[0]
        lr, momentum, keep = group["lr"], group["momentum"], 1.0 - group["lr"] * group["weight_decay"]
        grads = {weight: weight.grad for weight in group["params"]}
        for weight, grad in grads.items():
            self.state[weight]["exp_avg"].lerp_(grad, 1.0 - momentum)
        for (rows, columns), pieces in self.pieces.items():
            gradients = torch.stack([grads[weight][part] for weight, part in pieces])
            averages = torch.stack([self.state[weight]["exp_avg"][part] for weight, part in pieces])
            nesterov = gradients.lerp(averages, momentum)
            update = orthogonalize(nesterov, self.dtype).mul_(lr * max(1.0, rows / columns) ** 0.5)
            for (weight, part), step in zip(pieces, update, strict=True):
                weight[part].mul_(keep).sub_(step)


def orthogonalize(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """About U V^T of each matrix U S V^T of x (n, R, C): its singular values become 0.7 to 1.2 (tiny ones less).

    Newton-Schulz: x <- a x + b (x x^T) x + c (x x^T)^2 x, five times, on the smaller side.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    y = x.mT if tall else x
    y = (y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        gram = y @ y.mT  # (n, S, S)
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if tall else y).to(x.dtype)
