"""ONNX: the model as a graph that onnxruntime, and what is built on it, runs in a browser, on a phone or anywhere.

    sampan export out/shakespeare --to onnx                    # input_ids (batch, length) -> logits of every position
    sampan export out/shakespeare --to onnx --kv_cache         # and past_key_values.N.key -> present.N.key, to decode

Batch and length are free, up to block_size. With --kv_cache the length of the past is free too, and the first call
gives a past of length 0: (batch, n_kv_head, 0, head_dim). The graph is made from the table of parameters, in the order
of torch_model.py, and computes in float32; with --dtype f16 or bf16 the matrices are stored so. onnxruntime, where it
is installed, runs it beside our own engine. A graph has no tokenizer: tokenizer.json is the model's.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sampan.config import ExportConfig
from sampan.errors import UserError
from sampan.exchange.check import Reference, check_ids, compare_logits
from sampan.exchange.staging import find_library, need_library
from sampan.messages import _
from sampan.model.rotary import rotary_tables
from sampan.model.shape import ModelShape
from sampan.tokens.tokenizer import Tokenizer

OPSET = 20  # the first with the tanh form of GELU; onnxruntime has run it since 1.17
LARGEST = 1_900_000_000  # bytes of weights in the file itself; a protocol buffer holds 2 GiB
ALLOWED = {"f32": 1e-4, "f16": 1e-2, "bf16": 1e-1}


def suffix(config: ExportConfig) -> str:
    return ("-kv" if config.kv_cache else "") + ("" if config.dtype == "f32" else f"-{config.dtype}") + ".onnx"


def write(path: Path, model: ModelShape, weights: dict, tokenizer: Tokenizer | None, config: ExportConfig) -> list[str]:
    if config.dtype not in ALLOWED:
        raise UserError(
            _(
                "dtype={dtype}: an ONNX file has f32, f16 or bf16; onnxruntime's own tools quantize it",
                dtype=config.dtype,
            )
        )
    onnx = need_library("onnx", "onnx")
    graph = Graph(onnx, model, weights, config)
    made = onnx.helper.make_model(
        graph.build(), opset_imports=[onnx.helper.make_opsetid("", OPSET)], producer_name="sampan", ir_version=9
    )
    large = sum(tensor.ByteSize() for tensor in graph.initializers) > LARGEST
    outside = dict(save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024) if large else {}
    onnx.save_model(made, path, **outside)
    return [_("the weights are in {name}.data, which belongs beside it", name=path.name)] if large else []


class Graph:
    """A graph in the making. Every method that computes adds nodes and returns the name of their result."""

    def __init__(self, onnx: ModuleType, model: ModelShape, weights: dict, config: ExportConfig):
        self.onnx, self.model, self.weights, self.config = onnx, model, weights, config
        self.nodes: list[Any] = []  # these four hold protocol buffers
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[tuple[bytes, tuple[int, ...], np.dtype], str] = {}
        self.module = ""  # that nodes are being added to, such as h.0.attn
        self.counts: Counter[str] = Counter()  # of nodes, by module and kind

    # ---- parts ----

    @contextlib.contextmanager
    def inside(self, module: str) -> Iterator[None]:
        """Name the nodes of the `with` block after a module."""
        outer, self.module = self.module, module
        yield
        self.module = outer

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, result: str | None = None, **attributes: Any) -> list[str]:
        """Add a node with several results, or with one that is named `result`; return their names."""
        node = f"{self.module}/{kind}"
        self.counts[node] += 1
        node += f"_{self.counts[node]}" if self.counts[node] > 1 else ""
        names = [result or node] if outputs == 1 else [f"{node}_{i}" for i in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, name=node, **attributes))
        return names

    def constant(self, value: ArrayLike, dtype: DTypeLike = np.int64) -> str:
        array = np.array(value, dtype)
        key = (array.tobytes(), array.shape, array.dtype)
        if key not in self.constants:
            self.constants[key] = self.store(f"constant_{len(self.constants)}", array)
        return self.constants[key]

    def number(self, value: float) -> str:
        return self.constant(value, np.float32)

    def store(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def parameter(self, name: str, transposed: bool = False) -> str:
        """A parameter, float32 whatever it is stored as; a matrix (out, in) transposed for MatMul's right side."""
        weight = self.weights[name]
        if weight.ndim < 2 or self.config.dtype == "f32":
            return self.store(name, np.ascontiguousarray(weight.T if transposed else weight))
        kind = {"f16": "FLOAT16", "bf16": "BFLOAT16"}[self.config.dtype]
        if kind == "FLOAT16" and np.abs(weight).max() > 65504:
            raise UserError(_("{name} has numbers beyond float16's 65504; take bf16", name=name))
        stored = self.onnx.helper.tensor_dtype_to_np_dtype(getattr(self.onnx.TensorProto, kind))
        self.store(name, np.ascontiguousarray((weight.T if transposed else weight).astype(stored)))
        return self.op("Cast", name, to=self.onnx.TensorProto.FLOAT)

    def linear(self, x: str, name: str) -> str:
        with self.inside(name):
            y = self.op("MatMul", x, self.parameter(f"{name}.weight", transposed=True))
            return self.op("Add", y, self.parameter(f"{name}.bias")) if f"{name}.bias" in self.weights else y

    def norm(self, x: str, name: str) -> str:
        with self.inside(name):
            scale = self.parameter(f"{name}.weight")
            if self.model.norm == "layernorm":
                shift = [self.parameter(f"{name}.bias")] if f"{name}.bias" in self.weights else []
                return self.op("LayerNormalization", x, scale, *shift, axis=-1, epsilon=self.model.norm_eps)
            square = self.op("ReduceMean", self.op("Mul", x, x), self.constant([-1]), keepdims=1)
            size = self.op("Sqrt", self.op("Add", square, self.number(self.model.norm_eps)))
            return self.op("Mul", self.op("Div", x, size), scale)

    def length(self, x: str, axis: int) -> str:
        """The size of `x` along an axis, int64 (1,)."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def declare(self, where: list, name: str, kind: str, shape: list) -> str:
        where.append(self.onnx.helper.make_tensor_value_info(name, getattr(self.onnx.TensorProto, kind), shape))
        return name

    # ---- the model, as in torch_model.py ----

    def build(self) -> Any:
        c = self.model
        ids = self.declare(self.inputs, "input_ids", "INT64", ["batch", "length"])
        self.declare(self.outputs, "logits", "FLOAT", ["batch", "length", c.vocab_size])
        if self.config.kv_cache:
            for i in range(c.n_layer):
                for part in ("key", "value"):
                    name, shape = f"past_key_values.{i}.{part}", ["batch", c.n_kv_head, "past", c.head_dim]
                    self.declare(self.inputs, name, "FLOAT", shape)
                    self.declare(
                        self.outputs, f"present.{i}.{part}", "FLOAT", [*shape[:2], "past + length", c.head_dim]
                    )
        with self.inside("positions"):
            T = self.op("Squeeze", self.length(ids, 1))
            past = self.config.kv_cache
            start = self.op("Squeeze", self.length("past_key_values.0.key", 2)) if past else self.constant(0)
            end, one = self.op("Add", start, T), self.constant(1)
            positions = self.op("Range", start, end, one)  # (T,)
            keys = self.op("Range", self.constant(0), end, one)  # (S,)
            seen = self.op("LessOrEqual", keys, self.op("Unsqueeze", positions, self.constant([1])))  # (T, S)
            mask = self.op("Where", seen, self.number(0.0), self.number(-np.inf))

        with self.inside("wte"):
            wte = self.parameter("wte.weight")
            x = self.op("Gather", wte, ids)  # (B, T, C)
        rotary = None
        if c.positions == "learned":
            with self.inside("wpe"):
                x = self.op("Add", x, self.op("Gather", self.parameter("wpe.weight"), positions))
        else:
            with self.inside("positions"):
                tables = zip(("cos", "sin"), rotary_tables(c), strict=True)
                rotary = [self.op("Gather", self.store(name, table), positions) for name, table in tables]  # (T, D/2)
        for i in range(c.n_layer):
            with self.inside(f"h.{i}.attn"):
                x = self.op("Add", x, self.attention(self.norm(x, f"h.{i}.ln_1"), i, mask, rotary))
            with self.inside(f"h.{i}.mlp"):
                x = self.op("Add", x, self.mlp(self.norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp"))
        x = self.norm(x, "ln_f")
        with self.inside("lm_head"):
            tied = c.tie_word_embeddings
            head = self.op("Transpose", wte, perm=[1, 0]) if tied else self.parameter("lm_head.weight", transposed=True)
            self.op("MatMul", x, head, result="logits")
        return self.onnx.helper.make_graph(self.nodes, "sampan", self.inputs, self.outputs, self.initializers)

    def attention(self, x: str, i: int, mask: str, rotary: list[str] | None) -> str:
        c = self.model
        H, KV, D = c.n_head, c.n_kv_head, c.head_dim
        sizes = self.constant([H * D, KV * D, KV * D])
        q, k, v = self.ops("Split", self.linear(x, f"h.{i}.attn.c_attn"), sizes, axis=2, outputs=3)
        heads = [(q, H, "q_norm"), (k, KV, "k_norm"), (v, KV, None)]
        q, k, v = (self.heads(value, count, D, i, norm, rotary) for value, count, norm in heads)
        if self.config.kv_cache:
            k, v = (self.extend(i, part, new) for part, new in (("key", k), ("value", v)))  # (B, KV, S, D)
        # query heads that share a head of keys stand in an axis of their own
        q = self.op("Reshape", q, self.constant([0, KV, H // KV, -1, D]))  # (B, KV, G, T, D)
        k, v = (self.op("Unsqueeze", value, self.constant([2])) for value in (k, v))  # (B, KV, 1, S, D)
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 2, 4, 3]))
        scores = self.op("Add", self.op("Mul", scores, self.number(1 / math.sqrt(D))), mask)  # (B, KV, G, T, S)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)  # (B, KV, G, T, D)
        y = self.op("Reshape", y, self.constant([0, H, -1, D]))
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.constant([0, 0, H * D]))
        return self.linear(y, f"h.{i}.attn.c_proj")

    def heads(self, x: str, count: int, D: int, i: int, norm: str | None, rotary: list[str] | None) -> str:
        """(B, T, count * D) as (B, count, T, D); queries and keys normed and rotated as the model has it."""
        x = self.op("Reshape", x, self.constant([0, 0, count, D]))
        if norm and self.model.qk_norm:
            x = self.norm(x, f"h.{i}.attn.{norm}")
        x = self.op("Transpose", x, perm=[0, 2, 1, 3])
        if not norm or rotary is None:
            return x
        (cos, sin), (a, b) = rotary, self.ops("Split", x, axis=-1, num_outputs=2, outputs=2)
        left = self.op("Sub", self.op("Mul", a, cos), self.op("Mul", b, sin))
        right = self.op("Add", self.op("Mul", b, cos), self.op("Mul", a, sin))
        return self.op("Concat", left, right, axis=-1)

    def extend(self, i: int, part: str, new: str) -> str:
        return self.op("Concat", f"past_key_values.{i}.{part}", new, result=f"present.{i}.{part}", axis=2)

    def mlp(self, x: str, name: str) -> str:
        h = self.linear(x, f"{name}.c_fc")
        if self.model.gated:
            gate, up = self.ops("Split", h, axis=-1, num_outputs=2, outputs=2)
            h = self.op("Mul", self.activation(gate), up)
        else:
            h = self.activation(h)
        return self.linear(h, f"{name}.c_proj")

    def activation(self, x: str) -> str:
        if self.model.activation == "gelu_new":
            return self.op("Gelu", x, approximate="tanh")
        if self.model.activation == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if self.model.activation == "relu2":
            x = self.op("Relu", x)
            return self.op("Mul", x, x)
        raise UserError(_("activation={activation}: the ONNX export lacks it", activation=self.model.activation))


# ---- checking ----


def check(
    path: Path, model: ModelShape, tokenizer: Tokenizer | None, reference: Reference, config: ExportConfig
) -> str:
    runtime = find_library("onnxruntime")
    if runtime is None:
        return _("not checked: pip install onnxruntime, and export again, to compare its logits with ours")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        raise UserError(
            _("onnxruntime cannot load what was written ({error}); nothing was written", error=error)
        ) from None
    ids = check_ids(model)
    cut = ids.shape[1] // 3 if config.kv_cache else 0  # with a cache: a first part, then the rest
    empty = np.empty((len(ids), model.n_kv_head, 0, model.head_dim), np.float32)
    past = {i.name: empty for i in session.get_inputs()[1:]}
    logits = []
    for part in np.split(ids, [cut], axis=1) if cut else [ids]:
        first, *present = session.run(None, {"input_ids": part.astype(np.int64)} | past)
        past = dict(zip(past, present, strict=True))
        logits.append(first)
    theirs = np.concatenate(logits, axis=1)
    return compare_logits(theirs, reference(ids), ALLOWED[config.dtype], f"onnxruntime {runtime.__version__}")
