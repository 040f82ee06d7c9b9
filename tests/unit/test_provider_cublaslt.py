"""cuBLASLt without it: what is refused and why, what it is told, checked by a double that computes what the descriptors say."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cublaslt_double import MEMBERS, RESULT, SIGNATURES, Bindings, Failed, LtDevice, Made
from cublaslt_workloads import (
    CHAINED,
    GELU,
    TANH_GELU,
    chain,
    checked,
    conv,
    feeds_of,
    gemm,
    matmul,
    placed,
    t,
    workloads,
)

from wpk.core.errors import ArtifactError, DeviceError, InvalidConfig
from wpk.core.pointwise import parse
from wpk.core.target import Target, host_target
from wpk.core.workload import Workload
from wpk.providers.cublaslt import CublasLt, Installed
from wpk.providers.cublaslt_ops import lower
from wpk.providers.cublaslt_tail import Tail, Unsupported, tail
from wpk.providers.reference import reference_output
from wpk.runtime.cuda import cublaslt_call
from wpk.runtime.cuda.cublaslt_call import CublasLtCall, Matmul
from wpk.runtime.cuda.runner import CudaRunner
from wpk.settings import gpu_target

H200 = gpu_target("sm_90a")
SMALL = gemm(24, 40, 16, "float16", (0, 1), (t("float16", 40),), "relu(add(acc,in2))")


class Library:
    """The installed library's place in the provider, on an emulated device."""

    def __init__(self, device: LtDevice) -> None:
        self.device = device

    def version(self) -> str:
        return "13.4.0"

    def offers(self, spec: dict[str, Any], target: Target) -> list[str]:
        (names,) = self.device.offers("cublaslt", spec)
        return names


@pytest.fixture
def device() -> LtDevice:
    return LtDevice(H200)


@pytest.fixture
def lt(device: LtDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bindings]:
    """The bindings; whatever descriptors a test makes must be gone in the end."""
    made = Bindings(device, (Made(20), Made(21, workspace=4096), Made(22)))
    monkeypatch.setattr(cublaslt_call, "_bindings", lambda: made)
    yield made
    assert all(hasattr(x, "handle") for x in made.live.values())


@pytest.fixture
def provider(device: LtDevice, lt: Bindings) -> CublasLt:
    return CublasLt(Library(device))


@pytest.mark.parametrize("w", list(workloads()), ids=lambda w: w.key)
def test_what_the_library_is_told_is_the_operator(device: LtDevice, provider: CublasLt, lt: Bindings, w: Workload) -> None:
    verdict = checked(device, provider, w, H200)
    assert verdict.ok, verdict.problem
    strict = dict(w.attrs).get("precision") != "tf32"
    assert set(lt.calls) == {(20, strict)} and not device._blocks


def test_workloads_differ() -> None:
    keys = [w.key for w in workloads()]
    assert len(keys) == len(set(keys)) > 150


def test_every_algorithm_runs_when_it_is_named(device: LtDevice, provider: CublasLt, lt: Bindings) -> None:
    names = ("id=66,tile_id=20", "id=66,tile_id=21", "id=66,tile_id=22")
    assert provider.supports(SMALL, H200)
    assert [c["algorithm"] for c in provider.space(SMALL, H200).enumerate()] == list(names)
    assert provider.space(SMALL, H200).default() == {"algorithm": names[0]}
    for i in range(3):
        assert checked(device, provider, SMALL, H200, i).ok
        assert lt.calls[-1][0] == 20 + i


def test_equal_names_are_told_apart(device: LtDevice, provider: CublasLt, lt: Bindings) -> None:
    lt.offered = (Made(20), Made(20, workspace=64), Made(5, state=15))
    assert [c["algorithm"] for c in provider.space(SMALL, H200).enumerate()] == ["id=66,tile_id=20", "id=66,tile_id=20#1"]


