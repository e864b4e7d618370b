"""A calibrated policy as a small JSON file, tied to the model it was made for."""

import dataclasses
import hashlib
import json
import math
import os
from typing import Any, Literal

import numpy as np

from sixbit_jax import files
from sixbit_jax.hardware import fast_stable_route
from sixbit_jax.policies import (
    BlockGrid,
    ErrorPredictor,
    Policy,
    chain,
    delta_gbs,
    dmpq,
    int8_attention,
    pdr,
    sparse_attention,
    tdc,
)
from sixbit_jax.policies._common import checked_count
from sixbit_jax.policies.policy_entries import entry_problems
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.reading.messages import bounded, brief, several
from sixbit_jax.routes import Route
from sixbit_jax.sparsity import Kind, Order

FORMAT = "sixbit-policy"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class PolicyFile:
    """DMPQ or delta-GBS, TDC, PDR, 8-bit and sparse attention; each may be absent.

    Attributes:
      model_class: class name of the model, as in diffusers' config.json.
      config_hash: `config_hash` of its configuration.
      sites, num_blocks: what a plan of this model covers.
      predictor, threshold: of `dmpq`; both None without it.
      importance, residual, final_int8: options of `dmpq`; importance is [L][S].
      delta, low, high: of `delta_gbs`, with the names of its routes; delta None
        without it.
      tau, max_skips, warmup, skip_blocks, together, shared: of `tdc`; tau None
        without it.
      purify: whether `pdr` is in the policy.
      outlier_ratio, scope, refresh_int8: of `pdr`.
      attention_max_gamma: of `int8_attention`; None without it.
      sparse_way: of `sparse_attention`; None without it. `sparse_tau` is its tau,
        minus infinity being too small for JSON; `sparse_max_gamma` None is no limit;
        the other entries are the options of their names.
      calibration: how it was made, free JSON (targets, correlations, runs).
    """

    model_class: str
    config_hash: str
    sites: tuple[str, ...]
    num_blocks: int
    predictor: ErrorPredictor | None = None
    threshold: float | dict[str, float] | None = None
    importance: list[list[float]] | None = None
    residual: bool = False
    final_int8: int = 0
    delta: float | None = None
    low: str = Route.NVFP4.name
    high: str = Route.INT8.name
    tau: float | None = None
    max_skips: int = 2
    warmup: int = 2
    skip_blocks: tuple[int, ...] | None = None
    together: int | None = 1
    shared: bool = False
    purify: bool = True
    outlier_ratio: float | None = 25.0
    scope: str = "post_skip"
    refresh_int8: bool = True
    attention_max_gamma: float | None = None
    sparse_way: Kind | None = None
    sparse_tau: float = 0.8
    sparse_approximate: bool = True
    sparse_width: float = 1.0
    sparse_frames: int = 1
    sparse_order: Order = "frames"
    sparse_dense_steps: float = 0.2
    sparse_dense_blocks: tuple[int, ...] = (0,)
    sparse_dense_last: bool = False
    sparse_max_gamma: float | None = None
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        object.__setattr__(self, "sparse_dense_blocks", tuple(self.sparse_dense_blocks))
        if self.skip_blocks is not None:
            object.__setattr__(self, "skip_blocks", tuple(self.skip_blocks))
        if (self.predictor is None) != (self.threshold is None):
            raise ValueError(
                "a policy file needs a predictor and a threshold, or neither; found "
                f"threshold {self.threshold} and predictor {self.predictor}"
            )
        routes = [route.name for route in Route]
        if unknown := [name for name in (self.low, self.high) if name not in routes]:
            raise ValueError(
                f"policy file: expected routes of {', '.join(routes)}; found {unknown}"
            )
        if self.delta is not None and self.predictor is not None:
            raise ValueError(
                "policy file: expected a predictor (DMPQ) or a delta (delta-GBS), "
                "found both"
            )
        checked_count("policy file", "num_blocks", self.num_blocks, low=1)
        # Building it is the check of all other numbers.
        self.policy().init(
            BlockGrid(
                self.num_blocks,
                self.sites,
                np.ones((self.num_blocks, len(self.sites))),
            )
        )

    @classmethod
    def for_model(cls, model: Any, **numbers: Any) -> "PolicyFile":
        """A file for a model (`class_name`, `config`, `sites`, `num_blocks`)."""
        return cls(
            model_class=model.class_name,
            config_hash=config_hash(model.config),
            sites=tuple(model.sites),
            num_blocks=model.num_blocks,
            **numbers,
        )

    def policy(self, *, stable_route: Route = Route.NVFP4) -> Policy:
        """The chain of all that is in it, less what is absent.

        chain(dmpq or delta_gbs, tdc, pdr, int8_attention, sparse_attention)

        Args:
          stable_route: of `dmpq`; the file was calibrated for NVFP4.
        """
        parts = []
        if self.delta is not None:
            parts.append(
                delta_gbs(self.delta, low=Route[self.low], high=Route[self.high])
            )
        if self.predictor is not None and self.threshold is not None:
            parts.append(
                dmpq(
                    self.predictor,
                    self.threshold,
                    importance=self.importance,
                    residual=self.residual,
                    final_int8=self.final_int8,
                    stable_route=stable_route,
                )
            )
        if self.tau is not None:
            parts.append(
                tdc(
                    self.tau,
                    max_skips=self.max_skips,
                    warmup=self.warmup,
                    blocks=self.skip_blocks,
                    together=self.together,
                    shared=self.shared,
                )
            )
        if self.purify:
            purified = pdr(
                self.outlier_ratio,
                scope=self.scope,  # pyrefly: ignore
                refresh_int8=self.refresh_int8,
            )
            parts.append(purified)
        if self.attention_max_gamma is not None:
            parts.append(int8_attention(self.attention_max_gamma))
        if self.sparse_way is not None:
            parts.append(self._sparse_attention(self.sparse_way))
        return chain(*parts)

    def _sparse_attention(self, way: Kind) -> Policy:
        limit = self.sparse_max_gamma
        return sparse_attention(
            self.sparse_tau,
            way=way,
            approximate=self.sparse_approximate,
            width=self.sparse_width,
            frames=self.sparse_frames,
            order=self.sparse_order,
            dense_steps=self.sparse_dense_steps,
            dense_blocks=self.sparse_dense_blocks,
            dense_last=self.sparse_dense_last,
            max_gamma=math.inf if limit is None else limit,
        )

    def check_fits(self, model: Any) -> None:
        """Checks that it was made for this model, or for a grid of this shape.

        Args:
          model: a model, or a `BlockGrid` (which knows neither class nor
            configuration).

        Raises:
          ValueError: another class, configuration, number of blocks or sites; lists
            all differences.
        """
        found: dict[str, Any] = {
            "blocks": model.num_blocks,
            "sites": tuple(model.sites),
        }
        expected: dict[str, Any] = {"blocks": self.num_blocks, "sites": self.sites}
        if not isinstance(model, BlockGrid):
            found |= {
                "class": model.class_name,
                "configuration": config_hash(model.config),
            }
            expected |= {
                "class": self.model_class,
                "configuration": self.config_hash,
            }
        different = [
            f"{name}: the policy is for {expected[name]}, the model has {found[name]}"
            for name in expected
            if expected[name] != found[name]
        ]
        if different:
            raise ValueError(
                "the policy was calibrated for another model\n  "
                + "\n  ".join(different)
            )


