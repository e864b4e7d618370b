"""`UniformArray` against the grid's definition in NumPy, and as a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.numerics import block_hadamard
from sixbit_jax.formats import UniformArray, stored_layout
from sixbit_jax.formats.uniform_grid import UniformGrid, pack_codes, unpack_codes
from sixbit_jax.quantizers.refine_uniform import refined_grid
from sixbit_jax.quantizers.uniform import UniformRecipe

WIDTHS = range(2, 9)


@pytest.fixture(scope="module")
def w() -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((3, 8, 64)).astype(np.float32)
    values[0, 0] = 0.0
    values[0, 1] = np.abs(values[0, 1])
    return values


def definition(w: np.ndarray, bits: int) -> np.ndarray:
    """MinMax grid of each row, zero inside, in float32 as stored."""
    top = 2**bits - 1
    low = np.minimum(w.min(-1, keepdims=True), 0)
    high = np.maximum(w.max(-1, keepdims=True), 0)
    scale = ((high - low) / np.float32(top)).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    zero = np.round(-low / scale)
    return (np.clip(np.round(w / scale) + zero, 0, top) - zero) * scale


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_are_the_definition_in_exactly_that_many_bits(w, bits):
    array = UniformArray.quantize(w, bits=bits)
    np.testing.assert_allclose(array.dequantize(), definition(w, bits), rtol=1e-6)
    assert array.shape == w.shape
    assert array.nbytes == w.size * bits // 8 + 5 * w[..., 0].size
    assert sum(x.nbytes for x in jax.tree.leaves(array)) == array.nbytes


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_keeps_every_code(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (5, 40), np.uint8)
    packed = pack_codes(jnp.asarray(codes), bits)
    assert packed.shape == (5, 5 * bits)
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


def test_packed_bit_i_of_byte_j_of_plane_p_is_bit_p_of_code_8j_plus_i():
    codes = np.random.default_rng(0).integers(0, 8, 24, np.uint8)
    planes = np.packbits((codes >> np.arange(3)[:, None]) & 1, -1, bitorder="little")
    np.testing.assert_array_equal(pack_codes(jnp.asarray(codes), 3), planes.ravel())


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_int8_form_is_exact_up_to_seven_bits(w, bits):
    array = UniformArray.quantize(w, bits=bits)
    values, scales = array.expand_int8()
    assert values.dtype == jnp.int8
    np.testing.assert_array_equal(
        values.astype(np.float32) * scales[..., None], array.dequantize()
    )


def test_int8_form_of_eight_bits_is_rounded_once_more(w):
    array = UniformArray.quantize(w, bits=8)
    values, scales = array.expand_int8()
    error = np.abs(values * scales[..., None] - array.dequantize())
    assert (error <= 0.5001 * scales[..., None]).all()


def test_rotation_and_grid_rules(w):
    array = UniformArray.quantize(w, bits=3, rotation=32, grid=refined_grid)
    rotated = block_hadamard(jnp.asarray(w), 32)
    grid = refined_grid(rotated, 3)
    np.testing.assert_array_equal(array.scales, grid.scale)
    np.testing.assert_array_equal(array.zero_points, grid.zero_point)
    plain = UniformArray.quantize(w, bits=3, rotation=32)
    error = ((array.dequantize() - rotated) ** 2).sum(-1)
    assert (error <= ((plain.dequantize() - rotated) ** 2).sum(-1) * (1 + 1e-5)).all()


def test_codes_found_elsewhere_are_kept():
    codes = np.random.default_rng(0).integers(0, 8, (4, 16), np.uint8)
    grid = UniformGrid(jnp.full(4, 0.5), jnp.full(4, 3.0))
    array = UniformArray.from_codes(jnp.asarray(codes), grid, 3)
    np.testing.assert_array_equal(array.unpacked(), codes)
    np.testing.assert_array_equal(array.dequantize(), 0.5 * (codes.astype("f4") - 3))


def test_survives_tree_transformations(w):
    def make(w):
        return UniformArray.quantize(w, bits=3, rotation=16)

    array = make(w)
    shapes = jax.eval_shape(make, w)
    assert (shapes.shape, shapes.nbytes, shapes.bits) == (w.shape, array.nbytes, 3)
    assert isinstance(jax.tree.map(lambda _: None, array), UniformArray)
    mapped = jax.vmap(lambda a: a.dequantize())(array)
    np.testing.assert_array_equal(mapped, array.dequantize())
    _, scanned = jax.lax.scan(lambda c, a: (c, a.dequantize()), 0, array)
    np.testing.assert_array_equal(scanned, array.dequantize())
    assert jax.jit(lambda a: a)(array).rotation == 16
    other = UniformArray.quantize(w, bits=4, rotation=16)
    assert jax.tree.structure(other) != jax.tree.structure(array)


def test_layout_says_what_a_matrix_takes(w):
    array = UniformArray.quantize(w[0], bits=5, rotation=16)
    kind, layout = stored_layout(array.format_name, array.shape)
    assert layout == {k: (a.shape, a.dtype) for k, a in array.arrays().items()}
    again = kind.from_arrays(array.format_name, array.arrays(), 16)
    assert jax.tree.structure(again) == jax.tree.structure(array)
    assert stored_layout("uniform9", (8, 64)) is None
    with pytest.raises(ValueError, match=r"multiple of 8, found \[8, 60\]"):
        stored_layout("uniform4", (8, 60))


def test_refuses_what_does_not_fit(w):
    array = UniformArray.quantize(w, bits=3)
    with pytest.raises(ValueError, match=r"\(3, 8, 24\), \(3, 7\) and \(3, 8\)"):
        UniformArray(array.codes, array.scales[:, 1:], array.zero_points, 3)
    with pytest.raises(ValueError, match="of 5 bits needs codes"):
        UniformArray(array.codes, array.scales, array.zero_points, 5)
    with pytest.raises(ValueError, match="zero_points must be uint8, found float32"):
        UniformArray(array.codes, array.scales, array.scales, 3)
    with pytest.raises(ValueError, match="2 to 8 bits, found 9"):
        UniformArray.quantize(w, bits=9)
    with pytest.raises(ValueError, match="multiple of 8"):
        UniformArray.quantize(w[..., :60], bits=4)
    with pytest.raises(ValueError, match="expected one of minmax, bgr; found 'best'"):
        UniformRecipe(grid="best")
