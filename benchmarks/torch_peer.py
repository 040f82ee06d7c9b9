"""PyTorch as the peer on a GPU: the same optimized graph, node by node, in a CUDA graph; and through ``torch.compile``.

    python -m benchmarks.torch_peer MODEL.onnx --precision fp16 --compile-limit 120 --json F

``eager`` is cuDNN's benchmark mode, channels last below fp32, captured once: no Python and no launch overhead is timed.
BatchNormalization is folded and biases go into the convolutions, as for wpk. The error is against ONNX Runtime in float32.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from wpk.core.pointwise import Acc, Apply, Input, Literal, Point
from wpk.graph.graph import Graph, Node
from wpk.graph.onnx_io import load_model
from wpk.passes import default_pipeline, run_pipeline
from wpk.report.engines import onnxruntime_engine, random_feeds, relative_l2
from wpk.runtime.plan import Port

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Tensor = torch.Tensor
Values = dict[str, Tensor]

_POINT: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "max": torch.maximum, "min": torch.minimum,
    "pow": torch.pow, "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "erf": torch.erf, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "floor": torch.floor, "ceil": torch.ceil,
    "recip": torch.reciprocal, "where": lambda c, a, b: torch.where(c != 0, a, b),
}  # fmt: skip


class Network(torch.nn.Module):
    """A wpk graph as torch calls. Raises ValueError for an operator it does not know."""

    def __init__(self, graph: Graph, dtype: torch.dtype, device: str, channels_last: bool) -> None:
        super().__init__()
        self.graph = graph
        self.constants: Values = {}
        for name, array in graph.constants.items():
            tensor = torch.from_numpy(np.array(array)).to(device)
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            last = channels_last and tensor.dim() == 4
            self.constants[name] = tensor.to(memory_format=torch.channels_last) if last else tensor
        unknown = sorted({n.op for n in graph.nodes} - {*_OPS, "view"})
        if unknown:
            raise ValueError(f"{graph.name}: no torch call for {', '.join(unknown)}")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in order."""
        values = {**self.constants, **dict(zip(self.graph.inputs, inputs, strict=True))}
        for node in self.graph.nodes:
            if node.op == "view":
                values[node.outputs[0]] = values[node.inputs[0]].reshape(self.graph.types[node.outputs[0]].shape)
                continue
            results = _OPS[node.op](node, [values[v] for v in node.inputs])
            values.update(zip(node.outputs, results, strict=True))
        return tuple(values[v] for v in self.graph.outputs)


def _point(point: Point, acc: Tensor | None, inputs: Sequence[Tensor]) -> Any:
    if isinstance(point, Acc):
        return acc
    if isinstance(point, Input):
        return inputs[point.index]
    if isinstance(point, Literal):
        return torch.tensor(point.value, dtype=(inputs[0] if acc is None else acc).dtype, device=inputs[0].device)
    return _apply(point, [_point(a, acc, inputs) for a in point.args])


def _apply(point: Apply, args: list[Tensor]) -> Tensor:
    if point.op in ("lt", "le", "eq"):
        return getattr(torch, point.op)(*args).to(args[0].dtype)
    return _POINT[point.op](*args)


def _finish(node: Node, acc: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor]:
    return (acc if node.epilogue is None else _point(node.epilogue, acc, inputs),)


def _conv(node: Node, x: Sequence[Tensor]) -> tuple[Tensor]:
    top, left, bottom, right = _ints(node, "pads")
    strides, dilations, group = _ints(node, "strides"), _ints(node, "dilations"), int(_ints(node, "group")[0])
    data, pads = (x[0], (top, left)) if (top, left) == (bottom, right) else (F.pad(x[0], (left, right, top, bottom)), (0, 0))
    bias, rest = _split_bias(node.epilogue, x)
    acc = F.conv2d(data, x[1], bias, strides, pads, dilations, group)
    return (acc if rest is None else _point(rest, acc, x),)


def _split_bias(point: Point | None, x: Sequence[Tensor]) -> tuple[Tensor | None, Point | None]:
    """The bias by channel that is added first, and what is left of the epilogue."""
    if isinstance(point, Apply):
        if point.op == "add" and isinstance(point.args[0], Acc) and isinstance(point.args[1], Input):
            operand = x[point.args[1].index]
            if operand.dim() == 4 and operand.shape[0] == operand.shape[2] == operand.shape[3] == 1:
                return operand.flatten(), Acc()
        bias, first = _split_bias(point.args[0], x)
        return bias, Apply(point.op, (point.args[0] if first is None else first, *point.args[1:]))
    return None, point


def _gemm(node: Node, x: Sequence[Tensor]) -> tuple[Tensor]:
    a = x[0].t() if _ints(node, "trans_a")[0] else x[0]
    b = x[1].t() if _ints(node, "trans_b")[0] else x[1]
    return _finish(node, a @ b, x)


def _pool(node: Node, x: Sequence[Tensor]) -> tuple[Tensor]:
    top, left, bottom, right = _ints(node, "pads")
    kernel, strides, dilations = _ints(node, "kernel"), _ints(node, "strides"), _ints(node, "dilations")
    if node.attr("kind") == "max":
        data = F.pad(x[0], (left, right, top, bottom), value=float("-inf"))
        return _finish(node, F.max_pool2d(data, kernel, strides, 0, dilations), x)
    padded = F.pad(x[0], (left, right, top, bottom))
    found = F.avg_pool2d(padded, kernel, strides)
    if not _ints(node, "count_include_pad")[0] and (top, left, bottom, right) != (0, 0, 0, 0):
        ones = F.pad(torch.ones_like(x[0][:1, :1]), (left, right, top, bottom))
        found = found / F.avg_pool2d(ones, kernel, strides)
    return _finish(node, found, x)


