"""What the engine asks of every agent: nothing is asked of the host, and replicas are seeds."""

import pytest
import torch

from offrl_wb.data.views import add_monte_carlo_returns
from offrl_wb.train.agent import (
    Agent,
    agent_module,
    agent_names,
    agent_spec,
    layouts,
    make_agent,
    select_state,
)
from offrl_wb.train.loop import Loop, rehearse, watched
from offrl_wb.train.replay import Transitions
from offrl_wb.train.settings import settings_of, settings_table
from tests.test_loop import make_log, same

LOG = add_monte_carlo_returns(make_log(300), discount=0.99)
SPEC = agent_spec(LOG)
BATCH = 80  # what every update ratio among the defaults divides


def small(name):
    """The agent's default settings with networks of 8 and 8 units."""
    kind = agent_module(name).Config
    wide = [r.name for r in settings_of(kind) if r.kind is tuple and "hidden" in r.name]
    return kind(**dict.fromkeys(wide, (8, 8)))


def made(name, seeds, dtype=torch.float64, device="cpu"):
    return make_agent(name, SPEC, small(name), seeds, device, dtype)


@pytest.mark.parametrize("name", agent_names())
def test_it_obeys_the_protocol_and_tells_its_settings(name):
    agent = made(name, [0, 1])
    assert isinstance(agent, Agent)
    assert all(shapes is None or shapes for shapes in layouts(agent).values())
    assert all(rule.source for rule in settings_of(agent.config))
    assert len(settings_table(agent.config).splitlines()) > 3
    action = agent.act(torch.zeros(2, 5, SPEC.observation, dtype=torch.float64))
    assert action.shape == (2, 5, SPEC.action)
    assert action.abs().max() <= 1


@pytest.mark.parametrize("name", agent_names())
def test_its_update_can_be_captured(name):
    agent = made(name, [0, 1])
    seen = watched(agent, Transitions(LOG, torch.float64), BATCH, count=2)
    assert (seen.objections, seen.constant) == ((), True)
    metrics = rehearse(lambda device: made(name, [0, 1], torch.float32, device), BATCH)
    assert metrics


@pytest.mark.parametrize("name", agent_names())
def test_its_static_block_is_its_plain_update_and_a_replica_is_its_seed(name):
    source = Transitions(LOG, torch.float64)
    plain, static, alone = made(name, [0, 1, 2]), made(name, [0, 1, 2]), made(name, [1])
    for agent, still in ((plain, False), (static, True), (alone, False)):
        Loop(agent, source, BATCH, ahead=4, static=still).advance(8)
    same(plain.state(), static.state())
    same(alone.state(), select_state(plain, [1]), 1e-12)
