"""A made-up log of three behaviours of any size, for the dataset explorer's tests and benchmark."""

import numpy as np
from gymnasium.spaces import Box

from offrl_wb.data.dataset import Dataset
from offrl_wb.data.spec import Spec

SHARES = {"expert": 0.2, "medium": 0.3, "random": 0.5}


def large_log(
    episodes: int, steps: int, observations: int = 17, actions: int = 6, seed: int = 0
) -> Dataset:
    """`episodes` of `steps` each; the better the behaviour, the higher rewards and observations."""
    generator = np.random.default_rng(seed)
    counts = [round(share * episodes) for share in SHARES.values()]
    source = np.repeat(list(SHARES), counts)
    quality = np.repeat([1.0, 0.5, 0.0], counts).astype(np.float32)
    quality += 0.1 * generator.standard_normal(len(quality), dtype=np.float32)
    waves = np.sin(np.linspace(0, 20, steps, dtype=np.float32))[None, :, None]
    seen = 0.3 * generator.standard_normal((episodes, steps + 1, observations), dtype=np.float32)
    seen += quality[:, None, None]
    seen += generator.standard_normal((episodes, 1, observations), dtype=np.float32) / 2
    seen[:, :-1] += waves * generator.standard_normal(observations, dtype=np.float32)
    done = np.tanh(2 * generator.standard_normal((episodes * steps, actions), dtype=np.float32))
    paid = generator.standard_normal((episodes, steps), dtype=np.float32) / 2 + quality[:, None]
    last = np.zeros((episodes, steps), dtype=bool)
    last[:, -1] = True
    box = Box(-np.inf, np.inf, (observations,), dtype=np.float32)
    return Dataset.from_arrays(
        seen[:, :-1].reshape(-1, observations),
        done,
        paid.ravel(),
        np.zeros(last.size, dtype=bool),
        last.ravel(),
        final_observations=seen[:, -1],
        spec=Spec(box, Box(-1, 1, (actions,), dtype=np.float32), name="large log"),
        episode_columns={"source": source},
    )