def config_hash(config: Any) -> str:
    """SHA-256 of a model configuration (a dataclass or a mapping), as hex digits."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    text = json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def save_policy(policy: PolicyFile, path: str | os.PathLike) -> None:
    """Writes a policy file; complete or not at all.

    Raises:
      ValueError: a number in it is NaN or infinite, which JSON does not know.
    """
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for field in dataclasses.fields(policy):
        content[field.name] = getattr(policy, field.name)
    if policy.predictor is not None:
        # shortest decimals that give the same float32 again
        content["predictor"] = {
            name: [[float(str(value)) for value in row] for row in table]
            for name, table in (
                ("alpha", policy.predictor.alpha),
                ("beta", policy.predictor.beta),
            )
        } | {"sites": policy.predictor.sites}
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"{path}: a policy holds finite numbers only, found a NaN or an infinity "
            "in its calibration notes"
        ) from error
    files.write_text(path, text + "\n")


def load_policy(path: str | os.PathLike) -> PolicyFile:
    """Reads a policy file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a policy file, another version, missing or unknown entries, NaN,
        a predictor without one of the sites, numbers out of range.
    """
    try:
        content = read_json_object(path)
    except ValueError as error:
        found = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a policy file: {found}") from error
    if content.get("format") != FORMAT:
        raise ValueError(f'{path}: not a policy file, expected "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: policy files of version {VERSION} can be read, found version "
            f"{brief(content.get('version'))}"
        )
    fields = {field.name: field for field in dataclasses.fields(PolicyFile)}
    entries = {k: v for k, v in content.items() if k not in ("format", "version")}
    required = {"model_class", "config_hash", "sites", "num_blocks"}
    missing, unknown = required - entries.keys(), entries.keys() - fields.keys()
    if missing or unknown:
        raise ValueError(
            f"{path}: missing entries {sorted(missing)}, unknown entries "
            f"{brief(sorted(unknown))}"
        )
    if problems := entry_problems(entries):
        raise ValueError(
            bounded("\n  ".join([f"{path}: not a policy:", *several(problems)]))
        )
    try:
        if entries.get("predictor") is not None:
            entries["predictor"] = _predictor(entries["predictor"])
        return PolicyFile(**entries)
    except (TypeError, ValueError) as error:
        raise ValueError(bounded(f"{path}: {error}")) from error


def policy_from_file(
    path: str | os.PathLike,
    model: Any,
    *,
    stable_route: Route | Literal["auto"] = Route.NVFP4,
) -> Policy:
    """The policy of a file, checked against a model or a `BlockGrid`.

    Args:
      path: made by `sixbit calibrate` or `save_policy`.
      model: that it is for.
      stable_route: what runs where DMPQ predicts a small error. NVFP4 is what the file
        was calibrated for; "auto" is the fastest on the default device, which without
        FP4 tensor cores is INT8: more activation bits, and the skips stay.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not valid, or was made for another model.
    """
    if stable_route == "auto":
        stable_route = fast_stable_route()
    stored = load_policy(path)
    try:
        stored.check_fits(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return stored.policy(stable_route=stable_route)


def _predictor(entry: Any) -> ErrorPredictor:
    expected = {"sites", "alpha", "beta"}
    if not isinstance(entry, dict) or entry.keys() != expected:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise ValueError(
            f"predictor: expected {sorted(expected)}, found {brief(found)}"
        )
    return ErrorPredictor(
        tuple(entry["sites"]), np.array(entry["alpha"]), np.array(entry["beta"])
    )
