"""Matrix products by cuBLASLt, through the low-level bindings of nvmath-python, which is imported on first use.

The library stores matrices by columns. A product of row-major matrices is, read by columns, the product of their transposes
in the other order: :class:`Matmul` holds what the library is told, and knows nothing of rows. An algorithm's name says all its
attributes (tile, stages, parts of k, ...), so that a recorded call runs what was measured, or fails; it never runs another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from math import gcd
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy as np

from wpk.core.errors import ArtifactError, DeviceError
from wpk.core.tensor import DTYPE_BYTES
from wpk.runtime.cuda.device import Device

#: Algorithms that the library is asked for: with all the workspace allowed, and with none.
MOST = 8
#: What all pointers are multiples of, unless a caller's array is not.
ALIGNMENT = 16
#: Workspace beyond what an algorithm asks for: with epilogues, some use more than they say.
_SPARE = 256

#: ``cudaDataType``, ``cublasComputeType_t``, ``cublasOperation_t``
_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
_COMPUTE = {"32F": 68, "32F_FAST_TF32": 77}
_OPERATION = {False: 0, True: 1}
#: Parts of k are added in float32; in the output itself only where that is float32.
_IN_OUTPUT, _IN_FLOAT = 1, 2
_NOT_SUPPORTED = 15

_INSTALL = "pip install 'wpk[cuda]'"


@dataclass(frozen=True)
class Matrix:
    """A matrix stored by columns: ``rows`` × ``cols`` elements of ``dtype``, columns ``ld`` apart, batches ``stride`` apart.

    ``argument`` counts the call's pointers: inputs, then the output.
    """

    argument: int
    dtype: str
    rows: int
    cols: int
    ld: int
    stride: int = 0

    def nbytes(self, batch: int) -> int:
        """Bytes from its first element to its last."""
        return DTYPE_BYTES[self.dtype] * (self.stride * (batch - 1) + self.ld * (self.cols - 1) + self.rows)


@dataclass(frozen=True)
class Matmul:
    """d = epilogue(alpha · op(a) · op(b) + beta · c), ``batch`` times.

    ``compute``: ``32F`` or ``32F_FAST_TF32``. ``epilogue``: a name of the library's ``Epilogue``. ``bias`` is the argument with
    a value for each row of d, -1 for none; its dtype is that of d.
    """

    a: Matrix
    b: Matrix
    c: Matrix
    d: Matrix
    trans_a: bool = False
    trans_b: bool = False
    batch: int = 1
    alpha: float = 1.0
    beta: float = 0.0
    compute: str = "32F"
    epilogue: str = "DEFAULT"
    bias: int = -1

    @property
    def matrices(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """In the order in which the library takes them."""
        return self.a, self.b, self.c, self.d

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; :meth:`from_json` inverts it."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Matmul:
        """Rebuild from :meth:`to_json`'s data. Raises ArtifactError on data of another schema."""
        try:
            plain = {f.name: data[f.name] for f in fields(Matmul)}
            return Matmul(**{**plain, **{name: Matrix(**data[name]) for name in "abcd"}})
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"a call of cuBLASLt is malformed: {error}") from error


@dataclass(frozen=True)
class Algorithm:
    """What the library offers for a product. ``opaque`` is its own form of it, for this process only; ``workspace`` in bytes."""

    name: str
    workspace: int
    opaque: bytes


