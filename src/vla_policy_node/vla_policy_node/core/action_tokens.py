"""Actions as words of a language model, as in RT-2 and OpenVLA.

Each entry of an action is a token: [-1, 1] is cut by `bins` equidistant edges, and the last `bins` ids of the
vocabulary stand for them, the highest id for the lowest bin. What lies in [-1, 1] then is stretched over the range that
the training data had, from its 1st to its 99th percentile; entries that the mask leaves out (grippers) stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_contract.errors import ConfigError, InferenceError, unknown

Array = NDArray[np.float64]
BINS = 256


def from_tokens(tokens: ArrayLike, vocabulary: int, bins: int = BINS) -> Array:
    """Numbers in [-1, 1] that action tokens stand for, of the same shape.

    There are `bins` edges and so `bins` - 1 places between them; the last two ids mean the same place.

    Args:
        vocabulary: size of the vocabulary, without ids that only fill it up.

    Raises:
        InferenceError: when an id is no action token: the model talks instead of acting.
    """
    ids = np.asarray(tokens)
    wrong = (ids < vocabulary - bins) | (ids >= vocabulary)
    if wrong.any():
        raise InferenceError(
            f"the model answers token {int(ids[wrong].flat[0])}, which is no action (ids {vocabulary - bins} .. "
            f"{vocabulary - 1}); is the prompt that of its training, and `vocabulary` right?"
        )
    edges = np.linspace(-1.0, 1.0, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    return np.asarray(centres[np.clip(vocabulary - 1 - ids, 0, bins - 2)])


def to_tokens(values: ArrayLike, vocabulary: int, bins: int = BINS) -> NDArray[np.int64]:
    """The ids that numbers are written with; beyond [-1, 1] those of its ends."""
    edges = np.linspace(-1.0, 1.0, bins)
    return vocabulary - np.digitize(np.clip(np.asarray(values, dtype=np.float64), -1.0, 1.0), edges).astype(np.int64)


@dataclass(frozen=True)
class ActionRange:
    """What -1 and 1 stand for: `low` (q01) and `high` (q99), each (d,); entries with `mask` false stay as they are."""

    low: Array
    high: Array
    mask: NDArray[np.bool_]

    def stretch(self, values: ArrayLike) -> Array:
        """[-1, 1] -> physical units; `values` (…, d)."""
        scaled = np.asarray(values, dtype=np.float64)
        return np.where(self.mask, self.low + (scaled + 1) / 2 * (self.high - self.low), scaled)

    def shrink(self, actions: ArrayLike) -> Array:
        """The inverse; an entry that has one value only in the data is 0."""
        span = self.high - self.low
        given = np.asarray(actions, dtype=np.float64)
        scaled = np.where(span > 0, 2 * (given - self.low) / np.where(span > 0, span, 1.0) - 1, 0.0)
        return np.where(self.mask, scaled, given)

    @property
    def moments(self) -> tuple[Array, Array]:
        """(mean, deviation) that write the same as (x - mean) / deviation; a deviation of 0 is given as 1."""
        span = (self.high - self.low) / 2
        deviation = np.where(self.mask & (span > 0), span, 1.0)
        return np.where(self.mask, (self.high + self.low) / 2, 0.0), deviation


def read_range(statistics: Mapping[str, Any], key: str, source: str) -> ActionRange:
    """The range of one data set out of `dataset_statistics.json` or the `norm_stats` of a config.

    Args:
        key: of the data set; empty: the only one.
        source: for messages.

    Raises:
        ConfigError: when the data set is not named or not there, or its numbers are missing or malformed.
    """
    if not statistics:
        raise ConfigError(f"{source} holds no statistics; without them the scale of the actions is unknown")
    if not key and len(statistics) > 1:
        raise ConfigError(
            f"{source} has statistics of {len(statistics)} data sets; name one as option unnorm_key: "
            f"{', '.join(sorted(statistics))}"
        )
    key = key or next(iter(statistics))
    if key not in statistics:
        raise ConfigError(f"option unnorm_key: {unknown('data set', key, statistics)}")
    entry = statistics[key].get("action") if isinstance(statistics[key], Mapping) else None
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{source}: '{key}' has no statistics of 'action'")
    try:
        low, high = (np.array(entry[name], dtype=np.float64) for name in ("q01", "q99"))
        mask = np.array(entry.get("mask", np.ones(low.shape)), dtype=np.bool_)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: '{key}' lacks q01 or q99 of 'action', or they are no numbers: {error}") from error
    fits = low.ndim == 1 and len(low) > 0 and low.shape == high.shape == mask.shape
    if not fits or not np.isfinite([low, high]).all() or (low > high).any():
        raise ConfigError(
            f"{source}: '{key}' has q01 {low}, q99 {high}, mask {mask}; expected finite q01 <= q99, one size"
        )
    return ActionRange(low, high, mask)
