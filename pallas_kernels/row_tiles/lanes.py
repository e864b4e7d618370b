"""What one CUDA thread does, as Mosaic GPU inline code: scalars with operators.

Pallas works on arrays that a warpgroup shares. The row kernels give every thread runs
of 16 neighbouring channels of a row instead, because then blocks of 16 and the packing
of codes are plain register arithmetic; what a Hadamard transform sums across lanes is
left to the tensor cores.

`F32` and `I32` wrap values of the MLIR that `plgpu.inline_mgpu` is building.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, math, scf

CHANNELS = 64  # channels per thread
# Adding it rounds to an integer, to nearest even, and leaves it in the low bits.
ROUNDER = 1.5 * 2.0**23


def _i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def _f32() -> ir.Type:
    return ir.F32Type.get()


@dataclasses.dataclass(frozen=True)
class I32:
    """An unsigned 32-bit integer of one thread."""

    value: ir.Value

    @staticmethod
    def of(number: "int | I32") -> "I32":
        if isinstance(number, I32):
            return number
        number = number - (1 << 32) if number >= 1 << 31 else number
        return I32(utils.c(number, _i32()))

    def __add__(self, other: "int | I32") -> "I32":
        return I32(arith.addi(self.value, I32.of(other).value))

    def __sub__(self, other: "int | I32") -> "I32":
        return I32(arith.subi(self.value, I32.of(other).value))

    def __mul__(self, other: "int | I32") -> "I32":
        return I32(arith.muli(self.value, I32.of(other).value))

    def __floordiv__(self, other: "int | I32") -> "I32":
        return I32(arith.divui(self.value, I32.of(other).value))

    def __mod__(self, other: "int | I32") -> "I32":
        return I32(arith.remui(self.value, I32.of(other).value))

    def __and__(self, other: "int | I32") -> "I32":
        return I32(arith.andi(self.value, I32.of(other).value))

    def __or__(self, other: "int | I32") -> "I32":
        return I32(arith.ori(self.value, I32.of(other).value))

    def __xor__(self, other: "int | I32") -> "I32":
        return I32(arith.xori(self.value, I32.of(other).value))

    def __lshift__(self, other: "int | I32") -> "I32":
        return I32(arith.shli(self.value, I32.of(other).value))

    def __rshift__(self, other: "int | I32") -> "I32":
        return I32(arith.shrui(self.value, I32.of(other).value))

    def __lt__(self, other: "int | I32") -> ir.Value:
        return arith.cmpi(arith.CmpIPredicate.ult, self.value, I32.of(other).value)

    def equals(self, other: "int | I32") -> ir.Value:
        return arith.cmpi(arith.CmpIPredicate.eq, self.value, I32.of(other).value)

    def as_float(self) -> "F32":
        """The same bits as float32."""
        return F32(arith.bitcast(_f32(), self.value))


@dataclasses.dataclass(frozen=True)
class F32:
    """A float32 of one thread. No operation is fused or reordered behind its back."""

    value: ir.Value

    @staticmethod
    def of(number: "float | F32") -> "F32":
        if isinstance(number, F32):
            return number
        return F32(arith.constant(_f32(), ir.FloatAttr.get(_f32(), float(number))))

    def __add__(self, other: "float | F32") -> "F32":
        return F32(arith.addf(self.value, F32.of(other).value))

    def __sub__(self, other: "float | F32") -> "F32":
        return F32(arith.subf(self.value, F32.of(other).value))

    def __mul__(self, other: "float | F32") -> "F32":
        return F32(arith.mulf(self.value, F32.of(other).value))

    def __neg__(self) -> "F32":
        return F32(arith.negf(self.value))

    def __gt__(self, other: "float | F32") -> ir.Value:
        return arith.cmpf(arith.CmpFPredicate.OGT, self.value, F32.of(other).value)

    def __ge__(self, other: "float | F32") -> ir.Value:
        return arith.cmpf(arith.CmpFPredicate.OGE, self.value, F32.of(other).value)

    def __lt__(self, other: "float | F32") -> ir.Value:
        return arith.cmpf(arith.CmpFPredicate.OLT, self.value, F32.of(other).value)

    def abs(self) -> "F32":
        return F32(math.absf(self.value))

    def fma(self, factor: "float | F32", addend: "float | F32") -> "F32":
        """self * factor + addend, rounded once."""
        return F32(math.fma(self.value, F32.of(factor).value, F32.of(addend).value))

    def maximum(self, other: "float | F32") -> "F32":
        """The larger one; NaN if either is NaN."""
        return F32(arith.maximumf(self.value, F32.of(other).value))

    def minimum(self, other: "float | F32") -> "F32":
        return F32(arith.minimumf(self.value, F32.of(other).value))

    def bits(self) -> I32:
        return I32(arith.bitcast(_i32(), self.value))


def select[T: (I32, F32)](condition: ir.Value, yes: T, no: T) -> T:
    """yes where the condition holds, else no."""
    return type(yes)(arith.select(condition, yes.value, no.value))


def both(first: ir.Value, second: ir.Value) -> ir.Value:
    """Logical and of two conditions."""
    return arith.andi(first, second)


def limit(value: F32, most: F32) -> F32:
    """The value with a magnitude of at most `most`; that of NaN becomes `most`."""
    return ptx_f32("min.xorsign.abs.f32", value, most)


def merge(mask: int, yes: I32, no: I32) -> I32:
    """The bits of `yes` under the mask, those of `no` elsewhere: one instruction."""
    return _ptx_i32("lop3.b32 $0, $1, $2, $3, 0xCA;", I32.of(mask), yes, no)


def ptx_f32(instruction: str, *operands: F32) -> F32:
    """One PTX instruction on float32, such as `rcp.rz.f32`."""
    names = ", ".join(f"${i}" for i in range(len(operands) + 1))
    values = [operand.value for operand in operands]
    return F32(
        utils.inline_ptx(f"{instruction} {names};", *values, result_types=_f32())
    )


def _ptx_i32(text: str, *operands: I32 | F32) -> I32:
    """PTX with one integer result, $0."""
    values = [operand.value for operand in operands]
    return I32(utils.inline_ptx(text, *values, result_types=_i32()))


def thread_index() -> I32:
    return I32(gpu_index(gpu.thread_id(gpu.Dimension.x)))


def gpu_index(index: ir.Value) -> ir.Value:
    return arith.index_castui(_i32(), index)


def barrier() -> None:
    """Waits for every thread of the block."""
    gpu.barrier()


def signal(number: I32, threads: int) -> None:
    """Counts this warp in at a barrier of so many threads, without waiting."""
    _barrier("bar.arrive", number, threads)


def wait(number: I32, threads: int) -> None:
    """Waits at a barrier for the rest of its threads."""
    _barrier("bar.sync", number, threads)


def _barrier(instruction: str, number: I32, threads: int) -> None:
    text = f"{instruction} $0, {threads};"
    utils.inline_ptx(text, number.value, has_side_effects=True, convergent=True)


def when(condition: ir.Value, action: Callable[[], None]) -> None:
    """Runs the action in the threads where the condition holds."""
    branch = scf.IfOp(condition)
    with ir.InsertionPoint(branch.then_block):
        action()
        scf.YieldOp([])


def unless(
    condition: ir.Value, action: Callable[[], Sequence[F32]], values: Sequence[F32]
) -> list[F32]:
    """The values where the condition holds; what the action returns elsewhere."""
    branch = scf.IfOp(condition, [_f32()] * len(values), has_else=True)
    assert branch.else_block is not None
    with ir.InsertionPoint(branch.then_block):
        scf.YieldOp([value.value for value in values])
    with ir.InsertionPoint(branch.else_block):
        scf.YieldOp([value.value for value in action()])
    return [F32(result) for result in branch.results]


def exchange[T: (I32, F32)](value: T, distance: int) -> T:
    """The value of the lane whose index differs in the bit `distance`."""
    return type(value)(utils.shfl_bfly(value.value, distance))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Byte-addressed view of a shared or global buffer."""

    pointer: ir.Value

    @staticmethod
    def of(ref: ir.Value) -> "Memory":
        return Memory(utils.memref_ptr(ref))

    def _at(self, offset: I32, constant: int = 0) -> ir.Value:
        i8 = ir.IntegerType.get_signless(8)
        wide = arith.extui(ir.IntegerType.get_signless(64), offset.value)
        pointer = utils.getelementptr(self.pointer, [wide], i8)
        # On its own, so that it ends up in the instruction's immediate field.
        return utils.getelementptr(pointer, [constant], i8) if constant else pointer

    def load(self, offset: I32, words: int, constant: int = 0) -> list[I32]:
        """`words` 32-bit words as one access, offset + constant in bytes."""
        pointer = self._at(offset, constant)
        if words == 1:
            return [I32(llvm.load(_i32(), pointer, alignment=4))]
        kind = ir.VectorType.get((words,), _i32())
        vector = llvm.load(kind, pointer, alignment=4 * words)
        return [I32(llvm.extractelement(vector, I32.of(i).value)) for i in range(words)]

    def store(self, offset: I32, words: Sequence[I32], constant: int = 0) -> None:
        """Stores 32-bit words as one access, at offset + constant in bytes."""
        pointer = self._at(offset, constant)
        if len(words) == 1:
            llvm.store(words[0].value, pointer, alignment=4)
            return
        vector = llvm.mlir_undef(ir.VectorType.get((len(words),), _i32()))
        for i, word in enumerate(words):
            vector = llvm.insertelement(vector, word.value, I32.of(i).value)
        llvm.store(vector, pointer, alignment=4 * len(words))


