"""Vectors of 4 or 8 float32 inside numba kernels, so that label loops run in the processor's vector registers.

The width is a type: a kernel receives `LANES[4]` or `LANES[8]` and hands it to `fill` and `load`. Positions are element
offsets into contiguous arrays and are not checked. numba's disk cache does not see changes of this file in kernels of
other files: touch the callers after a change here.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, overload, register_model

LANES = {4: (0,) * 4, 8: (0,) * 8}
intrinsic: Any = numba_intrinsic  # kernels call it without the typing context that mypy would ask for
_F32, _I32 = ir.FloatType(), ir.IntType(32)

# exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2)/2; coefficients of the Cephes library (expf), highest power first.
_EXP_POLY = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP_FLOOR = -87.0  # below it float32 leaves its normal range: exp is taken as 0


class Vector(types.Type):
    """numba type of `count` float32 lanes."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"float32x{count}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(_F32, kind.count))


def _constant(kind: Vector, value: float) -> ir.Constant:
    return ir.Constant(ir.VectorType(_F32, kind.count), [ir.Constant(_F32, value)] * kind.count)


def _broadcast(builder: Any, kind: Vector, scalar: Any) -> Any:
    vector = builder.insert_element(ir.Constant(ir.VectorType(_F32, kind.count), ir.Undefined), scalar, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, kind.count), [_I32(0)] * kind.count)
    return builder.shuffle_vector(vector, vector, mask)


def _address(context: Any, builder: Any, array_type: Any, array: Any, position: Any, count: int) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [position])
    return builder.bitcast(pointer, ir.VectorType(_F32, count).as_pointer())


@intrinsic
def fill(typing, value, lanes):  # type: ignore[no-untyped-def]
    """The vector with `value` in each lane."""
    kind = Vector(lanes.count)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _broadcast(builder, kind, args[0])

    return kind(types.float32, lanes), emit


@intrinsic
def load(typing, array, position, lanes):  # type: ignore[no-untyped-def]
    """The lanes at elements `position ...` of a contiguous float32 array."""
    kind = Vector(lanes.count)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(_address(context, builder, array, args[0], args[1], kind.count), align=4)

    return kind(array, types.int64, lanes), emit


@intrinsic
def store(typing, array, position, vector):  # type: ignore[no-untyped-def]
    """Write the lanes to elements `position ...` of a contiguous float32 array."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[2], _address(context, builder, array, args[0], args[1], vector.count), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), emit


def _elementwise(emit_op: Any) -> Any:
    """An intrinsic of two vectors, or of a vector and a float32 for every lane."""

    @intrinsic
    def op(typing, left, right):  # type: ignore[no-untyped-def]
        scalar = not isinstance(right, Vector)

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            a, b = args
            return emit_op(builder, a, _broadcast(builder, left, b) if scalar else b)

        return left(left, types.float32 if scalar else right), emit

    return op


_add = _elementwise(lambda builder, a, b: builder.fadd(a, b))
_subtract = _elementwise(lambda builder, a, b: builder.fsub(a, b))
_multiply = _elementwise(lambda builder, a, b: builder.fmul(a, b))
larger = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@overload(operator.add)
def _overload_add(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _add(a, b)) if isinstance(a, Vector) else None


@overload(operator.sub)
def _overload_sub(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _subtract(a, b)) if isinstance(a, Vector) else None


@overload(operator.mul)
def _overload_mul(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _multiply(a, b)) if isinstance(a, Vector) else None


def _reduction(emit_op: Any) -> Any:
    """An intrinsic that folds the lanes to one float32, halves against halves (a fixed order)."""

    @intrinsic
    def op(typing, vector):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            v, width = args[0], vector.count
            while width > 1:
                width //= 2
                halves = [ir.Constant(ir.VectorType(_I32, width), [_I32(i + start) for i in range(width)])
                          for start in (0, width)]
                v = emit_op(builder, *(builder.shuffle_vector(v, v, mask) for mask in halves))
            return builder.extract_element(v, _I32(0))

        return types.float32(vector), emit

    return op


total = _reduction(lambda builder, a, b: builder.fadd(a, b))
largest = _reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


def _power_of_two(builder: Any, kind: Vector, n: Any) -> Any:
    integers = ir.VectorType(_I32, kind.count)
    biased = builder.add(builder.fptosi(n, integers), ir.Constant(integers, [_I32(127)] * kind.count))
    bits = builder.shl(biased, ir.Constant(integers, [_I32(23)] * kind.count))
    return builder.bitcast(bits, ir.VectorType(_F32, kind.count))


def _emit_exp(builder: Any, kind: Vector, x: Any) -> Any:
    vector = ir.VectorType(_F32, kind.count)
    rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]),
                                          f"llvm.rint.v{kind.count}f32")
    tiny = builder.fcmp_ordered("<", x, _constant(kind, _EXP_FLOOR))
    x = builder.select(tiny, _constant(kind, _EXP_FLOOR), x)
    n = builder.call(rint, [builder.fmul(x, _constant(kind, _LOG2_E))])
    r = builder.fsub(x, builder.fmul(n, _constant(kind, _LN2_HIGH)))
    r = builder.fsub(r, builder.fmul(n, _constant(kind, _LN2_LOW)))
    poly = _constant(kind, _EXP_POLY[0])
    for coefficient in _EXP_POLY[1:]:
        poly = builder.fadd(builder.fmul(poly, r), _constant(kind, coefficient))
    poly = builder.fadd(builder.fmul(builder.fmul(poly, r), r), builder.fadd(r, _constant(kind, 1.0)))
    return builder.select(tiny, _constant(kind, 0.0), builder.fmul(poly, _power_of_two(builder, kind, n)))


@intrinsic
def exp(typing, vector):  # type: ignore[no-untyped-def]
    """e^x in each lane for x <= 88, relative error about 1e-7; 0 below -87."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _emit_exp(builder, vector, args[0])

    return vector(vector), emit
