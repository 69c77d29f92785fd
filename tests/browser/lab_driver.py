"""A real JupyterLab and a headless Chromium, for the browser tests and the explorers' benchmark."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

import offrl_wb

SLOW_MACHINE = 120  # seconds: a generous limit for anything that is waited for
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    # No news prompt, no look-up of updates, no virtualised cells.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/themes": {"theme": LIGHT},
}
# Messages that are others' own and say nothing about an explorer: (text, the reason).
HARMLESS: tuple[tuple[str, str], ...] = (
    (
        "[anywidget] Failed to initialize model.",
        "a model took longer than anywidget's two seconds; that it is drawn, `open` waits for",
    ),
)


class Lab:
    """A JupyterLab server on a folder of its own; it reads its settings at each load of a page."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        for name, values in SETTINGS.items():
            self.setting(name, values)

    def setting(self, name: str, values: dict[str, Any]) -> None:
        path = self.folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def theme(self, theme: str) -> None:
        self.setting("apputils-extension/themes", {"theme": theme})

    def notebook(self, name: str, *sources: str) -> str:
        """Write a notebook with these code cells; return the address that opens it alone.

        Every call makes a new file, so every notebook has a kernel of its own.
        """
        name = f"{name}-{time.monotonic_ns()}"
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        kernel = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        book = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(book, self.folder / "notebooks" / f"{name}.ipynb")
        return f"{self.url}/lab/workspaces/{name}/tree/{name}.ipynb?reset"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[Lab]:
    """Run `python -m jupyterlab` on `folder` until the block ends."""
    port = free_port()
    lab = Lab(folder, f"http://127.0.0.1:{port}")
    (folder / "notebooks").mkdir()
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "OFFRL"))
    }
    library = str(Path(offrl_wb.__file__).parents[1])
    environment = kept | {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": os.pathsep.join(filter(None, [library, kept.get("PYTHONPATH")])),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *("--ServerApp.token=", "--ServerApp.password=", "--LabApp.expose_app_in_browser=True"),
        f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until_up(server, lab)
            yield lab
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_up(server: subprocess.Popen, lab: Lab) -> None:
    deadline = time.monotonic() + SLOW_MACHINE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{lab.url}/api", timeout=5):
            return
        if server.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError("JupyterLab did not start:\n" + (lab.folder / "server.log").read_text())


class Shown:
    """An explorer open in a page: reads the plot, moves the sliders, hears the console."""

    def __init__(self, page: Any) -> None:
        self.page, self.problems = page, []
        page.set_default_timeout(SLOW_MACHINE * 1000)
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self._hear("error", str(error)))

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and not any(known in text for known, _ in HARMLESS):
            self.problems.append(text)

    def open(self, address: str) -> None:
        """Open a notebook, run all of it, and wait for a plot with data in it."""
        self.page.goto(address)
        self.page.wait_for_function("window.jupyterapp && window.jupyterapp.restored")
        self.page.evaluate("window.jupyterapp.restored.then(() => true)")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.evaluate(
            """async () => {
                 const panel = window.jupyterapp.shell.currentWidget;
                 await panel.context.ready; await panel.sessionContext.ready;
                 await window.jupyterapp.commands.execute("notebook:run-all-cells");
               }"""
        )
        self.page.wait_for_function(HAS_DATA)
        self.page.wait_for_selector(".offrl-explorer .offrl-readout:not(:empty)")
        self.page.evaluate(LISTEN)
        self.settle()

    def close(self) -> None:
        """Stop the notebook's kernel and close the page."""
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()

    def settle(self) -> None:
        """Wait until for half a second nothing was drawn, and nothing asked of the kernel.

        A slider sends a value once its last one is answered: on a loaded machine, the picture
        can be still for longer than that between two values.
        """
        self.page.wait_for_function(STILL)

    def trace(self, index: int, field: str) -> list[Any]:
        script = TRACE
        return self.page.evaluate(script, [index, field])

    def handle(self, label: str) -> Any:
        """The handle of the slider described as `label`."""
        row = self.page.locator(".offrl-explorer .widget-hslider").filter(has_text=label)
        return row.locator(".noUi-handle").first

    def act(self, action: Callable[[], Any]) -> None:
        """Do something that redraws, and wait for the picture to follow."""
        before = self.page.evaluate("window.drawn")
        action()
        self.page.wait_for_function("before => window.drawn > before", arg=before)
        self.settle()

    def press(self, label: str, key: str, times: int = 1) -> None:
        """Press a key on a slider."""

        def keys() -> None:
            self.handle(label).focus()
            for _ in range(times):
                self.page.keyboard.press(key)

        self.act(keys)

    def click(self, button: str) -> None:
        self.act(self.page.get_by_role("button", name=button, exact=True).click)

    def choose(self, label: str, option: str) -> None:
        """Select an option of a menu."""
        menu = self.page.locator(".offrl-explorer .widget-dropdown").filter(has_text=label)
        self.act(lambda: menu.locator("select").select_option(label=option))

    def resize(self, width: int) -> None:
        """Give the window another width, and wait until the figure fills its card."""
        self.page.set_viewport_size({"width": width, "height": 1000})
        self.page.wait_for_function(FITS)
        self.settle()

    def widths(self) -> tuple[float, float]:
        """Width of the drawn figure, and of the card that holds it."""
        return tuple(self.page.evaluate(WIDTHS))

    def colours(self, selector: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ink of the first such part, and the first solid colour behind it."""
        ink, paper = self.page.evaluate(COLOURS, f".offrl-explorer {selector}")
        return tuple(ink), tuple(paper)

    def readout(self) -> str:
        return self.page.locator(".offrl-readout").inner_text()

    def error(self) -> str:
        return self.page.locator(".offrl-error").inner_text()

    def overflows(self) -> list[str]:
        """What sticks out of its column: empty when the layout fits."""
        return self.page.evaluate(OVERFLOWS)


TRACE = """([index, field]) => {
  const plain = (value) =>
    Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value, plain) : value;
  return plain(document.querySelector(".js-plotly-plot").data[index][field]);
}"""
WIDTHS = """() => {
  const plot = document.querySelector(".js-plotly-plot");
  return [plot._fullLayout.width, plot.closest(".offrl-card").clientWidth];
}"""
FITS = """() => {
  const plot = document.querySelector(".js-plotly-plot"), card = plot.closest(".offrl-card");
  const inside = card.getBoundingClientRect().right < window.innerWidth;
  return inside && Math.abs(plot._fullLayout.width - card.clientWidth) < 4;
}"""
COLOURS = """(selector) => {
  const part = document.querySelector(selector);
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  let behind = part;
  const solid = (element) => {
    const channels = numbers(getComputedStyle(element).backgroundColor);
    return channels.length < 4 || channels[3] > 0.99;
  };
  while (!solid(behind)) behind = behind.parentElement;
  const paper = numbers(getComputedStyle(behind).backgroundColor).slice(0, 3);
  return [numbers(getComputedStyle(part).color).slice(0, 3), paper];
}"""
HAS_DATA = """() => {
  const plot = document.querySelector(".offrl-explorer .js-plotly-plot");
  return plot && plot.data && plot.data.length > 0 && plot.querySelector(".main-svg");
}"""
LISTEN = """() => {
  window.drawn = 0; window.lastDrawn = performance.now();
  document.querySelector(".js-plotly-plot").on("plotly_afterplot", () => {
    window.drawn += 1; window.lastDrawn = performance.now();
  });
}"""
# A kernel's futures are the messages that wait for an answer, and the cells' own for good.
STILL = """() => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const asked = [...kernel._futures.values()].map((future) => future.msg.header.msg_type);
  const now = performance.now();
  if (kernel.status !== "idle" || asked.includes("comm_msg")) window.lastAsked = now;
  return now - Math.max(window.lastDrawn, window.lastAsked ?? 0) > 500;
}"""
# Anything wider than what holds it, text that is cut off, and anything past the notebook's edge.
OVERFLOWS = """() => {
  const found = [];
  const book = document.querySelector(".jp-Notebook");
  const edge = book.getBoundingClientRect().left + book.clientWidth;
  const outer = document.querySelector(".offrl-explorer").closest(".jp-OutputArea-output");
  if (outer.scrollWidth > outer.clientWidth + 1)
    found.push(`output scrolls: ${outer.scrollWidth} > ${outer.clientWidth}`);
  const root = document.querySelector(".offrl-explorer");
  if (root.scrollWidth > root.clientWidth + 1)
    found.push(`explorer is cut off: ${root.scrollWidth} > ${root.clientWidth}`);
  const parts = ".widget-label, .widget-readout, button, select, .main-svg";
  for (const part of root.querySelectorAll(parts)) {
    const name = `${part.className.baseVal ?? part.className} '${part.textContent.slice(0, 40)}'`;
    const box = part.getBoundingClientRect();
    if (box.right > edge + 1) found.push(`${name} ends at ${box.right}, the notebook at ${edge}`);
    if (part.matches(".widget-label, button") && part.scrollWidth > part.clientWidth + 1)
      found.push(`${name} is cut off: ${part.scrollWidth} > ${part.clientWidth}`);
  }
  return found;
}"""
