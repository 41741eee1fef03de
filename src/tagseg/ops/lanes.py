"""Vectors of float32 inside numba kernels, so that label loops run in the processor's vector registers.

The width is a type: a kernel receives `lanes(4)`, or `lanes` of a multiple of 8, and hands it to `fill` and `load`. A
vector of more than 8 is kept as parts of 8, one register each. Positions are element offsets into contiguous arrays and
are not checked. numba's disk cache does not see changes of this file in kernels of other files: touch the callers after
a change here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, overload, register_model

intrinsic: Any = numba_intrinsic  # kernels call it without the typing context that mypy would ask for
_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
PART = 8

# exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2)/2; coefficients of the Cephes library (expf), highest power first.
_EXP_POLY = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP_FLOOR = -87.0  # below it float32 leaves its normal range: exp is taken as 0


def lanes(count: int) -> tuple[int, ...]:
    """The type of so many lanes, as a value: for at least `count` labels."""
    return (0,) * (4 if count <= 4 else -(-count // PART) * PART)


class Vector(types.Type):
    """numba type of `count` float32 lanes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.width = min(count, PART)
        self.parts = count // self.width
        super().__init__(name=f"float32x{count}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.ArrayType(ir.VectorType(_F32, kind.width), kind.parts))


def _of_parts(builder: Any, kind: Vector, make: Callable[[int], Any]) -> Any:
    """A vector whose part p is `make(p)`."""
    whole = ir.Constant(ir.ArrayType(ir.VectorType(_F32, kind.width), kind.parts), ir.Undefined)
    for p in range(kind.parts):
        whole = builder.insert_value(whole, make(p), p)
    return whole


def _part(builder: Any, whole: Any, p: int) -> Any:
    return builder.extract_value(whole, p)


def _constant(like: Any, value: float) -> ir.Constant:
    return ir.Constant(like.type, [ir.Constant(_F32, value)] * like.type.count)


def _broadcast(builder: Any, width: int, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(_F32, width), ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, width), [_I32(0)] * width))


def _call(builder: Any, name: str, *args: Any) -> Any:
    """The processor's own operation of that name on every lane of vectors of one type."""
    kind = args[0].type
    function = ir.FunctionType(kind, [kind] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}f32"), args)


def _data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def _address(builder: Any, data: Any, position: Any, kind: Vector, p: int) -> Any:
    pointer = builder.gep(data, [builder.add(position, _I64(p * kind.width))])
    return builder.bitcast(pointer, ir.VectorType(_F32, kind.width).as_pointer())


@intrinsic
def fill(typing, value, lanes):  # type: ignore[no-untyped-def]
    """The vector with `value` in each lane."""
    kind = Vector(lanes.count)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _of_parts(builder, kind, lambda p: _broadcast(builder, kind.width, args[0]))

    return kind(types.float32, lanes), emit


@intrinsic
def load(typing, array, position, lanes):  # type: ignore[no-untyped-def]
    """The lanes at elements `position ...` of a contiguous float32 array."""
    kind = Vector(lanes.count)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = _data(context, builder, array, args[0])
        return _of_parts(builder, kind, lambda p: builder.load(_address(builder, data, args[1], kind, p), align=4))

    return kind(array, types.int64, lanes), emit


@intrinsic
def store(typing, array, position, vector):  # type: ignore[no-untyped-def]
    """Write the lanes to elements `position ...` of a contiguous float32 array."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = _data(context, builder, array, args[0])
        for p in range(vector.parts):
            builder.store(_part(builder, args[2], p), _address(builder, data, args[1], vector, p), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), emit


@intrinsic
def whole(typing, array, position):  # type: ignore[no-untyped-def]
    """The element at `position` of a contiguous int32 array, as int64."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.sext(builder.load(builder.gep(_data(context, builder, array, args[0]), [args[1]])), _I64)

    return types.int64(array, types.int64), emit


@intrinsic
def fetch(typing, array, position):  # type: ignore[no-untyped-def]
    """Ask for the cache line of the element at `position`, which will soon be written; nothing waits for it."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        byte = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(builder.gep(_data(context, builder, array, args[0]), [args[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, _I32(1), _I32(3), _I32(1)])  # for writing, to stay, data
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


@intrinsic
def spread(typing, array, position, lanes):  # type: ignore[no-untyped-def]
    """The element at `position` of a contiguous float32 array, in each lane."""
    kind = Vector(lanes.count)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        value = builder.load(builder.gep(_data(context, builder, array, args[0]), [args[1]]))
        one = _broadcast(builder, kind.width, value)
        return _of_parts(builder, kind, lambda p: one)

    return kind(array, types.int64, lanes), emit


def _elementwise(emit_op: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic of two vectors, or of a vector and a float32 for every lane."""

    @intrinsic
    def op(typing, left, right):  # type: ignore[no-untyped-def]
        scalar = not isinstance(right, Vector)

        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            same = _broadcast(builder, left.width, args[1]) if scalar else None
            return _of_parts(builder, left, lambda p: emit_op(
                builder, _part(builder, args[0], p), same if scalar else _part(builder, args[1], p)))

        return left(left, types.float32 if scalar else right), emit

    return op


def _choose(sign: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(sign, a, b), a, b)


_add = _elementwise(lambda builder, a, b: builder.fadd(a, b))
_subtract = _elementwise(lambda builder, a, b: builder.fsub(a, b))
_multiply = _elementwise(lambda builder, a, b: builder.fmul(a, b))
divide = _elementwise(lambda builder, a, b: builder.fdiv(a, b))
larger = _elementwise(_choose(">"))
less = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), _constant(a, 1.0),
                                                         _constant(a, 0.0)))  # 1 where a < b, else 0


@overload(operator.add)
def _overload_add(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _add(a, b)) if isinstance(a, Vector) else None