def cublaslt_version() -> str:
    """The library's version, such as ``13.4.0``. Raises DeviceError where it, nvmath-python or the driver is missing."""
    lt = _bindings()
    with _translated(f"cuBLASLt cannot be loaded: {_INSTALL}"):
        number = int(lt.get_version())
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class CublasLtCall:
    """A product ready to run; see :data:`wpk.runtime.cuda.driver._LIBRARIES`.

    ``spec``: a :class:`Matmul` as JSON under ``matmul``, the name of the ``algorithm``, the bytes of workspace that it may need
    (``limit``), the ``version`` of the library that offered it. ``workspace_bytes``: what the call needs.
    """

    def __init__(self, spec: Mapping[str, Any], device: Device) -> None:
        """Runs once on memory of its own, so that nothing is left to load while work is recorded.

        Raises DeviceError when the library is missing or has no such algorithm, ArtifactError for a malformed spec.
        """
        self._matmul, self._lt = Matmul.from_json(spec["matmul"]), _bindings()
        self._handle, self._descriptors = _handle(device), Descriptors(self._lt, self._matmul)
        self.close = finalize(self, self._descriptors.close)
        found = _wanted(self._descriptors.offers(self._handle, int(spec["limit"])), spec)
        self.workspace_bytes = found.workspace + _SPARE if found.workspace else 0
        self._algorithms = {ALIGNMENT: _in_memory(found)}
        self._scale = np.array([self._matmul.alpha, self._matmul.beta], np.float32)
        self._warm_up(device)

    @staticmethod
    def offers(spec: Mapping[str, Any], device: Device) -> list[list[str]]:
        """The names of the algorithms for ``spec``, best guess first, in a list; ``[[]]`` for none. Raises DeviceError."""
        descriptors = Descriptors(_bindings(), Matmul.from_json(spec["matmul"]))
        try:
            return [[x.name for x in descriptors.offers(_handle(device), int(spec["limit"]))]]
        finally:
            descriptors.close()

    def enqueue(self, stream: int, pointers: Sequence[int], workspace: int) -> None:
        """Put the product on ``stream``. ``pointers``: the arguments, in order. Raises DeviceError."""
        m, lt, known = self._matmul, self._lt, self._descriptors
        a, b, c, d = (pointers[x.argument] for x in m.matrices)
        used = [a, b, c, d]
        if m.bias >= 0:
            used.append(pointers[m.bias])
            known.set_bias(pointers[m.bias])
        algorithm, alpha = self._algorithm(used), _address(self._scale)
        beta = alpha + self._scale.itemsize
        of_a, of_b, of_c, of_d = known.layouts
        with _translated("cuBLASLt refuses to run a product"):
            lt.matmul(
                self._handle, known.operation, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d,
                _address(algorithm), workspace, self.workspace_bytes, stream,
            )  # fmt: skip

    def _algorithm(self, pointers: Sequence[int]) -> np.ndarray:
        """The chosen algorithm; the first that can where a caller's array starts at an odd place."""
        alignment = gcd(ALIGNMENT, *pointers)
        if alignment not in self._algorithms:
            limit = max(self.workspace_bytes - _SPARE, 0)
            found = self._descriptors.algorithms(self._handle, limit, alignment)
            if not found:
                raise DeviceError(f"cuBLASLt has no algorithm for arrays that start at multiples of {alignment} bytes only")
            self._algorithms[alignment] = _in_memory(found[0])
        return self._algorithms[alignment]

    def _warm_up(self, device: Device) -> None:
        m = self._matmul
        sizes = {x.argument: x.nbytes(m.batch) for x in m.matrices}
        if m.bias >= 0:
            sizes[m.bias] = m.d.rows * DTYPE_BYTES[m.d.dtype]
        made: dict[int, int] = {}
        try:
            for argument, nbytes in {**sizes, -1: max(self.workspace_bytes, 1)}.items():
                made[argument] = device.allocate(nbytes)
            self.enqueue(device.stream, [made.get(i, 0) for i in range(max(sizes) + 1)], made[-1])
            device.synchronize()
        finally:
            for pointer in made.values():
                device.free(pointer)


