"""Real architectures with no download: the ``light_*`` models of the onnx wheel, their weights drawn from a seed.

The wheel's files keep the graphs of nine well-known networks and replace each weight by ``ConstantOfShape``. Here every one
of them becomes a real initializer of a sane scale, so that nothing folds away and activations stay O(1) at any depth:

    convolution, gemm   normal, variance gain / fan-in (gain 2 where a ReLU halves the input's energy)
    BatchNormalization  scale ~ U(0.5, 1.5)·k, mean ~ N(0, 0.1), variance ~ U(0.5, 1.5), small bias
    Mul / Add after it  scale ~ U(0.5, 1.5)·k, small bias

``k`` makes the expected energy gain of the layer 1; scales and weights that feed a residual sum are halved in energy twice,
so that the sums neither grow nor vanish.

    python benchmarks/zoo.py --models all --out DIR
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip

#: part of the file name: raise it when the weights change
RECIPE = 1

_SCALE_GAIN = 13 / 12  # E[s²] of U(0.5, 1.5)
_VARIANCE_GAIN = float(np.log(3))  # E[1/v] of U(0.5, 1.5)
_RESIDUAL = 0.5
#: ops whose result is nowhere negative when their first input is
_KEEP_SIGN = {
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Reshape",
    "Transpose",
    "Dropout",
    "LRN",
}


@dataclass(frozen=True)
class Role:
    """What a weight is for: the op and input position that read it (through reshapes) and what reads that op's result."""

    op: str
    index: int
    residual: bool
    after_relu: bool


def build(name: str, out_dir: Path, batch: int = 1, seed: int = 0) -> Path:
    """The path of model ``name`` with ``batch`` images and weights of ``seed``, written to ``out_dir`` unless it is there.

    Raises ValueError for an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(NAMES)}")
    path = out_dir / f"{name}-b{batch}-s{seed}-r{RECIPE}.onnx"
    if not path.exists():
        out_dir.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        onnx.save_model(make(name, batch, seed), str(scratch), format="protobuf")
        scratch.replace(path)
    return path


def make(name: str, batch: int = 1, seed: int = 0) -> onnx.ModelProto:
    """The model itself, valid for ONNX Runtime: real initializers, one input, opset as in the wheel."""
    model = onnx.load(_light_file(name))
    graph = model.graph
    constants = _drawn(graph, seed)
    _set_batch(graph, constants, batch)
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    read = {v for n in nodes for v in n.input}
    given = {i.name for i in graph.initializer}
    inputs = [i for i in graph.input if i.name not in given and i.name in read]
    for field, items in (("node", nodes), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    graph.ClearField("initializer")
    graph.initializer.extend(numpy_helper.from_array(a, v) for v, a in constants.items() if v in read)
    model.ir_version = 8  # from 4 on, initializers need not be inputs
    return model


def _light_file(name: str) -> str:
    return str(Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx")


def _drawn(graph: onnx.GraphProto, seed: int) -> dict[str, np.ndarray]:
    """Every constant of the graph: float ones drawn anew, others (shapes) as they are."""
    given = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    shapes = {
        n.output[0]: tuple(given[n.input[0]].tolist()) for n in graph.node if n.op_type == "ConstantOfShape"
    }
    shapes |= {k: a.shape for k, a in given.items() if a.dtype == np.float32}
    roles = _roles(graph, shapes)
    others = {k: a for k, a in given.items() if a.dtype != np.float32}
    return others | {k: _draw(k, roles[k], shape, seed) for k, shape in shapes.items() if k in roles}


def _roles(graph: onnx.GraphProto, weights: Iterable[str]) -> dict[str, Role]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    maker = {v: n for n in graph.node for v in n.output}

    def rectified(value: str) -> bool:
        node = maker.get(value)
        return node is not None and (
            node.op_type == "Relu" or (node.op_type in _KEEP_SIGN and rectified(node.input[0]))
        )

    def role(value: str) -> Role:
        node = readers[value][0]
        if node.op_type in ("Unsqueeze", "Reshape"):
            return role(node.output[0])
        residual = any(n.op_type == "Sum" for n in readers.get(node.output[0], []))
        return Role(node.op_type, list(node.input).index(value), residual, rectified(node.input[0]))

    return {w: role(w) for w in weights if w in readers}


def _draw(name: str, role: Role, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    if role.op in ("Conv", "Gemm") and role.index == 1:
        fan_in = int(np.prod(shape[1:]))
        drawn = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt((1 + role.after_relu) / fan_in))
    elif role.op == "BatchNormalization" and role.index == 4:
        drawn = rng.uniform(0.5, 1.5, shape)
    elif role.op == "BatchNormalization" and role.index == 1:
        gain = _SCALE_GAIN * _VARIANCE_GAIN
        drawn = rng.uniform(0.5, 1.5, shape) * (_RESIDUAL if role.residual else 1.0) / np.sqrt(gain)
    elif role.op == "Mul":
        drawn = rng.uniform(0.5, 1.5, shape) / np.sqrt(_SCALE_GAIN)
    else:  # biases and means
        drawn = rng.standard_normal(shape) * 0.1
    return drawn.astype(np.float32)


def _set_batch(graph: onnx.GraphProto, constants: dict[str, np.ndarray], batch: int) -> None:
    """Batch ``batch`` in the inputs, the outputs and the shape constants of activations' reshapes."""
    weights = {i.name for i in graph.initializer} | {
        n.output[0] for n in graph.node if n.op_type == "ConstantOfShape"
    }
    for value in (*(i for i in graph.input if i.name not in weights), *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[0] not in weights:
            shape = constants[node.input[1]].copy()
            shape[0] = batch
            constants[node.input[1]] = shape


def main() -> None:
    """Build models from the command line and print their paths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="all", help="comma-separated names, or all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in NAMES if args.models == "all" else args.models.split(","):
        print(build(name, args.out, args.batch, args.seed))


if __name__ == "__main__":
    main()
