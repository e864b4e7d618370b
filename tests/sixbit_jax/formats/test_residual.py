"""Residual mixed precision as a pytree: bytes, values, layers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.formats.residual import ResidualArray, pack_bits, unpack_bits

ROWS, COLUMNS = 10, 16


def drawn(bits: int = 3, lead: tuple[int, ...] = (), seed: int = 0) -> ResidualArray:
    """Every bit, number and rank drawn at random; each matrix its own share."""
    rng = np.random.default_rng(seed)

    def numbers() -> np.ndarray:
        return rng.standard_normal((*lead, ROWS)).astype(np.float32)

    ranks = rng.permuted(np.tile(np.arange(ROWS), (*lead, 1)), axis=-1)
    return ResidualArray(
        rng.integers(0, 256, (*lead, bits - 1, ROWS, COLUMNS // 8), np.uint8),
        rng.integers(0, 256, (*lead, ROWS, COLUMNS // 8), np.uint8),
        numbers(),
        numbers(),
        numbers(),
        ranks.astype(np.int32),
        rng.integers(0, ROWS // 2 + 1, lead, np.int32)[()]
        if lead
        else np.array(3, np.int32),
    )


def decoded(array: ResidualArray) -> np.ndarray:
    """The definition, one row at a time, for a single matrix."""
    base = np.unpackbits(array.base, axis=-1, bitorder="little")
    pool = np.unpackbits(array.pool, axis=-1, bitorder="little")
    salient, rows = int(array.num_salient), ROWS
    values = []
    for row in range(rows):
        code = sum(base[i, row].astype(int) << i for i in range(array.bits - 1))
        value = code * array.scale[row] + array.offset[row]
        rank = int(array.position[row])
        owned = [rank] if rank < rows - salient else []
        owned += [rows - salient + rank] if rank < salient else []
        for place in owned:
            value = value + array.amplitude[place] * (2.0 * pool[place] - 1)
        values.append(value)
    return np.stack(values)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_values_are_those_of_the_definition(bits):
    array = drawn(bits)
    np.testing.assert_allclose(array.dequantize(), decoded(array), rtol=0, atol=1e-6)
    assert array.dequantize(jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_stored_bytes_are_the_mean_bits_and_sixteen_per_row(bits):
    array = drawn(bits, lead=(5,))
    one = ROWS * COLUMNS * bits // 8 + 16 * ROWS + 4
    assert array.nbytes == 5 * one
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(array)) == array.nbytes
    layout = ResidualArray.layout(array.format_name, (ROWS, COLUMNS))
    assert one == sum(np.prod(s) * d.itemsize for s, d in layout.values())


def test_every_matrix_has_its_own_share_and_the_same_mean():
    array = drawn(3, lead=(5,))
    assert len(set(np.asarray(array.num_salient).tolist())) > 1
    bits = np.asarray(array.branches) + array.bits - 1
    np.testing.assert_array_equal(bits.mean(-1), 3.0)
    for layer in range(5):
        counts = np.bincount(bits[layer], minlength=5)
        assert counts[2] == counts[4] == array.num_salient[layer]


def test_layers_are_independent():
    array = drawn(3, lead=(5,))
    each = [jax.tree.map(lambda x, i=i: x[i], array) for i in range(5)]
    expected = np.stack([decoded(one) for one in each])
    np.testing.assert_allclose(array.dequantize(), expected, rtol=0, atol=1e-6)
    mapped = jax.vmap(lambda a: a.dequantize())(array)
    np.testing.assert_array_equal(mapped, array.dequantize())
    _, scanned = jax.lax.scan(lambda c, a: (c, a.dequantize()), 0, array)
    np.testing.assert_array_equal(scanned, array.dequantize())


def test_parts_rebuild_the_array():
    array = replace(drawn(4), rotation=8)
    again = ResidualArray.from_arrays(array.format_name, array.arrays(), 8)
    np.testing.assert_array_equal(again.dequantize(), array.dequantize())
    assert jax.tree.structure(again) == jax.tree.structure(array)
    assert (array.format_name, array.shape, array.ndim) == ("residual4", (10, 16), 2)
    assert ResidualArray.layout("nvfp4", (ROWS, COLUMNS)) is None
    assert ResidualArray.layout("residual5", (ROWS, COLUMNS)) is None


def test_int8_values_are_a_rounding_of_the_rows():
    array = drawn(3)
    values, scales = array.expand_int8()
    error = np.abs(values * scales[:, None] - array.dequantize())
    assert (error <= 0.5001 * scales[:, None]).all()


def test_bits_survive_packing():
    bits = np.random.default_rng(0).random((3, 24)) < 0.5
    packed = pack_bits(jnp.asarray(bits))
    np.testing.assert_array_equal(packed, np.packbits(bits, axis=-1, bitorder="little"))
    np.testing.assert_array_equal(unpack_bits(packed), bits)


def test_refuses_parts_that_do_not_fit():
    array = drawn(3)
    with pytest.raises(ValueError, match=r"\(2, 10, 2\) and \(10, 1\)"):
        replace(array, pool=array.pool[:, :1])
    with pytest.raises(ValueError, match="2 to 4 bits on average, found 5"):
        replace(array, base=np.concatenate([array.base] * 2))
    with pytest.raises(ValueError, match=r"scale must be float32\[10\].*float64\[10\]"):
        replace(array, scale=array.scale.astype(np.float64))
    with pytest.raises(ValueError, match=r"num_salient must be int32\[\].*\[1\]"):
        replace(array, num_salient=np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="rotation 32 must divide"):
        replace(array, rotation=32)
    with pytest.raises(ValueError, match="K a multiple of 8"):
        ResidualArray.layout("residual3", (4, 12))
