"""Instructions: the template does what the meaning says, and another ISA prints the meaning itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dsl_kernels import Arrays, buf, inp, lanes, ld, loop, out, st, v
from run_c import run_c, runnable

from wpk.core.errors import InternalError
from wpk.dsl.codegen.c import emit
from wpk.dsl.instr import Instr, expand, find, instructions, register
from wpk.dsl.interp import run
from wpk.dsl.ir import Alloc, Const, Invoke, Kernel, Stmt
from wpk.dsl.verify import verify
from wpk.kernels.instr import avx2, avx512, neon

STEPS = 3
DOTS = (avx512.VNNI, avx512.BF16, avx2.VNNI)
FMAS = (avx512.FMA, avx2.FMA, neon.FMA)


def cpu_has(instr: Instr) -> bool:
    """Does this CPU have the flags that an instruction needs?"""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return runnable(instr.isa) and set(instr.features) <= words


def dot_kernel(instr: Instr) -> Kernel:
    """y[l] = sum over k and q of a[k, q] * w[k, l, q], one instruction a k."""
    acc, a, w = instr.operands
    n, at = acc.shape[0], (Const(0),)
    invoke = Invoke(instr.name, (("acc", at), ("a", (v("k"), *at)), ("w", (v("k"), *at, *at))))
    return _wrapped(
        instr, invoke, n, (inp("a", STEPS, *a.shape, dtype=a.dtype), inp("w", STEPS, *w.shape, dtype=w.dtype))
    )


def fma_kernel(instr: Instr) -> Kernel:
    """y[l] = sum over k of a[k] * w[k, l]."""
    n = instr.operands[0].shape[0]
    invoke = Invoke(instr.name, (("acc", (Const(0),)), ("a", (v("k"),)), ("w", (v("k"), Const(0)))))
    return _wrapped(instr, invoke, n, (inp("a", STEPS), inp("w", STEPS, n)))


def _wrapped(instr: Instr, invoke: Stmt, n: int, inputs: tuple) -> Kernel:  # type: ignore[type-arg]
    dtype = instr.operands[0].dtype
    zero = lanes("z", n, st("acc", (v("z"),), Const(0, dtype)))
    done = lanes("z", n, st("y", (v("z"),), ld("acc", v("z"))))
    body = Alloc(buf("acc", n, dtype=dtype), (zero, loop("k", STEPS, invoke), done))
    return Kernel(instr.name, (*inputs, out("y", n, dtype=dtype)), (body,))


def feeds(kernel: Kernel) -> Arrays:
    """Small random values of each parameter's dtype."""
    rng = np.random.default_rng(3)
    found: Arrays = {}
    for p in kernel.params:
        if p.dtype == "bfloat16":
            found[p.name] = (rng.normal(size=p.shape).astype(np.float32).view(np.uint32) >> 16).astype(
                np.uint16
            )
        elif p.dtype == "float32":
            found[p.name] = rng.normal(size=p.shape).astype(np.float32)
        else:
            low, high = (0, 256) if p.dtype == "uint8" else (-128, 128)
            found[p.name] = rng.integers(low, high, p.shape).astype(p.dtype)
    return found


@pytest.mark.parametrize("isa", ["own", "neon"])
@pytest.mark.parametrize("instr", (*DOTS, *FMAS), ids=lambda i: i.name)
def test_template_and_meaning_agree(instr: Instr, isa: str) -> None:
    kernel = dot_kernel(instr) if instr in DOTS else fma_kernel(instr)
    verify(kernel)
    isa = instr.isa if isa == "own" else isa
    if isa == instr.isa and not cpu_has(instr):
        pytest.skip(f"this machine does not run {instr.name}")
    meant, found = feeds(kernel), feeds(kernel)
    run(kernel, meant)
    source = run_c(kernel, isa, found)
    np.testing.assert_allclose(found["y"], meant["y"], rtol=1e-5, atol=1e-5)
    if instr in DOTS:
        assert ("__asm__" in source.text) == (isa == instr.isa)


def test_a_window_of_other_strides_falls_back_to_the_meaning() -> None:
    wide = avx2.VNNI
    n, at = 8, (Const(0),)
    invoke = Invoke(wide.name, (("acc", at), ("a", (v("k"), *at)), ("w", (v("k"), *at, *at))))
    kernel = _wrapped(
        wide, invoke, n, (inp("a", STEPS, 4, dtype="uint8"), inp("w", STEPS, n, 5, dtype="int8"))
    )
    verify(kernel)
    assert "__asm__" not in emit(kernel, "avx2").text


def test_the_registry() -> None:
    assert find("avx512_fma_f32x16") is avx512.FMA
    assert register(avx512.FMA) is avx512.FMA
    assert [i.name for i in instructions("neon")] == ["neon_fmla_element_f32x4", "neon_fmla_f32x4"]
    with pytest.raises(InternalError, match="unknown instruction nothing"):
        find("nothing")
    with pytest.raises(InternalError, match="two instructions are named"):
        register(Instr("avx512_fma_f32x16", "avx512", (), (), ""))


def test_expansion_checks_its_operands() -> None:
    with pytest.raises(InternalError, match="takes 3 operands, found 1"):
        expand(Invoke("avx512_fma_f32x16", (("acc", (Const(0),)),)))
    with pytest.raises(InternalError, match="fewer dimensions than operand w"):
        expand(Invoke("avx512_fma_f32x16", (("acc", (Const(0),)), ("a", ()), ("w", ()))))
