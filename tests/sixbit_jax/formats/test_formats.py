"""The formats as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.numerics import block_hadamard, nvfp4
from sixbit_jax.formats import NVFP4Array, rotate


@pytest.fixture
def w() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 32, 256)).astype(np.float32)


def test_nvfp4_stores_four_and_a_half_bits_per_weight_and_four_bytes(w):
    one = NVFP4Array.quantize(w[0])
    assert one.nbytes == w[0].size * 9 // 16 + 4
    assert NVFP4Array.quantize(w).nbytes == w.size * 9 // 16 + 3 * 4
    assert sum(x.nbytes for x in jax.tree.leaves(one)) == one.nbytes


def test_nvfp4_is_the_definition(w):
    array = NVFP4Array.quantize(w)
    assert (array.shape, array.ndim, array.dtype) == (w.shape, 3, jnp.float32)
    for leaf, expected in zip(jax.tree.leaves(array), nvfp4.quantize(w), strict=True):
        np.testing.assert_array_equal(leaf, expected)
    np.testing.assert_array_equal(array.dequantize(), nvfp4.fake_quantize(w))
    assert array.dequantize(jnp.bfloat16).dtype == jnp.bfloat16


def test_rotation_is_folded_in_along_k(w):
    array = NVFP4Array.quantize(w, rotation=128)
    assert array.rotation == 128
    np.testing.assert_array_equal(
        array.dequantize(), nvfp4.fake_quantize(block_hadamard(w))
    )
    x = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    product = rotate(x, array.rotation) @ array.dequantize()[0].T
    error = np.abs(product - x @ w[0].T).sum() / np.abs(x @ w[0].T).sum()
    assert error < 0.15


def test_rotate_zero_returns_its_argument(w):
    assert rotate(w, 0) is w


def test_survives_tree_transformations(w):
    array = NVFP4Array.quantize(w)
    shapes = jax.eval_shape(NVFP4Array.quantize, w)
    assert type(shapes) is type(array)
    assert (shapes.shape, shapes.nbytes) == (array.shape, array.nbytes)
    assert isinstance(jax.tree.map(lambda _: None, array), type(array))

    mapped = jax.vmap(lambda a: a.dequantize())(array)
    np.testing.assert_array_equal(mapped, array.dequantize())
    _, scanned = jax.lax.scan(lambda c, a: (c, a.dequantize()), 0, array)
    np.testing.assert_array_equal(scanned, array.dequantize())
    picked = jax.jit(lambda a, i: jax.tree.map(lambda x: x[i], a).dequantize())(
        array, 1
    )
    np.testing.assert_array_equal(picked, array.dequantize()[1])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), array, array)
    assert stacked.shape == (2, *array.shape)


def test_rotation_survives_and_separates_trees(w):
    plain, rotated = NVFP4Array.quantize(w), NVFP4Array.quantize(w, rotation=128)
    assert jax.tree.structure(plain) != jax.tree.structure(rotated)
    assert jax.jit(lambda a: a)(rotated).rotation == 128


def test_paths_name_the_attributes(w):
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(NVFP4Array.quantize(w))
    ]
    assert paths == [".codes", ".block_scales", ".tensor_scale"]


def test_nvfp4_refuses_parts_that_do_not_fit(w):
    array = NVFP4Array.quantize(w)
    with pytest.raises(ValueError, match=r"\(3, 32, 128\) and \(3, 32, 8\)"):
        NVFP4Array(array.codes, array.block_scales[..., :8], array.tensor_scale)
    with pytest.raises(ValueError, match=r"leading axes.*\(3,\), found \(\)"):
        NVFP4Array(array.codes, array.block_scales, array.tensor_scale[0])
    with pytest.raises(ValueError, match="codes must be uint8, found int8"):
        NVFP4Array(array.codes.astype(jnp.int8), array.block_scales, array.tensor_scale)
    with pytest.raises(ValueError, match="block_scales must be float8_e4m3fn"):
        NVFP4Array(
            array.codes, array.block_scales.astype(jnp.float32), array.tensor_scale
        )


def test_nvfp4_refuses_rotations_that_do_not_fit(w):
    with pytest.raises(ValueError, match=r"rotation 512.*\(3, 32, 256\)"):
        NVFP4Array.quantize(w, rotation=512)
    with pytest.raises(ValueError, match="power of two, found 96"):
        NVFP4Array.quantize(w, rotation=96)
    with pytest.raises(ValueError, match="multiple of 16"):
        NVFP4Array.quantize(w[..., :40])
