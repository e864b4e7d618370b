"""One process of a run on two: `python -m ... ADDRESS COUNT NUMBER DIRECTORY OUT`.

Each has two devices of its own; together they are a mesh of four. Weights are read
from a converted directory, each process putting its own parts in place.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import sixbit_jax


def main(address: str, count: str, number: str, directory: str, out: str) -> None:
    """Samples on all devices and writes latents and skips, in the first process."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(number))
    mesh = sixbit_jax.make_mesh({"guidance": 2, "fsdp": 2})
    model, _ = sixbit_jax.load(directory, mesh=mesh)
    text = np.asarray(np.random.default_rng(1).normal(size=(2, 1, 6, 32)), np.float32)
    result = sixbit_jax.sample(
        model,
        sixbit_jax.CogVideoXDDIM(),
        sixbit_jax.Prompt(*text),
        latent_shape=(3, 4, 8, 8),
        num_steps=3,
        policy=sixbit_jax.fixed(skip=np.array([[0, 0], [1, 0], [0, 1]], bool)),
        execution=sixbit_jax.Execution(dtype=jnp.float32, cache_format="float32"),
        mesh=mesh,
    )
    # The latents are whole on every device.
    latents = np.asarray(result.latents.addressable_shards[0].data)
    if jax.process_index() == 0:
        np.save(out, latents)
    print("devices", jax.device_count(), "own", jax.local_device_count())


if __name__ == "__main__":
    main(*sys.argv[1:])