class Descriptors:
    """The library's descriptions of a product (``operation``) and of its matrices (``layouts``: of a, b, c, d). Close them."""

    def __init__(self, lt: Any, matmul: Matmul) -> None:
        """Raises DeviceError."""
        self._lt, self._matmul = lt, matmul
        self.operation, self.layouts = 0, list[int]()
        try:
            with _translated("cuBLASLt cannot describe a product"):
                self.operation = int(lt.matmul_desc_create(_COMPUTE[matmul.compute], _TYPES["float32"]))
                self._set("TRANSA", _OPERATION[matmul.trans_a])
                self._set("TRANSB", _OPERATION[matmul.trans_b])
                self._set("EPILOGUE", int(lt.Epilogue[matmul.epilogue]))
                for matrix in matmul.matrices:
                    self._add_layout(matrix)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free them. A second call does nothing."""
        while self.layouts:
            self._lt.matrix_layout_destroy(self.layouts.pop())
        if self.operation:
            self._lt.matmul_desc_destroy(self.operation)
            self.operation = 0

    def set_bias(self, pointer: int) -> None:
        """Where the bias is from now on."""
        with _translated("cuBLASLt cannot describe a product"):
            self._set("BIAS_POINTER", pointer)

    def offers(self, handle: int, limit: int) -> list[Algorithm]:
        """What the library offers with up to ``limit`` bytes of workspace, then what else it has without; each name once."""
        found: dict[str, Algorithm] = {}
        for room in (limit, 0) if limit else (0,):
            found.update({x.name: x for x in self.algorithms(handle, room) if x.name not in found})
        return list(found.values())

    def algorithms(self, handle: int, limit: int, alignment: int = ALIGNMENT) -> list[Algorithm]:
        """The library's answers, best guess first, for pointers that are multiples of ``alignment``. Raises DeviceError."""
        if self._matmul.bias >= 0:
            self.set_bias(alignment)  # is not read here; the library goes by how it is aligned
        lt = self._lt
        with _translated("cuBLASLt's heuristics failed"):
            preference = int(lt.matmul_preference_create())
            try:
                self._prefer(preference, limit, alignment)
                return self._ask(handle, preference)
            finally:
                lt.matmul_preference_destroy(preference)

    def _prefer(self, preference: int, limit: int, alignment: int) -> None:
        lt, sums = self._lt, _IN_FLOAT | (_IN_OUTPUT if self._matmul.d.dtype == "float32" else 0)
        wanted = {"MAX_WORKSPACE_BYTES": limit, "REDUCTION_SCHEME_MASK": sums}
        wanted |= {f"MIN_ALIGNMENT_{x}_BYTES": alignment for x in "ABCD"}
        for name, value in wanted.items():
            attribute = int(lt.MatmulPreferenceAttribute[name])
            data = np.array([value], lt.get_matmul_preference_attribute_dtype(attribute))
            lt.matmul_preference_set_attribute(preference, attribute, _address(data), data.nbytes)

    def _ask(self, handle: int, preference: int) -> list[Algorithm]:
        lt, count = self._lt, np.zeros(1, np.int32)
        results = np.zeros(MOST, lt.matmul_heuristic_result_dtype)
        try:
            lt.matmul_algo_get_heuristic(
                handle, self.operation, *self.layouts, preference, MOST, _address(results), _address(count)
            )
        except lt.cuBLASLtError as error:
            if getattr(error, "status", None) != _NOT_SUPPORTED:
                raise
        good = [r for r in results[: int(count[0])] if int(r["state"]) == 0]
        names = _told_apart([self._name(r["algo"]) for r in good])
        return [Algorithm(n, int(r["workspace_size"]), r["algo"].tobytes()) for n, r in zip(names, good, strict=True)]

    def _name(self, algorithm: Any) -> str:
        """Its attributes that are not 0."""
        lt, opaque, found = self._lt, np.frombuffer(algorithm.tobytes(), np.uint64), list[str]()
        for name, attribute in lt.MatmulAlgoConfigAttribute.__members__.items():
            data = np.zeros(1, lt.get_matmul_algo_config_attribute_dtype(int(attribute)))
            written = np.zeros(1, np.uint64)
            with suppress(lt.cuBLASLtError):  # an attribute that this version of the library does not know
                lt.matmul_algo_config_get_attribute(
                    _address(opaque), int(attribute), _address(data), data.nbytes, _address(written)
                )
            if data[0]:
                found.append(f"{name.lower()}={data[0]}")
        return ",".join(found)

    def _add_layout(self, matrix: Matrix) -> None:
        lt = self._lt
        self.layouts.append(int(lt.matrix_layout_create(_TYPES[matrix.dtype], matrix.rows, matrix.cols, matrix.ld)))
        batches = {"BATCH_COUNT": self._matmul.batch, "STRIDED_BATCH_OFFSET": matrix.stride}
        for name, value in batches.items() if self._matmul.batch > 1 else ():
            attribute = int(lt.MatrixLayoutAttribute[name])
            data = np.array([value], lt.get_matrix_layout_attribute_dtype(attribute))
            lt.matrix_layout_set_attribute(self.layouts[-1], attribute, _address(data), data.nbytes)

    def _set(self, name: str, value: int) -> None:
        attribute = int(self._lt.MatmulDescAttribute[name])
        data = np.array([value], self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self.operation, attribute, _address(data), data.nbytes)


def _wanted(found: Sequence[Algorithm], spec: Mapping[str, Any]) -> Algorithm:
    """The algorithm of that name. Raises DeviceError."""
    name = str(spec["algorithm"])
    for algorithm in found:
        if algorithm.name == name:
            return algorithm
    raise DeviceError(
        f"cuBLASLt {cublaslt_version()} has no algorithm {name!r} for this product, which was made with {spec['version']}: "
        f"tune again with this cuBLASLt; it has {len(found)} others"
    )


def _told_apart(names: Sequence[str]) -> list[str]:
    """Equal names numbered: attributes may not say all."""
    return [f"{n}#{names[:i].count(n)}" if n in names[:i] else n for i, n in enumerate(names)]


def _in_memory(algorithm: Algorithm) -> np.ndarray:
    return np.frombuffer(algorithm.opaque, np.uint64).copy()


def _address(data: np.ndarray) -> int:
    return int(data.ctypes.data)


def _bindings() -> Any:
    """The bindings' module. Raises DeviceError."""
    try:
        return import_module("nvmath.bindings.cublasLt")
    except ImportError as error:
        raise DeviceError(f"cuBLASLt: nvmath-python is not installed ({error}): {_INSTALL}") from error


_handles: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _handle(device: Device) -> int:
    """The library's state on a device, made once; its context is current."""
    if device not in _handles:
        with _translated("cuBLASLt cannot be opened"):
            _handles[device] = int(_bindings().create())
    return _handles[device]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Whatever the bindings throw as DeviceError."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        raise DeviceError(f"{what}: {str(error).strip() or type(error).__name__}") from error
