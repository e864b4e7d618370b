"""Fits the linear error model of DMPQ and says how good it is.

    E_rel[t] = alpha * gamma[t-1] + beta,    one (alpha, beta) per block and site

That this correlation is strong is the central claim of 6Bit-Diffusion
(arXiv 2603.18742), so that every fit carries its figures.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sixbit_jax.calibration.recording import Recording
from sixbit_jax.policies import ErrorPredictor


@dataclass(frozen=True)
class PredictorFit:
    """A predictor and how well it describes the runs it was fitted on.

    Attributes:
      predictor: alpha and beta.
      pearson: r of gamma[t-1] and E_rel[t] within each block and site, [L, S]; 0
        where one of them does not vary.
      r_squared: share of the variance over steps and runs that the line explains
        within each block and site, [L, S].
      site_pearson: r over all blocks of a site together, [S].
      site_r_squared: share of the variance over blocks, steps and runs that the
        predictor explains, [S].
      site_r_squared_constant: the same for one constant per block: what the fit
        explains without looking at gamma, [S].
      pairs: number of (gamma, E_rel) pairs, [L, S].
    """

    predictor: ErrorPredictor
    pearson: Float[np.ndarray, "blocks sites"]
    r_squared: Float[np.ndarray, "blocks sites"]
    site_pearson: Float[np.ndarray, "sites"]
    site_r_squared: Float[np.ndarray, "sites"]
    site_r_squared_constant: Float[np.ndarray, "sites"]
    pairs: np.ndarray

    def summary(self) -> dict[str, dict[str, float]]:
        """Figures per site, ready for JSON."""
        return {
            site: {
                "pearson": float(self.site_pearson[s]),
                "pearson_within_blocks": float(
                    np.median(self.pearson[self.pairs[:, s] > 0, s])
                ),
                "r_squared": float(self.site_r_squared[s]),
                "r_squared_without_gamma": float(self.site_r_squared_constant[s]),
                "pairs": int(self.pairs[:, s].sum()),
            }
            for s, site in enumerate(self.predictor.sites)
        }


def fit_predictor(
    recording: Recording,
    sites: tuple[str, ...],
    *,
    signal: Float[np.ndarray, "runs steps branches blocks"] | None = None,
    present: Bool[np.ndarray, "blocks sites"] | None = None,
) -> PredictorFit:
    """Least squares of E_rel[t] on the signal of the step before, per block and site.

    Pairs with a skipped block or a value that is not finite are left out.

    Args:
      recording: gamma and errors of the runs.
      sites: names of the S sites, in the order of the errors' last axis.
      signal: what to predict from instead of gamma, already known at each step
        (NaN: not known); to compare signals.
      present: which blocks have which sites, where stacks differ; None: all. What a
        block does not have is predicted as 0.

    Raises:
      ValueError: the sites do not fit the recording, or a block and site has fewer
        than two pairs.
    """
    recording = recording.checked()
    blocks, count = recording.error.shape[-2:]
    if len(sites) != count:
        raise ValueError(
            f"fit: {len(sites)} site names {list(sites)} for errors of {count} sites"
        )
    known = recording.known_gamma() if signal is None else np.asarray(signal)
    if known.shape != recording.gamma.shape:
        raise ValueError(
            f"fit: expected a signal of shape {recording.gamma.shape}, found "
            f"{known.shape}"
        )
    x = np.broadcast_to(known[..., None], recording.error.shape)
    y = np.where(recording.skip[..., None], np.nan, recording.error)
    valid = np.isfinite(x) & np.isfinite(y)
    pairs = valid.sum((0, 1, 2))
    lacking = pairs < 2
    if present is not None:
        lacking &= present
    if lacking.any():
        block, site = np.argwhere(lacking)[0]
        raise ValueError(
            f"fit: block {block}, site {sites[site]} has {pairs[block, site]} valid "
            f"pairs of gamma and error, at least 2 are needed ({lacking.sum()} "
            "such sites); were the runs recorded with record_errors?"
        )
    mean_x, mean_y = _mean(x, valid), _mean(y, valid)
    dx = np.where(valid, x - mean_x, 0.0)
    dy = np.where(valid, y - mean_y, 0.0)
    var_x, var_y = (dx**2).sum((0, 1, 2)), (dy**2).sum((0, 1, 2))
    covariance = (dx * dy).sum((0, 1, 2))
    # A signal that does not vary beyond rounding predicts nothing: slope 0.
    varies = var_x > pairs * (1e-9 * np.abs(mean_x)) ** 2
    alpha = np.where(varies, covariance / np.where(varies, var_x, 1.0), 0.0)
    both = varies & (var_y > 0)
    scale = np.sqrt(np.where(both, var_x * var_y, 1.0))
    pearson = np.where(both, covariance / scale, 0.0)
    beta = mean_y - alpha * mean_x

    residual = np.where(valid, y - alpha * x - beta, 0.0)
    centered = _by_site(np.where(valid, y - _site_mean(y, valid), 0.0))
    total = (centered**2).sum(1)
    return PredictorFit(
        predictor=ErrorPredictor(tuple(sites), alpha, beta),
        pearson=pearson,
        r_squared=pearson**2,
        site_pearson=np.array(
            [
                _pearson(x[..., s][valid[..., s]], y[..., s][valid[..., s]])
                for s in range(count)
            ]
        ),
        site_r_squared=_explained((_by_site(residual) ** 2).sum(1), total),
        site_r_squared_constant=_explained((_by_site(dy) ** 2).sum(1), total),
        pairs=pairs.reshape(blocks, count),
    )


def _mean(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    counts = np.maximum(valid.sum((0, 1, 2)), 1)
    return np.where(valid, values, 0.0).sum((0, 1, 2)) / counts


def _site_mean(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    axes = tuple(range(values.ndim - 1))
    return np.where(valid, values, 0.0).sum(axes) / valid.sum(axes)


def _by_site(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)


def _explained(residual: np.ndarray, total: np.ndarray) -> np.ndarray:
    safe = np.where(total > 0, total, 1.0)
    return np.where(total > 0, 1.0 - residual / safe, 0.0)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    dx, dy = x - x.mean(), y - y.mean()
    scale = np.sqrt((dx**2).sum() * (dy**2).sum())
    return float((dx * dy).sum() / scale) if scale > 0 else 0.0
