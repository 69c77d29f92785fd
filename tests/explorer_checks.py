"""What every explorer must do, whatever it shows: called by the tests of each chapter."""

import json
from collections.abc import Callable

from offrl_wb.app.explorer import Explorer
from offrl_wb.core.figures import alternative_text


def check_one_message_a_move(make: Callable[..., Explorer], control: str) -> None:
    """Moving `control` of a live explorer sends its figure one message, and nothing fails."""
    explorer = make(live=True)
    names = [each for each in explorer.figure.trait_names() if each.startswith("_py2js_")]
    messages = []
    explorer.figure.observe(lambda change: change["new"] and messages.append(change["name"]), names)
    explorer.panel.controls[control].value = explorer.controls[control].settings[2]
    assert messages == ["_py2js_update"]
    assert explorer.error == ""


def check_static_picture(explorer: Explorer) -> None:
    """The picture without a front end is small, complete, and says in words what it shows."""
    bundle = explorer._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 150_000
    assert len(alternative_text(explorer.figure)) >= 80
    assert explorer.readout in bundle["text/plain"]
    drawn = bundle["application/vnd.plotly.v1+json"]["data"]
    assert len(drawn) == len(explorer.figure.data)