def swizzled(offset: I32, unit_bytes: int) -> I32:
    """Where the copy engine puts byte `offset` of a tile of such units (64 or 128)."""
    return offset ^ (((offset >> 7) & (unit_bytes // 16 - 1)) << 4)


def unpack_bf16(word: I32) -> tuple[F32, F32]:
    """The two bfloat16 of a word, the one at the lower address first."""
    return (word << 16).as_float(), (word & 0xFFFF0000).as_float()


def unpack_f16(word: I32) -> tuple[F32, F32]:
    """The two float16 of a word, the one at the lower address first."""
    low, high = utils.inline_ptx(
        "{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }",
        word.value,
        result_types=(_f32(), _f32()),
    )
    return F32(low), F32(high)


def _pack(instruction: str, low: F32, high: F32) -> I32:
    return _ptx_i32(f"{instruction} $0, $1, $2;", high, low)


def pack_bf16(low: F32, high: F32) -> I32:
    """Two float32 rounded to bfloat16, to nearest even, in one word."""
    return _pack("cvt.rn.bf16x2.f32", low, high)


def pack_f16(low: F32, high: F32) -> I32:
    """Two float32 rounded to float16, to nearest even, in one word."""
    return _pack("cvt.rn.f16x2.f32", low, high)


def pack_f16_down(low: F32, high: F32) -> I32:
    """Two float32 rounded to float16, towards zero, in one word."""
    return _pack("cvt.rz.f16x2.f32", low, high)


def fma_f16(a: I32, b: I32, c: I32) -> I32:
    """a * b + c of two float16 each, rounded once."""
    return _ptx_i32("fma.rn.f16x2 $0, $1, $2, $3;", a, b, c)


def add_magnitudes_f16(a: I32, b: I32) -> I32:
    """|a| + |b| of two float16 each, rounded once."""
    return _ptx_i32(
        "{ .reg .b32 x, y; abs.f16x2 x, $1; abs.f16x2 y, $2; add.rn.f16x2 $0, x, y; }",
        a,
        b,
    )


def matrix_product(
    kind: str, a: Sequence[I32], b: Sequence[I32], c: Sequence[F32] = ()
) -> list[F32]:
    """The tensor cores' 16x16 by 16x8 product, float32 out, one warp together.

    Args:
      kind: "bf16" or "f16".
      a: this thread's four words of A, in the order of PTX (lane 4 g + q: rows g and
        g + 8; columns 2 q, 2 q + 1 and the same plus 8).
      b: its two words of B (rows 2 q, 2 q + 1 and the same plus 8; column g).
      c: its four values of a matrix to add; none for zero.

    Returns:
      Its four values of the result: rows g, g + 8; columns 2 q, 2 q + 1.
    """
    added = [value.value for value in c] or [F32.of(0.0).value] * 4
    results = utils.inline_ptx(
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        *(word.value for word in (*a, *b)),
        *added,
        result_types=[_f32()] * 4,
        convergent=True,
    )
    return [F32(result) for result in results]


def round_e4m3(low: F32, high: F32) -> tuple[I32, F32, F32]:
    """Rounds two float32 to E4M3: to nearest even, saturating, NaN kept.

    Returns:
      The two codes in the low 16 bits of a word, and the rounded values.
    """
    code = _ptx_i32(
        "{ .reg .b16 code; cvt.rn.satfinite.e4m3x2.f32 code, $1, $2;"
        " cvt.u32.u16 $0, code; }",
        high,
        low,
    )
    return code, *decode_e4m3(code)


def decode_e4m3(word: I32) -> tuple[F32, F32]:
    """The two E4M3 values in the low 16 bits of a word."""
    low, high = utils.inline_ptx(
        "{ .reg .b16 code, l, h; .reg .b32 pair;"
        " cvt.u16.u32 code, $2;"
        " cvt.rn.f16x2.e4m3x2 pair, code;"
        " mov.b32 {l, h}, pair;"
        " cvt.f32.f16 $0, l;"
        " cvt.f32.f16 $1, h; }",
        word.value,
        result_types=(_f32(), _f32()),
    )
    return F32(low), F32(high)


def permute_bytes(low: I32, high: I32, order: int | I32) -> I32:
    """Four of the eight bytes of (low, high), picked by the nibbles of order.

    A nibble with its top bit set picks eight copies of the byte's sign instead.
    """
    return _ptx_i32("prmt.b32 $0, $1, $2, $3;", low, high, I32.of(order))


def pack_bytes(values: Sequence[I32]) -> I32:
    """The low bytes of four words as one word, the first one lowest."""
    a, b, c, d = values
    return permute_bytes(permute_bytes(a, b, 0x40), permute_bytes(c, d, 0x40), 0x5410)


def tree[T](values: Sequence[T], combine: Callable[[T, T], T]) -> T:
    """Reduces as a balanced tree: short dependency chains and a fixed order."""
    values = list(values)
    while len(values) > 1:
        rest = values[len(values) & ~1 :]
        pairs = zip(values[0::2], values[1::2], strict=False)
        values = [combine(a, b) for a, b in pairs] + rest
    return values[0]
