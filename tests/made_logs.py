"""Small made-up logs for the tests of the data room."""

import numpy as np

from offrl_wb.data.dataset import Dataset


def log(
    lengths: list[int], seed: int = 0, discrete: bool = False, terminal: bool = False
) -> Dataset:
    """A made-up log with episodes of these lengths, chains holding."""
    rng = np.random.default_rng(seed)
    size = sum(lengths)
    ends = np.zeros(size, dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    following = rng.normal(size=(size, 3)).astype(np.float32)
    seen = np.roll(following, 1, axis=0)
    seen[np.cumsum([0, *lengths[:-1]])] = rng.normal(size=(len(lengths), 3))
    actions = rng.integers(0, 4, size) if discrete else rng.uniform(-1, 1, (size, 2))
    no = np.zeros(size, dtype=bool)
    return Dataset.from_arrays(
        seen,
        actions,
        rng.normal(size=size),
        ends if terminal else no,
        no if terminal else ends,
        next_observations=following,
        columns={"behaviour_prob": rng.random(size)},
        episode_columns={"task": [f"t{n % 2}" for n in range(len(lengths))]},
        source="made",
    )
