"""A peer in an environment of its own: started with that environment's Python, driven by lines.

`python peer_worker.py d3rlpy iql 256 2 highest FILE.npz` makes the agent, answers `ready`, and
then answers each number that it reads by the seconds which so many updates took. Nothing of this
repository is imported, so the environment needs only the peer.
"""

import os
import sys
import time
import types

import numpy as np


def d3rlpy_updates(agent, data, batch_size, threads, precision):
    """d3rlpy's `update` on batches of its own buffer, as its `fit` does them."""
    import d3rlpy
    import torch

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    algos, encoder = d3rlpy.algos, d3rlpy.models.VectorEncoderFactory
    deep = [256] * (3 if agent in ("cql", "cal_ql", "sac_n") else 2)
    encoders = dict(actor_encoder_factory=encoder(deep), critic_encoder_factory=encoder(deep))
    makers = {
        "bc": lambda: algos.BCConfig(batch_size=batch_size, encoder_factory=encoder(deep)),
        "td3_bc": lambda: algos.TD3PlusBCConfig(batch_size=batch_size, **encoders),
        "iql": lambda: algos.IQLConfig(batch_size=batch_size, **encoders),
        "cql": lambda: algos.CQLConfig(batch_size=batch_size, **encoders),
        "cal_ql": lambda: algos.CalQLConfig(batch_size=batch_size, **encoders),
        "sac_n": lambda: algos.SACConfig(batch_size=batch_size, n_critics=10, **encoders),
    }
    # Time-outs every thousand steps: d3rlpy wants episodes, and refuses ones without an end.
    timeouts = np.zeros(len(data["rewards"]), dtype=bool)
    timeouts[999::1000] = True
    timeouts[-1] = True
    terminals = data["terminals"].astype(bool)
    dataset = d3rlpy.dataset.MDPDataset(
        data["observations"],
        data["actions"],
        data["rewards"],
        terminals.astype(np.float32),
        timeouts=(timeouts & ~terminals).astype(np.float32),
    )
    algo = makers[agent]().create(device="cpu:0")
    algo.build_with_dataset(dataset)

    def updates(count):
        for _ in range(count):
            algo.update(dataset.sample_transition_batch(batch_size))

    return updates


def jax_corl_module(agent):
    """JAX-CORL's file for `agent`, from the folder `OFFRL_WB_JAX_CORL`, without its data."""
    import importlib.util

    for name in ("d4rl", "gym", "wandb"):
        module = types.ModuleType(name)
        module.Env = object
        sys.modules[name] = module
    root = os.environ["OFFRL_WB_JAX_CORL"]
    name = {"td3_bc": "td3bc", "sac_n": "sac-n"}.get(agent, agent) + ".py"
    places = [os.path.join(root, part, name) for part in ("", "algos")]
    path = next(place for place in places if os.path.isfile(place))
    sys.argv = sys.argv[:1]  # the file reads its settings from the command line
    found = importlib.util.spec_from_file_location("jax_corl_" + agent, path)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    flags = os.environ.get("XLA_FLAGS")
    found.loader.exec_module(module)
    if flags is None:  # the file asks for something that only GPUs know
        os.environ.pop("XLA_FLAGS", None)
    return module


def jax_corl_updates(agent, data, batch_size, threads, precision):
    """JAX-CORL's `update_n_times`, compiled, on the whole data set, eight updates to a call."""
    # XLA makes as many threads as the process may use cores: there is no other setting.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax
    import jax.numpy as jnp

    if os.environ.get("OFFRL_WB_JAX_DEVICE") == "gpu":
        jax.devices("gpu")  # where JAX sees none, it says so here
        spoken = {"highest": "highest", "high": "tensorfloat32", "medium": "tensorfloat32"}
        jax.config.update("jax_default_matmul_precision", spoken[precision])
    module = jax_corl_module(agent)
    config = module.config
    config.batch_size = batch_size
    given = {"dones": "terminals", "dones_float": "terminals"}
    fields = module.Transition._fields
    dataset = module.Transition(**{n: jnp.array(data[given.get(n, n)]) for n in fields})
    kind, create = {
        "iql": ("IQL", "create_iql_train_state"),
        "td3_bc": ("TD3BC", "create_td3bc_train_state"),
    }[agent]
    key = jax.random.PRNGKey(0)
    state = getattr(module, create)(key, dataset.observations[:1], dataset.actions[:1], config)
    update = jax.jit(getattr(module, kind)().update_n_times, static_argnums=(3,))
    held = [state, key]

    def updates(count):
        for _ in range(max(1, count // config.n_jitted_updates)):
            held[1], key = jax.random.split(held[1])
            held[0], told = update(held[0], dataset, key, config)
        jax.block_until_ready(told)

    return updates


def main():
    peer, agent, batch_size, threads, precision, file = sys.argv[1:]
    data = dict(np.load(file))
    make = {"d3rlpy": d3rlpy_updates, "jax_corl": jax_corl_updates}[peer]
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peer prints goes to the error stream
    updates = make(agent, data, int(batch_size), int(threads), precision)
    updates(16)
    print("ready", file=answer, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        updates(int(line))
        print(time.perf_counter() - started, file=answer, flush=True)


if __name__ == "__main__":
    main()
