"""One video on the devices of two processes, as on two machines."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import sixbit_jax
from tests.sixbit_jax.models.small import small_model

ROOT = Path(__file__).parents[3]


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def test_two_processes_give_the_latents_of_one(tmp_path):
    model = sixbit_jax.quantize(small_model(num_layers=2, num_attention_heads=4))
    sixbit_jax.save(model, tmp_path / "model")
    text = np.asarray(np.random.default_rng(1).normal(size=(2, 1, 6, 32)), np.float32)
    expected = sixbit_jax.sample(
        model,
        sixbit_jax.CogVideoXDDIM(),
        sixbit_jax.Prompt(*text),
        latent_shape=(3, 4, 8, 8),
        num_steps=3,
        policy=sixbit_jax.fixed(skip=np.array([[0, 0], [1, 0], [0, 1]], bool)),
        execution=sixbit_jax.Execution(dtype=jnp.float32, cache_format="float32"),
    ).latents

    address, out = free_address(), tmp_path / "latents.npy"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    module = "tests.sixbit_jax.sampling.mesh_process"
    command = [sys.executable, "-m", module, address, "2"]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(tmp_path / "model"), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (printed, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
        assert "devices 4 own 2" in printed
    largest = np.abs(expected).max()
    np.testing.assert_allclose(np.load(out), expected, rtol=0, atol=1e-5 * largest)
