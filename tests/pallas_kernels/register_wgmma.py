"""Products whose left side is in registers, for the Pallas interpreter, which has none.

The interpreter runs `wgmma` of shared-memory operands only. `allow` teaches it the
other form that the attention kernel needs: probabilities are never stored.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax._src import callback
from jax._src.pallas.mosaic_gpu.interpret import (
    gpu_callbacks,
    jaxpr_interpret,
    shared_memory,
)
from jax._src.state import types


def _multiply_add(
    *,
    token,
    mesh_location,
    thread,
    a,
    acc_allocation_key_as_array,
    acc_transforms,
    b_allocation_key_as_array,
    b_transforms,
    source_info=None,
):
    """What `gpu_callbacks.wgmma` does, of a value `a`."""
    memory = gpu_callbacks._get_shared_memory()
    logging = shared_memory.GPULoggingInfo(mesh_location, thread, source_info)

    def content(key, transforms):
        key = gpu_callbacks.HostAllocationKey.from_array(key)
        transforms = gpu_callbacks._remove_noop_transforms(transforms)
        window = memory.access(key, jax.tree.map(int, transforms))
        found, _, _ = memory.get_buffer_content(
            key, window, thread, logging_info=logging
        )
        return key, window, found

    key, window, acc = content(acc_allocation_key_as_array, acc_transforms)
    _, _, b = content(b_allocation_key_as_array, b_transforms)
    product = np.matmul(np.asarray(a, np.float32), np.asarray(b, np.float32))
    memory.store_buffer_content(
        key, window, acc + product, thread, logging_info=logging
    )
    return token


def allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the interpreter multiply values with shared memory, for one test."""
    interpreter = jaxpr_interpret.JaxprInterpreter
    usual = interpreter._interpret_wgmma_ref_p

    def interpret(self, eqn, token, get_invals):
        if isinstance(eqn.invars[1].aval, types.AbstractRef):
            return usual(self, eqn, token, get_invals)
        acc, a, b, *leaves = get_invals()
        empty = jax.tree.structure([])
        names = ("acc_transforms_tree", "a_transforms_tree", "b_transforms_tree")
        trees = jax.tree_util.treedef_tuple(
            tuple(eqn.params[name] or empty for name in names)
        )
        acc_transforms, _, b_transforms = jax.tree.unflatten(trees, leaves)
        token = callback.io_callback(
            functools.partial(_multiply_add, source_info=eqn.source_info),
            gpu_callbacks.TOKEN_SHAPE_DTYPE,
            token=token,
            mesh_location=self.mesh_location,
            thread=self.thread,
            a=a,
            acc_allocation_key_as_array=acc,
            acc_transforms=acc_transforms,
            b_allocation_key_as_array=b,
            b_transforms=b_transforms,
        )
        return token, []

    def deallocate(self):
        # As the original, without asking that threads have seen all phases: the last
        # emptied slots of a pipeline are waited for by nobody.
        with self.cv:
            self.ref_count -= 1
            if not self.ref_count and self.arrivals_count:
                raise ValueError(f"{self.arrivals_count} arrivals pending")

    monkeypatch.setattr(interpreter, "_interpret_wgmma_ref_p", interpret)
    monkeypatch.setattr(shared_memory.Barrier, "deallocate", deallocate)
