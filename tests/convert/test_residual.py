"""`convert --weights residual3`: stored, inspected, loaded and run on its routes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sixbit_jax
from convert import convert
from sixbit_jax import cli, recipes
from sixbit_jax.demo.model import demo_scheduler
from sixbit_jax.demo.text import encode_captions
from sixbit_jax.formats import ResidualArray
from sixbit_jax.methods.mpq_dm.residual_weights import fz_rmq
from sixbit_jax.routes import Route
from tests.sixbit_jax.demo_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("residual")
    source = write_tiny_checkpoint(folder / "source")
    convert(source, folder / "plain")
    argv = ["convert", str(source), str(folder / "three"), "--weights", "residual3"]
    assert cli.main([*argv, "--rotation", "0"]) == 0
    return folder


@pytest.fixture(scope="module")
def models(folder):
    plain, _ = sixbit_jax.load(folder / "plain", dtype=jnp.float32)
    return plain, sixbit_jax.load(folder / "three", dtype=jnp.float32)[0]


def test_every_layer_is_stored_as_the_quantizer_makes_it(models):
    plain, stored = (m.transformer_blocks.ff.up.weight.get_value() for m in models)
    assert isinstance(stored, ResidualArray)
    assert (stored.bits, stored.rotation, stored.shape) == (3, 0, plain.shape)
    for layer in range(len(plain)):
        expected = fz_rmq(np.asarray(plain[layer]), 3).dequantize()
        np.testing.assert_allclose(stored.dequantize()[layer], expected, atol=1e-5)
    # Each layer has its own share, the stack one shape.
    assert stored.num_salient.shape == (2,)


def test_inspect_shows_the_stored_bytes(folder, models, capsys):
    assert cli.main(["inspect", str(folder / "three"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    flat = nnx.to_flat_state(nnx.state(models[1], nnx.Param))
    weights = [leaf.get_value() for _, leaf in flat]
    weights = [w for w in weights if isinstance(w, ResidualArray)]
    assert facts["dtypes"]["residual3"] == {
        "values": sum(int(np.prod(w.shape)) for w in weights),
        "bytes": sum(w.nbytes for w in weights),
    }
    assert facts["quantization"]["method"] == "joint residual fit"
    assert cli.main(["inspect", str(folder / "three")]) == 0
    assert "residual3" in capsys.readouterr().out


@pytest.mark.parametrize("route", [Route.BF16, Route.INT6, Route.INT8])
def test_runs_on_every_route(models, route):
    plain, stored = models
    text = encode_captions(["a red circle moves left on a blue background", ""])
    options = {
        "latent_shape": (13, 3, 32, 32),
        "num_steps": 2,
        "guidance": 1.0,
        "seed": 1,
        "execution": sixbit_jax.Execution(dtype=jnp.float32),
    }
    scheduler = demo_scheduler()
    exact = sixbit_jax.sample(plain, scheduler, text[:1], **options).latents
    policy = sixbit_jax.fixed(route=route)
    found = sixbit_jax.sample(stored, scheduler, text[:1], policy=policy, **options)
    error = jnp.linalg.norm(found.latents - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 0.3
    if route == Route.INT6:
        recipe = recipes.mpq_dm_v2(weight_bits=3, activation_bits=6)
        again = sixbit_jax.sample(
            recipe.quantize(plain),
            scheduler,
            text[:1],
            policy=recipe.policy(plain),
            **options,
        )
        np.testing.assert_allclose(again.latents, found.latents, atol=1e-3)


def test_refuses_what_does_not_go_together(folder, capsys):
    source, target = str(folder / "source"), str(folder / "other")
    argv = ["convert", source, target, "--weights", "residual3", "--refine"]
    assert cli.main(argv) == 2
    assert "which is always fitted" in capsys.readouterr().err
    assert not (folder / "other").exists()
    with pytest.raises(ValueError, match="weights: expected one of"):
        convert(source, target, weights="residual5")
    with pytest.raises(ValueError, match="refine: expected nvfp4 or uniform"):
        convert(source, target, weights="residual2", refine=True)


def test_the_recipe_checks_its_numbers(models):
    with pytest.raises(ValueError, match=r"activation_bits: expected one of \[4, 6, 8"):
        recipes.mpq_dm_v2(activation_bits=5)
    recipe = recipes.mpq_dm_v2()
    with pytest.raises(ValueError, match="expected one of tau and step_threshold"):
        recipe.policy(models[0], tau=0.1, step_threshold=0.1)
    with pytest.raises(TypeError, match="expected trajectories with loop"):
        recipe.quantize(models[0], loop=None)
    assert recipe.policy(models[0], tau=0.1).skips is True