def _lrn(node: Node, x: Sequence[Tensor]) -> tuple[Tensor]:
    alpha, beta, bias, size = (node.attr(k) for k in ("alpha", "beta", "bias", "size"))
    return _finish(node, F.local_response_norm(x[0], int(size), float(alpha), float(beta), float(bias)), x)  # type: ignore[arg-type]


def _norm(node: Node, x: Sequence[Tensor]) -> tuple[Tensor]:
    axis, epsilon = int(_ints(node, "axis")[0]), float(node.attr("epsilon"))  # type: ignore[arg-type]
    shape = tuple(x[0].shape[axis:])
    whole = F.rms_norm(x[0], shape, eps=epsilon) if node.attr("kind") == "rms" else F.layer_norm(x[0], shape, eps=epsilon)
    return _finish(node, whole, x)


def _gather(node: Node, x: Sequence[Tensor]) -> tuple[Tensor]:
    axis = int(_ints(node, "axis")[0])
    index = x[1].to(torch.int64)
    found = torch.index_select(x[0], axis, index.flatten())
    return (found.reshape(*x[0].shape[:axis], *index.shape, *x[0].shape[axis + 1 :]),)


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attr(name)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)  # type: ignore[arg-type]


_OPS: Mapping[str, Callable[[Node, Sequence[Tensor]], tuple[Tensor, ...]]] = {
    "conv": _conv, "gemm": _gemm, "pool": _pool, "lrn": _lrn, "norm": _norm, "gather": _gather,
    "matmul": lambda n, x: _finish(n, x[0] @ x[1], x),
    "softmax": lambda n, x: _finish(n, torch.softmax(x[0], _ints(n, "axis")[0]), x),
    "eltwise": lambda n, x: (_point(n.epilogue, None, x),),  # type: ignore[arg-type]
    "transpose": lambda n, x: (x[0].permute(_ints(n, "perm")),),
    "concat": lambda n, x: (torch.cat(list(x), _ints(n, "axis")[0]),),
    "split": lambda n, x: torch.split(x[0], list(_ints(n, "sizes")), _ints(n, "axis")[0]),
}  # fmt: skip


def network(path: Path, precision: str, device: str) -> tuple[Network, list[Tensor], list[np.ndarray]]:
    """The model, its inputs on the device, and what ONNX Runtime gives for them."""
    graph = run_pipeline(load_model(path), default_pipeline())
    feeds = random_feeds([Port(v, graph.types[v].dtype, graph.types[v].shape) for v in graph.inputs])
    expected = onnxruntime_engine(path, 4).run(feeds)
    last = precision != "fp32"
    inputs = []
    for name in graph.inputs:
        tensor = torch.from_numpy(feeds[name]).to(device)
        tensor = tensor.to(DTYPES[precision]) if tensor.is_floating_point() else tensor
        inputs.append(tensor.to(memory_format=torch.channels_last) if last and tensor.dim() == 4 else tensor)
    return Network(graph, DTYPES[precision], device, last), inputs, list(expected)


def error(found: Sequence[Tensor], expected: Sequence[np.ndarray]) -> float:
    """The largest relative L2 error of the outputs."""
    return max(relative_l2(a.float().cpu().numpy(), b) for a, b in zip(found, expected, strict=True))


def captured_seconds(run: Callable[[], Any], samples: int = 30) -> float:
    """Median seconds of one replay of a CUDA graph of ``run``, by events around five of them."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return _timed(graph.replay, samples)


def _timed(run: Callable[[], Any], samples: int) -> float:
    taken = []
    for _ in range(samples):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        run()  # keeps the device busy while what is timed is put on its stream
        begin.record()
        for _ in range(5):
            run()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) * 1e-3 / 5)
    return median(taken)


def measure(path: Path, precision: str, compile_limit: float) -> dict[str, Any]:
    """Seconds and error of eager and, where it compiles in time, compiled."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    model, inputs, expected = network(path, precision, "cuda")
    with torch.inference_mode():
        found: dict[str, Any] = {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
        found["eager_error"] = error(model(*inputs), expected)
        found["eager_s"] = captured_seconds(lambda: model(*inputs))
        if compile_limit > 0:
            print(json.dumps(found), flush=True)  # what is known if the compiler never comes back
            found.update(_compiled(model, inputs, expected, compile_limit))
    return found


def _compiled(model: Network, inputs: list[Tensor], expected: list[np.ndarray], limit: float) -> dict[str, Any]:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        compiled = torch.compile(model, mode="max-autotune", fullgraph=True)
        outputs = compiled(*inputs)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for _ in range(3):
            compiled(*inputs)
        return {"compiled_error": error(outputs, expected), "compiled_s": _timed(lambda: compiled(*inputs), 30)}
    except TimeoutError:
        return {"compiled": f"not within {limit:g} s"}
    except Exception as problem:  # the compiler's errors have no common class
        return {"compiled": f"{type(problem).__name__}: {str(problem)[:200]}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one model; print and perhaps write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--compile-limit", type=float, default=0.0, help="seconds for torch.compile; 0: not at all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    text = json.dumps(measure(args.model, args.precision, args.compile_limit))
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