@overload(operator.sub)
def _overload_sub(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _subtract(a, b)) if isinstance(a, Vector) else None


@overload(operator.mul)
def _overload_mul(a, b):  # type: ignore[no-untyped-def]
    return (lambda a, b: _multiply(a, b)) if isinstance(a, Vector) else None


@intrinsic
def plus_product(typing, total, left, right):  # type: ignore[no-untyped-def]
    """total + left * right, rounded once where the processor can; `right` is a vector or a float32 for every lane."""
    scalar = not isinstance(right, Vector)

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        same = _broadcast(builder, total.width, args[2]) if scalar else None
        return _of_parts(builder, total, lambda p: _call(
            builder, "fmuladd", _part(builder, args[1], p), same if scalar else _part(builder, args[2], p),
            _part(builder, args[0], p)))

    return total(total, total, types.float32 if scalar else right), emit


@intrinsic
def where_equal(typing, left, right, value):  # type: ignore[no-untyped-def]
    """`value` in the lanes where left == right, else 0."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        def chosen(p: int) -> Any:
            a, b, v = (_part(builder, whole, p) for whole in args)
            return builder.select(builder.fcmp_ordered("==", a, b), v, _constant(v, 0.0))

        return _of_parts(builder, value, chosen)

    return value(left, right, value), emit


@intrinsic
def unless(typing, flag, value):  # type: ignore[no-untyped-def]
    """`value` where the int64 `flag` is 0, zero where it is -1: without a branch that could be guessed wrong."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bits = ir.VectorType(_I32, value.width)
        keep = builder.not_(builder.trunc(args[0], _I32))
        one = builder.insert_element(ir.Constant(bits, ir.Undefined), keep, _I32(0))
        mask = builder.shuffle_vector(one, one, ir.Constant(bits, [_I32(0)] * value.width))

        def kept(p: int) -> Any:
            part = _part(builder, args[1], p)
            return builder.bitcast(builder.and_(builder.bitcast(part, bits), mask), part.type)

        return _of_parts(builder, value, kept)

    return value(types.int64, value), emit


@intrinsic
def store_whole(typing, array, position, vector):  # type: ignore[no-untyped-def]
    """Write the lanes, whole numbers, to elements `position ...` of a contiguous int32 array."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        data = _data(context, builder, array, args[0])
        for p in range(vector.parts):
            numbers = builder.fptosi(_part(builder, args[2], p), ir.VectorType(_I32, vector.width))
            pointer = builder.gep(data, [builder.add(args[1], _I64(p * vector.width))])
            builder.store(numbers, builder.bitcast(pointer, numbers.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), emit


def _fold(emit_op: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic that folds each run of `group` lanes and leaves the result in all of them (in a fixed order).

    `group` is `lanes(4)`, `lanes(8)`, or the vector's own lanes for a fold over all of it.
    """

    @intrinsic
    def op(typing, vector, group):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            parts = [_part(builder, args[0], p) for p in range(vector.parts)]
            if group.count > vector.width:
                for other in parts[1:]:
                    parts[0] = emit_op(builder, parts[0], other)
            folded = [_across(builder, emit_op, part, min(group.count, vector.width)) for part in parts]
            return _of_parts(builder, vector, lambda p: folded[0 if group.count > vector.width else p])

        return vector(vector, group), emit

    return op


def _across(builder: Any, emit_op: Callable[[Any, Any, Any], Any], part: Any, group: int) -> Any:
    """Each lane gets the fold over its run of `group` lanes, by exchanges with lanes 1/2, 1/4, ... of a run away."""
    step = group // 2
    while step:
        other = [_I32(lane ^ step) for lane in range(part.type.count)]
        swapped = builder.shuffle_vector(part, part, ir.Constant(ir.VectorType(_I32, part.type.count), other))
        part = emit_op(builder, part, swapped)
        step //= 2
    return part


total = _fold(lambda builder, a, b: builder.fadd(a, b))
largest = _fold(_choose(">"))


def _unary(emit_op: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def op(typing, vector):  # type: ignore[no-untyped-def]
        def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return _of_parts(builder, vector, lambda p: emit_op(builder, _part(builder, args[0], p)))

        return vector(vector), emit

    return op


def _emit_exp(builder: Any, x: Any) -> Any:
    tiny = builder.fcmp_ordered("<", x, _constant(x, _EXP_FLOOR))
    x = builder.select(tiny, _constant(x, _EXP_FLOOR), x)
    n = _call(builder, "rint", builder.fmul(x, _constant(x, _LOG2_E)))
    r = _call(builder, "fmuladd", n, _constant(x, -_LN2_HIGH), x)
    r = _call(builder, "fmuladd", n, _constant(x, -_LN2_LOW), r)
    poly = _constant(x, _EXP_POLY[0])
    for coefficient in _EXP_POLY[1:]:
        poly = _call(builder, "fmuladd", poly, r, _constant(x, coefficient))
    poly = _call(builder, "fmuladd", builder.fmul(r, r), poly, builder.fadd(r, _constant(x, 1.0)))
    return builder.select(tiny, _constant(x, 0.0), builder.fmul(poly, _power_of_two(builder, n)))


def _power_of_two(builder: Any, n: Any) -> Any:
    integers = ir.VectorType(_I32, n.type.count)
    biased = builder.add(builder.fptosi(n, integers), ir.Constant(integers, [_I32(127)] * n.type.count))
    return builder.bitcast(builder.shl(biased, ir.Constant(integers, [_I32(23)] * n.type.count)), n.type)


rint = _unary(lambda builder, x: _call(builder, "rint", x))  # the nearest whole number, ties to even
exp = _unary(_emit_exp)  # e^x for x <= 88, relative error about 1e-7; 0 below -87
