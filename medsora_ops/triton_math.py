"""What the Triton kernels share: the functions of the field in float32, matrix products, a choice among tuples.

Every kernel converts what it loads to float32 at once and back when it stores. Only operands of a matrix product take
the type of the rows again, for the matrix units.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from medsora_ops.launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def reciprocal(x):
    """1 / x, to the last bit but one, of a float32 number that is not denormal; zero where that would be.

    A plain division has the compiler scale divisors beyond 2^126, four instructions more.
    """
    if _INTERPRETED:
        return 1.0 / x
    elif is_cuda():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )  # fmt: skip
    else:
        return 1.0 / x


@triton.jit
def sigmoid(x):
    """Not by the one instruction that a GPU has for tanh: its error of 2^-12 is 4 % of the gate of -5."""
    return reciprocal(1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def silu_slope(x, sigmoid_x):
    """The derivative of x * sigmoid(x)."""
    return sigmoid_x * (1.0 + x * (1.0 - sigmoid_x))


@triton.jit
def softplus(x):
    # log(1 + e) forgets a small e; there the series up to e^6 is exact to float32.
    e = tl.exp2(tl.abs(x) * -LOG2E)
    series = e * (1.0 - e * (0.5 - e * (1.0 / 3 - e * (0.25 - e * (0.2 - e * (1.0 / 6))))))
    return tl.maximum(x, 0.0) + tl.where(e < 0.0625, series, tl.log(1.0 + e))


@triton.jit
def causal_decays(causal, logarithms):
    """2 to the power of these, zero unless causal. Masked before: of a decay from a later token exp2 may overflow."""
    return tl.exp2(tl.where(causal, logarithms, float("-inf")))


@triton.jit
def settled(x):
    """x, computed once, in the layout that it was computed in.

    The compiler likes to carry a product's operands through all elementwise work in the layout of the product, in
    which several warps hold, and then compute, the same numbers. An opaque move stops it, on NVIDIA's GPUs.
    """
    if _INTERPRETED:
        return x
    elif is_cuda():
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1)
    else:
        return x


@triton.jit
def anew(x):
    """The same int32 or pointer, to a multiple of 16 bytes, of which the compiler does not know that it is the same:
    what is made of it is not kept over a loop."""
    if _INTERPRETED:
        return x
    elif not is_cuda():
        return x
    elif x.dtype.is_ptr():
        bits = x.to(tl.int64)
        bits = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [bits], dtype=tl.int64, is_pure=False, pack=1)
        return tl.multiple_of(bits.to(x.dtype), 16)
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def tf32(x, rest):
    """x rounded to tf32, or, if `rest`, what that leaves of it; their sum is x to float32. Opaque, as `settled`."""
    rounded = tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1
    )  # fmt: skip
    return settled(tl.where(rest, x - rounded, rounded))


@triton.jit
def matmul(a, b, OPERANDS: tl.constexpr):
    """a @ b in float32 sums. OPERANDS: the type that a and b take; float32 is exact to float32, on NVIDIA by 3 x tf32.

    Never give it the transpose of another product: Triton 3.4 to 3.7.0 miscompiles that on Hopper.
    """
    if _INTERPRETED:  # there half types are wrong in tl.dot
        return tl.dot(a.to(OPERANDS).to(tl.float32), b.to(OPERANDS).to(tl.float32))
    elif OPERANDS != tl.float32:
        return tl.dot(a.to(OPERANDS), b.to(OPERANDS))
    elif is_cuda():
        # A loop, for the compiler takes products that follow each other in one block for a chain, and has all warps
        # hold, on Ampere also compute, the same; and with operands' parts held one at a time registers do not run out.
        a, b = a.to(tl.float32), b.to(tl.float32)
        rest = tl.zeros([a.shape[0], b.shape[1]], tl.float32)
        for part in tl.range(2, disable_licm=True):
            rest = tl.dot(tf32(a, part == 0), tf32(b, part == 1), rest, input_precision="tf32")
        rest = tl.where(rest == rest, rest, 0.0)  # of infinity, infinity is left NaN
        return tl.dot(tf32(a, False), tf32(b, False), rest, input_precision="tf32")
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")


@triton.jit
def product(a, b):
    """a @ b, exact to float32 as `matmul`; operands are taken apart by Triton, which is less where one is a table."""
    a, b = a.to(tl.float32), b.to(tl.float32)
    if _INTERPRETED:
        return tl.dot(a, b)
    return tl.dot(a, b, input_precision="tf32x3" if is_cuda() else "ieee")


@triton.jit
def pick(which, values):
    """values[which], for a tuple of scalars or pointers and a number known only when the kernel runs."""
    found = values[0]
    for i in tl.static_range(1, len(values)):
        found = tl.where(which == i, values[i], found)
    return found
