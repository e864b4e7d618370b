"""`fuse_lora`: in plain weights, and beside quantized ones on every route."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from convert import ConversionError, convert, to_diffusers
from convert.reader import open_source
from sixbit_jax import checkpoint
from sixbit_jax.formats import CorrectedArray, NVFP4Array
from sixbit_jax.nn.arithmetic import Work
from sixbit_jax.nn.fusion import Identity
from sixbit_jax.nn.linear import Linear
from sixbit_jax.quantizers.nvfp4 import NVFP4Recipe, quantize
from sixbit_jax.routes import Route
from tests.convert.checkpoints import write_checkpoint
from tests.convert.lora_files import low_rank, write
from tests.convert.test_lora import WAN, WAN_KEYS, check
from tests.golden import wan_cases


@pytest.fixture(scope="module")
def case():
    return wan_cases.load(WAN)


@pytest.fixture(scope="module")
def plain(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuse")
    write_checkpoint(folder / "m", case.config, case.weights())
    convert(folder / "m", folder / "out")
    return checkpoint.load(folder / "out")[0]


def output(model, case):
    given = case.inputs()
    return np.asarray(
        model(*map(jnp.asarray, (given.latents, given.text, given.timestep)))
    )


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_a_plain_network_has_the_sum_in_its_weights(tmp_path, case, plain):
    tensors, gains = low_rank(case.weights(), WAN_KEYS, "comfyui")
    change = np.linspace(-1, 1, 256, dtype=np.float32)
    tensors["diffusion_model.blocks.1.norm3.diff_b"] = change
    tensors["diffusion_model.head.diff_m"] = np.ones((1, 2, 256), np.float32)
    gains["blocks.1.norm2.bias"] = change.astype(np.float64)
    gains["scale_shift_table"] = np.ones((1, 2, 256))
    file = write(tmp_path / "lora.safetensors", tensors)
    before = output(plain, case)
    fused = sixbit_jax.fuse_lora(plain, file, 0.5)
    checkpoint.save(fused, tmp_path / "saved")
    check(tmp_path / "saved", case.weights(), gains, 0.5)
    np.testing.assert_array_equal(output(plain, case), before)
    assert relative(output(fused, case), before) > 1e-2


@pytest.mark.parametrize("rotation", [0, 128])
def test_beside_quantized_weights_it_is_the_sum_of_the_values(
    tmp_path, case, plain, rotation
):
    """A network whose stored values are the plain ones: only the LoRA is new."""
    tensors, gains = low_rank(case.weights(), WAN_KEYS[:9], "comfyui")
    file = write(tmp_path / "lora.safetensors", tensors)
    packed = quantize(plain, NVFP4Recipe(rotation=rotation))
    fused = sixbit_jax.fuse_lora(packed, file)
    weight = fused.blocks.attn1.to_q.weight.get_value()
    assert isinstance(weight, CorrectedArray)
    assert isinstance(weight.weight, NVFP4Array)
    # Ranks 2 and 4 of two layers: both get the larger one.
    assert weight.format_name == "corrected-r3g1t0l-nvfp4"
    # The same values as floating-point weights with the LoRA in them.
    dequantized = dict(case.weights())
    written = to_diffusers(_saved(packed, tmp_path), tmp_path / "d", dtype="float32")
    for key, info in open_source(written).tensors.items():
        dequantized[key] = info.read()
    for key, gain in gains.items():
        dequantized[key] = (dequantized[key] + gain).astype(np.float32)
    write_checkpoint(tmp_path / "sum", case.config, dequantized)
    convert(tmp_path / "sum", tmp_path / "expected")
    expected = output(checkpoint.load(tmp_path / "expected")[0], case)
    assert relative(output(packed, case), expected) > 1e-2
    assert relative(output(fused, case), expected) < 2e-5
    # Through a checkpoint, and to diffusers as one matrix.
    checkpoint.save(fused, tmp_path / "fused")
    again = checkpoint.load(tmp_path / "fused")[0]
    np.testing.assert_array_equal(output(again, case), output(fused, case))
    back = open_source(
        to_diffusers(tmp_path / "fused", tmp_path / "b", dtype="float32")
    )
    for key in gains:
        found = back.tensors[key].read()
        np.testing.assert_allclose(found, dequantized[key], atol=2e-6)


def _saved(model, tmp_path):
    checkpoint.save(model, tmp_path / "packed")
    return tmp_path / "packed"


def test_a_second_file_stands_beside_the_first_and_the_opposite_removes_it(
    tmp_path, case, plain
):
    packed = quantize(plain)
    files = []
    for seed in (0, 1):
        tensors, _ = low_rank(case.weights(), WAN_KEYS[:4], "kohya", seed=seed)
        files.append(write(tmp_path / f"{seed}.safetensors", tensors))
    one = sixbit_jax.fuse_lora(packed, files[0])
    both = sixbit_jax.fuse_lora(one, files[1], 0.5)
    assert both.blocks.attn1.to_q.weight.get_value().down.shape == (2, 4, 256)
    less = sixbit_jax.fuse_lora(both, files[1], -0.5)
    assert relative(output(both, case), output(one, case)) > 1e-2
    assert relative(output(less, case), output(one, case)) < 1e-5


@pytest.mark.parametrize("route", [Route.BF16, Route.INT8, Route.NVFP4, Route.ARQ8])
def test_on_every_route_it_reads_the_live_activation(route):
    x, down, up = (
        jax.random.normal(jax.random.key(n), shape)
        for n, shape in enumerate([(1, 12, 128), (3, 128), (32, 3)])
    )
    packed = NVFP4Array.quantize(
        jax.random.normal(jax.random.key(9), (32, 128)), rotation=128
    )
    weight = CorrectedArray(packed, down, up, jnp.ones(1), live=True)
    linears = []
    for stored in (weight, packed):
        linears.append(Linear(128, 32, rngs=nnx.Rngs(0)))
        linears[-1].weight = nnx.Param(stored)
    fused, alone = (
        Work([linear.affine()], Identity(), None, "reference").route(route)(x)[0]
        for linear in linears
    )
    np.testing.assert_allclose(fused - alone, x @ down.T @ up.T, atol=1e-3)
    if route == Route.BF16:
        called = linears[0](x.astype(jnp.bfloat16), kernels=True)
        np.testing.assert_allclose(called.astype(jnp.float32), fused, atol=1.5)
        assert relative(np.asarray(called, np.float32), np.asarray(fused)) < 1e-2


def test_the_sampler_runs_it_on_quantized_routes(tmp_path, case, plain):
    tensors, _ = low_rank(case.weights(), WAN_KEYS[:9], "diffusers")
    file = write(tmp_path / "lora.safetensors", tensors)
    packed = quantize(plain)
    fused = sixbit_jax.fuse_lora(packed, file)
    given = case.inputs()
    made = [
        sixbit_jax.sample(
            model,
            sixbit_jax.FlowMatchEuler(shift=5.0),
            given.text[:1],
            latent_shape=case.latent_shape[1:],
            num_steps=2,
            guidance=1.0,
            policy=sixbit_jax.fixed(route=Route.INT8),
        ).latents
        for model in (packed, fused)
    ]
    assert np.isfinite(made[1]).all()
    assert relative(np.asarray(made[1]), np.asarray(made[0])) > 1e-2


def test_what_has_no_low_rank_is_refused_by_name(tmp_path, case, plain):
    tensors, _ = low_rank(case.weights(), WAN_KEYS[:1], "comfyui")
    key = "diffusion_model.blocks.1.self_attn.k.diff"
    tensors[key] = np.ones((256, 256), np.float32)
    file = write(tmp_path / "lora.safetensors", tensors)
    shape = case.weights()["blocks.1.attn1.to_k.weight"].shape
    tensors[key] = np.ones(shape, np.float32)
    write(file, tensors)
    with pytest.raises(
        ConversionError, match=r"attn1\.to_k\.weight: a full difference"
    ):
        sixbit_jax.fuse_lora(quantize(plain), file)
    assert sixbit_jax.fuse_lora(plain, file) is not plain
