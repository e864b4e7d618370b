"""The components of a converted pipeline: found, checked, loaded when needed."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sixbit_jax import components
from sixbit_jax.checkpoint import CheckpointError, load
from sixbit_jax.checkpoint.header import Header, read_header
from sixbit_jax.pipelines.families import PIPELINES, TextRule
from sixbit_jax.pipelines.header import PipelineHeader, read_pipeline_header
from sixbit_jax.pipelines.prompts import (
    POOLED_ENCODER,
    POOLED_TOKENIZER,
    TEXT_ENCODER,
    TOKENIZER,
)

TRANSFORMER, SECOND, VAE = "transformer", "transformer_2", "vae"


class Components:
    """A pipeline directory. Components are freed after use unless they are kept.

    Args:
      path: the directory.
      keep: folders of components that stay on the device once loaded.
      dtype: of parameters and arithmetic; None: bfloat16, and float32 on CPUs, where
        it is faster.

    Raises:
      CheckpointError: if components are missing or damaged.
      ValueError: for an unknown component in `keep`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        keep: Sequence[str] = (),
        dtype: Any = None,
    ):
        self.path = Path(path)
        self.header: PipelineHeader = read_pipeline_header(self.path)
        self.headers: dict[str, Header] = {
            name: read_header(self.path / name) for name in self.header.components
        }
        self.rule: TextRule = self._checked_rule()
        if unknown := sorted(set(keep) - set(self.headers)):
            raise ValueError(
                f"keep: expected some of {', '.join(self.headers)}; found "
                f"{', '.join(unknown)}"
            )
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        self.dtype = jnp.dtype(dtype)
        self.kernels = jax.default_backend() == "gpu"
        self.load_seconds = 0.0
        self._keep, self._loaded = set(keep), {}

    def _checked_rule(self) -> TextRule:
        """What the family does with prompts, where all components are there."""
        if self.header.pipeline_class not in PIPELINES:
            raise CheckpointError(
                f"{self.path}: expected one of {', '.join(sorted(PIPELINES))}; found "
                f"{self.header.pipeline_class!r}"
            )
        rule = PIPELINES[self.header.pipeline_class]
        needed, copied = [TRANSFORMER, VAE], []
        if not rule.outside:
            needed.append(TEXT_ENCODER)
            copied.append(TOKENIZER)
        if rule.pooled:
            needed.append(POOLED_ENCODER)
            copied.append(POOLED_TOKENIZER)
        problems = [
            f"{name}: expected this component"
            + (f", left out: {why}" if (why := self.header.missing.get(name)) else "")
            for name in needed
            if name not in self.header.components
        ]
        problems += [
            f"{name}: expected {self.path / name}"
            for name in copied
            if not (self.path / name).is_dir()
        ]
        if problems:
            raise CheckpointError("\n  ".join([f"{self.path}:", *problems]))
        return rule

    def configured(self, name: str) -> tuple[Any, Any]:
        """The configuration and the class of a component."""
        header = self.headers[name]
        config_type, model = components.get(header.model_class)
        return config_type.from_dict(header.config), model

    @contextlib.contextmanager
    def component(
        self, name: str, *, dtype: Any = None, mesh: Mesh | None = None
    ) -> Iterator[Any]:
        """A component on its device or mesh, for the length of a `with`."""
        key = (name, None if dtype is None else jnp.dtype(dtype).name, mesh)
        if key in self._loaded:
            yield self._loaded[key]
            return
        began = time.perf_counter()
        found, _ = load(self.path / name, dtype=dtype, mesh=mesh)
        model = jax.block_until_ready(found)
        self.load_seconds += time.perf_counter() - began
        if name in self._keep:
            self._loaded[key] = model
        yield model

    def free(self) -> None:
        """Drops the components that were kept."""
        self._loaded.clear()


__all__ = ["SECOND", "TRANSFORMER", "VAE", "Components"]
