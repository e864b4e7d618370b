"""Causal convolutions against their definition, in one piece and in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sixbit_jax.vae.causal_conv import (
    METHODS,
    CausalConv3d,
    Conv2d,
    Padding,
    Stream,
    with_past,
)

KERNELS = [(3, 3, 3), (1, 1, 1), (3, 1, 1), (1, 3, 3), (2, 3, 1)]


def definition(layer: CausalConv3d, x: np.ndarray) -> np.ndarray:
    """The convolution of a whole video, product by product, in float64."""
    weight = np.asarray(layer.weight[...], np.float64)
    depth, rows, columns = layer.kernel
    time = {Padding.ZEROS: "constant"}.get(layer.padding, "edge")
    space = {Padding.REPLICATE: "edge"}.get(layer.padding, "constant")
    x = np.pad(x, ((0, 0), (depth - 1, 0), (0, 0), (0, 0), (0, 0)), mode=time)
    around = [((n - 1) // 2,) * 2 for n in (rows, columns)]
    x = np.pad(x, ((0, 0), (0, 0), *around, (0, 0)), mode=space)
    windows = np.lib.stride_tricks.sliding_window_view(x, layer.kernel, (1, 2, 3))
    windows = windows[:, :: layer.stride[0], :: layer.stride[1], :: layer.stride[2]]
    y = np.einsum("bfhwcijk,ocijk->bfhwo", windows, weight)
    return y + np.asarray(layer.bias[...], np.float64)


def video(frames: int, channels: int = 5) -> np.ndarray:
    return np.random.default_rng(frames).standard_normal((2, frames, 6, 7, channels))


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", list(Padding))
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_chunk_is_the_definition(kernel, padding, method):
    layer = CausalConv3d(5, 4, kernel, padding=padding, rngs=nnx.Rngs(0))
    x = video(4)
    found = layer(jnp.asarray(x, jnp.float32), Stream(None, method=method))
    assert relative(found, definition(layer, x)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("padding", list(Padding))
def test_strides_are_the_definition(padding, stride, method):
    layer = CausalConv3d(5, 4, 3, padding=padding, stride=stride, rngs=nnx.Rngs(0))
    x = video(5)
    found = layer(jnp.asarray(x, jnp.float32), Stream(None, method=method))
    assert relative(found, definition(layer, x)) < 1e-6


@pytest.mark.parametrize("padding", list(Padding))
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1), (3, 2, 1), (1, 4, 1)])
def test_chunks_of_any_length_give_the_whole_video(chunks, padding):
    layers = [
        CausalConv3d(5, 5, kernel, padding=padding, rngs=nnx.Rngs(i))
        for i, kernel in enumerate([(3, 3, 3), (2, 3, 1), (1, 1, 1)])
    ]

    def run(x, state):
        stream = Stream(state)
        for layer in layers:
            x = layer(x, stream)
        return x, stream.state()

    x = jnp.asarray(video(6), jnp.float32)
    whole, _ = run(x, None)
    state, parts, start = None, [], 0
    for length in chunks:
        part, state = run(x[:, start : start + length], state)
        parts.append(part)
        start += length
    assert [frames.shape[1] for frames in state] == [2, 1]
    assert relative(jnp.concatenate(parts, 1), whole) < 1e-6


def test_an_asymmetric_2d_convolution_takes_every_frame():
    layer = Conv2d(5, 4, 3, stride=2, pad=((0, 1), (0, 1)), rngs=nnx.Rngs(0))
    x = video(3)
    found = layer(jnp.asarray(x, jnp.float32))
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    weight = np.asarray(layer.weight[...], np.float64)
    expected = np.einsum("bfhwcij,ocij->bfhwo", windows[:, :, ::2, ::2], weight)
    assert relative(found, expected + np.asarray(layer.bias[...])) < 1e-6


def test_bfloat16_stays_bfloat16_in_frames_and_state():
    layer = CausalConv3d(5, 4, 3, padding=Padding.ZEROS, rngs=nnx.Rngs(0))
    stream = Stream(None)
    y = layer(jnp.asarray(video(2), jnp.bfloat16), stream)
    assert (y.dtype, stream.state()[0].dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_a_stacked_step_holds_one_2d_convolution():
    layer = CausalConv3d(5, 4, 3, padding=Padding.ZEROS, rngs=nnx.Rngs(0))
    x = jnp.asarray(video(4), jnp.float32)
    program = str(jax.make_jaxpr(lambda x: layer(x, Stream(None)))(x))
    assert program.count("conv_general_dilated[") == 1
    assert "lhs_spec=(0, 3, 1, 2)" in program


def test_a_state_of_other_layers_is_refused():
    layer = CausalConv3d(5, 4, 3, padding=Padding.ZEROS, rngs=nnx.Rngs(0))
    x = jnp.asarray(video(2), jnp.float32)
    with pytest.raises(ValueError, match="expected the state of 1 layers or more"):
        layer(x, Stream(()))
    stream = Stream((x, x))
    layer(x, stream)
    with pytest.raises(ValueError, match="expected 2 layers to keep frames"):
        stream.state()


def test_frames_of_another_size_are_refused():
    x = jnp.zeros((1, 2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"expected \[1, 2, 4, 4, 3\], found \[1, 1"):
        with_past(x, x[:, :1], 2, Padding.ZEROS)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="expected one of stacked, framewise"):
        Stream(None, method="conv2d")