def test_what_needs_no_workspace_is_offered_too(device: LtDevice, provider: CublasLt, lt: Bindings) -> None:
    """The library gives its best guesses only: where those want workspace, others show when none is allowed."""
    lt.offered = (*(Made(i, workspace=256) for i in range(1, 9)), Made(30))
    names = [str(c["algorithm"]) for c in provider.space(SMALL, H200).enumerate()]
    assert len(names) == 9 and names[-1] == "id=66,tile_id=30"
    assert checked(device, provider, SMALL, H200, 8).ok and lt.calls[-1][0] == 30


def test_sums_are_kept_in_float32(device: LtDevice, provider: CublasLt, lt: Bindings) -> None:
    """Parts of k meet in the output only where that is float32."""
    lt.offered = (Made(1, scheme=1), Made(2, scheme=2), Made(4, scheme=4))
    assert len(provider._algorithms(SMALL, H200)) == 1 and set(lt.masks) == {2}
    assert len(provider._algorithms(gemm(8, 8, 8), H200)) == 2 and set(lt.masks) == {2, 3}


def test_the_workspace_is_what_the_algorithm_wants(device: LtDevice, provider: CublasLt) -> None:
    space = [c["algorithm"] for c in provider.space(SMALL, H200).enumerate()]
    sizes = [CublasLtCall(provider.build(SMALL, {"algorithm": n}, H200).spec or {}, device).workspace_bytes for n in space]
    assert sizes[0] == sizes[2] == 0 and 4096 <= sizes[1] < 8192


def test_arrays_at_odd_places_get_an_algorithm_that_can(device: LtDevice, provider: CublasLt, lt: Bindings) -> None:
    lt.offered = (Made(20), Made(21, aligned=4))
    w = gemm(6, 8, 4)
    feeds = feeds_of(w)
    pointers = placed(device, provider, w, feeds, H200)
    odd = device.allocate(feeds[0].nbytes + 16) + 4
    device.upload(odd, feeds[0])
    call = device.library("cublaslt", provider.build(w, {"algorithm": "id=66,tile_id=20"}, H200).spec or {})
    found = np.empty((6, 8), np.float32)
    for first, tile in ((pointers[0], 20), (odd, 21), (pointers[0], 20)):
        call(0, [first, *pointers[1:]])
        device.download(pointers[-1], found)
        np.testing.assert_allclose(found, feeds[0] @ feeds[1], rtol=1e-5, atol=1e-5)
        assert lt.calls[-1][0] == tile
    lt.offered = (Made(20),)
    with pytest.raises(DeviceError, match="multiples of 8 bytes only"):
        call(0, [odd + 4, *pointers[1:]])


def test_descriptors_go_with_their_call(device: LtDevice, provider: CublasLt, lt: Bindings) -> None:
    spec = provider.build(SMALL, {"algorithm": "id=66,tile_id=20"}, H200).spec or {}
    before = len(lt.live)
    call = CublasLtCall(spec, device)
    assert len(lt.live) == before + 5
    call.close()
    call.close()
    assert len(lt.live) == before
    del call


# Failing


def test_an_algorithm_that_is_not_offered_is_invalid(device: LtDevice, provider: CublasLt) -> None:
    with pytest.raises(InvalidConfig, match=r"does not offer the algorithm 'id=7' .* 3 others"):
        provider.build(SMALL, {"algorithm": "id=7"}, H200)
    with pytest.raises(InvalidConfig, match="algorithm ''"):
        provider.build(SMALL, {}, H200)
    spec = provider.build(SMALL, {"algorithm": "id=66,tile_id=20"}, H200).spec or {}
    with pytest.raises(DeviceError, match=r"cuBLASLt 13\.4\.0 has no algorithm 'id=7'.* made with 12\.0\.1: tune again"):
        CublasLtCall({**spec, "algorithm": "id=7", "version": "12.0.1"}, device)


def test_a_malformed_call_is_refused(device: LtDevice, provider: CublasLt) -> None:
    spec = dict(provider.build(SMALL, {"algorithm": "id=66,tile_id=20"}, H200).spec or {})
    matmul = dict(spec["matmul"])  # type: ignore[call-overload]
    del matmul["batch"]
    with pytest.raises(ArtifactError, match="malformed: 'batch'"):
        CublasLtCall({**spec, "matmul": matmul}, device)


def test_no_algorithm_is_a_reason_and_a_failure_is_another(provider: CublasLt, lt: Bindings) -> None:
    lt.offered = ()
    assert "no algorithm" in provider.supports(SMALL, H200).reason
    lt.failing = 13
    assert "heuristics failed: status 13" in provider.supports(gemm(2, 2, 2), H200).reason


def test_a_failure_while_describing_leaves_nothing(device: LtDevice, lt: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = lower(SMALL)
    broken = replace(matmul, d=replace(matmul.d, ld=1))
    with pytest.raises(DeviceError, match="cannot describe a product"):
        CublasLtCall.offers({"matmul": broken.to_json(), "limit": 0}, device)
    assert not lt.live or all(hasattr(x, "handle") for x in lt.live.values())


def test_without_the_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(cublaslt_call, "import_module", missing)
    provider = CublasLt()
    support = provider.supports(SMALL, H200)
    assert not support and "wpk[cuda]" in support.reason and "nvmath" in support.reason
    assert provider.version == "absent"
    # what was recorded where the library is can be built where it is not
    assert (provider.build(SMALL, {"algorithm": "id=66"}, H200).spec or {})["algorithm"] == "id=66"


def test_without_the_library_the_extra_is_named(lt: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise RuntimeError("libcublasLt.so.13 is nowhere")

    monkeypatch.setattr(lt, "get_version", missing)
    reason = CublasLt().supports(SMALL, H200).reason
    assert "wpk[cuda]" in reason and "nowhere" in reason


def test_other_targets_are_refused(provider: CublasLt, lt: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    from wpk.providers import cublaslt

    assert "NVIDIA" in provider.supports(SMALL, host_target(1)).reason
    device = LtDevice(gpu_target("sm_80"))
    monkeypatch.setattr(cublaslt, "open_device", lambda: device)
    assert "only on the GPU: here is" in CublasLt(Installed()).supports(SMALL, H200).reason
    lt._device = device
    assert CublasLt(Installed()).supports(SMALL, gpu_target("sm_80"))


F32, F16 = t("float32", 8, 8), t("float16", 8, 8)
REFUSED = [
    (Workload("softmax", (F32,), (F32,), (("axis", 1),)), "no softmax"),
    (gemm(8, 8, 8, "float64"), "a product of float64"),
    (replace(gemm(8, 8, 8), inputs=(F32, F16)), "a product of float32 and float16"),
    (replace(gemm(8, 8, 8), outputs=(F16,)), "in float16"),
    (gemm(8, 0, 8), "an empty tensor"),
    (gemm(8, 8, 0), "an empty tensor"),
    (conv(1, 16, 16, (4, 4), layouts=("NCHW16c", "NCHW16c")), "row-major and NHWC"),
    (conv(1, 16, 16, (4, 4), kernel=3), "only 1×1 convolutions"),
    (conv(1, 16, 16, (4, 4), stride=2), "only 1×1 convolutions"),
    (conv(1, 16, 16, (4, 4), group=2), "only 1×1 convolutions"),
    (matmul((2, 1, 8, 16), (2, 3, 16, 8)), "broadcast in part"),
    (gemm(8, 8, 8, epilogue="sigmoid(acc)"), "no activation sigmoid"),
    (gemm(8, 8, 8, epilogue="min(max(acc,0.0),6.0)"), "no activation min"),
    (gemm(8, 8, 8, epilogue="max(acc,mul(acc,0.1))"), "no function of one sum|no activation"),
    (gemm(8, 8, 8, epilogue=GELU.format(x="acc")), "approximation by tanh"),
    (gemm(8, 8, 8, added=(F32,), epilogue="add(relu(acc),in2)"), "operand 2 is read after the sum"),
    (gemm(8, 8, 8, added=(F32,), epilogue="mul(acc,in2)"), "operand 2 is read after the sum"),
    (gemm(8, 8, 8, epilogue="add(acc,in1)"), "operand 1 is multiplied and added"),
    (gemm(8, 8, 8, added=(F32, F32), epilogue="add(add(acc,in2),in3)"), "operand 3 is one addition too many"),
    (gemm(8, 8, 8, added=(t("float32", 8, 1),), epilogue="add(acc,in2)"), "operand 2 is neither"),
    (gemm(8, 8, 8, "float16", added=(t("float32", 8),), epilogue="add(acc,in2)"), "operand 2 is float32, the output float16"),
    (gemm(8, 8, 8, "float16", added=(F32,), epilogue="add(acc,in2)"), "operand 2 is float32, the output float16"),
    (conv(1, 16, 8, (4, 4), epilogue="add(add(acc,in2),in3)", residual=True), "operand 3 is one addition too many"),
]


@pytest.mark.parametrize(("w", "reason"), REFUSED, ids=lambda x: x.key if isinstance(x, Workload) else "")
def test_what_it_cannot_do_is_refused(provider: CublasLt, w: Workload, reason: str) -> None:
    support = provider.supports(w, H200)
    assert not support
    with pytest.raises(Unsupported, match=reason):
        lower(w)
    assert lower_reason(w) == support.reason
    with pytest.raises(InvalidConfig):
        provider.build(w, {"algorithm": "id=66,tile_id=20"}, H200)
    with pytest.raises(InvalidConfig, match=reason):
        provider.pack(w, {}, [np.zeros(w.inputs[i].shape, np.float32) for i in w.constants], H200)


def lower_reason(w: Workload) -> str:
    with pytest.raises(Unsupported) as caught:
        lower(w)
    return str(caught.value)


# Epilogues


TAILS = {
    "acc": Tail(), "add(acc,in2)": Tail(1, (2,)), "add(in3,add(acc,in2))": Tail(1, (3, 2)),
    "relu(acc)": Tail(1, (), "RELU"), "max(acc,0.0)": Tail(1, (), "RELU"), "where(lt(acc,0.0),0.0,acc)": Tail(1, (), "RELU"),
    "mul(0.25,acc)": Tail(0.25), "div(acc,4.0)": Tail(0.25), "mul(mul(acc,0.5),0.5)": Tail(0.25), "neg(acc)": Tail(-1),
    "relu(add(mul(acc,2.0),in2))": Tail(2, (2,), "RELU"), "add(acc,add(in2,in3))": Tail(1, (2, 3)),
    GELU.format(x="acc"): Tail(1, (), "GELU"), TANH_GELU.format(x="add(acc,in2)"): Tail(1, (2,), "GELU"),
    "mul(mul(add(in2,acc),add(erf(div(add(in2,acc),1.4142135381698608)),1.0)),0.5)": Tail(1, (2,), "GELU"),
    "mul(add(acc,in2),mul(0.5,add(1.0,tanh(mul(0.79788,add(add(acc,in2),mul(0.044715,pow(add(acc,in2),3.0))))))))":
        Tail(1, (2,), "GELU"),
}  # fmt: skip


@pytest.mark.parametrize("text", TAILS)
def test_epilogues_are_read_however_they_are_spelled(text: str) -> None:
    assert tail(parse(text), exact=False) == TAILS[text]


@pytest.mark.parametrize("text", [
    "relu(add(acc,acc))", "mul(acc,acc)", "mul(add(acc,in2),2.0)", "sub(acc,in2)", "add(acc,1.0)", "abs(acc)", "tanh(acc)",
    "mul(acc,sigmoid(acc))", "mul(acc,sigmoid(mul(1.702,acc)))", "min(max(acc,0.0),1000000.0)", "add(relu(acc),acc)", "in2",
    "floor(acc)",
])  # fmt: skip
def test_other_epilogues_are_refused(text: str) -> None:
    with pytest.raises(Unsupported):
        tail(parse(text), exact=False)


def test_only_gelu_by_tanh_is_exact() -> None:
    assert tail(parse(TANH_GELU.format(x="acc")), exact=True).activation == "GELU"
    with pytest.raises(Unsupported, match="tanh"):
        tail(parse(GELU.format(x="acc")), exact=True)


def test_precisions() -> None:
    assert lower(gemm(8, 8, 8)).compute == "32F" and lower(gemm(8, 8, 8, tf32=True)).compute == "32F_FAST_TF32"
    assert lower(gemm(8, 8, 8, "bfloat16")).compute == "32F"
    assert lower(gemm(8, 8, 8, epilogue=GELU.format(x="acc"), tf32=True)).epilogue == "GELU"


def test_products_are_tall_where_they_can_be() -> None:
    assert lower(matmul((5, 8, 16), (16, 24))).batch == 1 and lower(matmul((5, 8, 16), (5, 16, 24))).batch == 5
    assert lower(conv(2, 16, 24, (5, 4), layouts=("NHWC", "NHWC"))).batch == 1
    assert lower(conv(2, 16, 24, (5, 4))).batch == 2


@pytest.mark.parametrize("w", [SMALL, gemm(8, 8, 8), matmul((5, 8, 16), (5, 16, 24))], ids=lambda w: w.key)
def test_a_call_survives_json(w: Workload) -> None:
    made = lower(w)
    assert Matmul.from_json(json.loads(json.dumps(made.to_json()))) == made


# In a plan


def test_a_plan_runs_it(device: LtDevice, provider: CublasLt) -> None:
    w, feeds = CHAINED, feeds_of(CHAINED)
    with CudaRunner(chain(provider, w, feeds, H200), device) as runner:
        (once,) = reference_output(w, feeds)
        (twice,) = reference_output(w, [once, *feeds[1:]])
        for _ in range(2):
            np.testing.assert_allclose(runner.run(None, {"x": feeds[0]})[0], twice, rtol=1e-4, atol=1e-4)


def test_one_c_for_all_batches_is_packed_once(provider: CublasLt) -> None:
    w = conv(3, 16, 24, (5, 4), "float16", epilogue="add(acc,in2)")
    bias = np.arange(24, dtype=np.float32).reshape(1, 24, 1, 1)
    _, packed = provider.pack(w, {}, [np.zeros((24, 16, 1, 1), np.float16), bias], H200)
    assert packed.shape == (1, 24, 5, 4) and packed.dtype == np.float16
    np.testing.assert_array_equal(packed, np.broadcast_to(bias, packed.shape))


# The real package


def test_the_double_is_like_the_real_bindings() -> None:
    """Names, parameters and values; nothing is called that needs the library."""
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    real = importlib.import_module("nvmath.bindings.cublasLt")
    for function, parameters in SIGNATURES.items():
        text = str(getattr(real, function).__doc__).splitlines()[0]
        found = [p.split()[-1] for p in text[text.index("(") + 1 : text.index(")")].split(",") if p.strip()]
        assert tuple(found) == parameters, function
    for enumeration, members in MEMBERS.items():
        for name, (value, _) in members.items():
            assert int(getattr(real, enumeration)[name]) == value, name
    assert real.matmul_heuristic_result_dtype == RESULT and issubclass(real.cuBLASLtError, Exception)


def test_the_attributes_have_the_real_types() -> None:
    pytest.importorskip("nvmath", reason="nvmath-python is not installed")
    real = importlib.import_module("nvmath.bindings.cublasLt")
    for enumeration, members in MEMBERS.items():
        for name, (value, dtype) in members.items() if enumeration != "Epilogue" else ():
            snake = {"Matmul": "matmul", "Matrix": "matrix"}[enumeration[:6]] + "".join(
                f"_{c.lower()}" if c.isupper() else c for c in enumeration[6:]
            )
            assert np.dtype(getattr(real, f"get_{snake}_dtype")(value)) == np.dtype(dtype), name


def test_the_double_refuses() -> None:
    """A double that accepts everything proves nothing."""
    lt = Bindings(LtDevice(H200))
    with pytest.raises(Failed, match="layout"):
        lt.matrix_layout_create(0, 8, 4, 7)
    with pytest.raises(Failed, match="types"):
        lt.matmul_desc_create(64, 2)
    d = lt.matmul_desc_create(68, 0)
    with pytest.raises(Failed, match="size"):
        lt.matmul_desc_set_attribute(d, 3, 0, 8)
