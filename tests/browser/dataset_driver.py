"""Drives the dataset explorer in a page: its tabs, its figures by name, brushes, and timings."""

import re
from collections.abc import Callable
from typing import Any

from .lab_driver import Shown

PLOTS = ("states", "episodes", "columns", "viewer", "mixture", "damage")  # in the page's order
ROOT = ".offrl-dataset"


class ShownDataset(Shown):
    """A dataset explorer open in a page."""

    def open(self, address: str) -> None:
        """Open a notebook, run all of it, and wait for all figures."""
        super().open(address)
        self.page.wait_for_function(ALL_DRAWN, arg=len(PLOTS))
        self.page.evaluate(LISTEN_TO_ALL)
        self.settle()

    def plot(self, name: str) -> Any:
        return self.page.locator(f"{ROOT} .js-plotly-plot").nth(PLOTS.index(name))

    def trace_of(self, name: str, index: int, field: str) -> list[Any]:
        """One field of one trace, as it is drawn."""
        return self.page.evaluate(FIELD, [PLOTS.index(name), index, field])

    def tab(self, title: str) -> None:
        """Open a tab with the mouse."""
        self.page.locator(f"{ROOT} .lm-TabBar-tab").filter(has_text=title).click()
        self.page.wait_for_function(ALL_FIT)
        self.settle()

    def row(self, label: str) -> Any:
        """The visible control that is described as `label`."""
        named = self.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(label)}$"))
        return self.page.locator(f"{ROOT} .widget-inline-hbox:visible").filter(has=named).first

    def select(self, label: str, option: str) -> None:
        """Choose an option of a menu, and wait for the picture."""
        self.act(lambda: self.row(label).locator("select").select_option(label=option))

    def keys(self, label: str, key: str, times: int = 1) -> None:
        """Press a key on a slider, and wait for the picture."""

        def press() -> None:
            self.row(label).locator(".noUi-handle").first.focus()
            for _ in range(times):
                self.page.keyboard.press(key)

        self.act(press)

    def area(self, name: str, subplot: int = 0) -> dict[str, float]:
        """Where on the page a subplot lies, scrolled into view."""
        place = self.plot(name).locator(".nsewdrag").nth(subplot)
        place.scroll_into_view_if_needed()
        return place.bounding_box()

    def brush(
        self,
        name: str,
        start: tuple[float, float],
        end: tuple[float, float],
        subplot: int = 0,
        act: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Drag across a subplot; corners are shares of it, from its top left."""
        area = self.area(name, subplot)
        places = [
            (area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)
        ]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for step in range(1, 13):  # a dozen frames, as a hand would
            between = zip(*places, strict=True)
            self.page.mouse.move(*(a + (b - a) * step / 12 for a, b in between))
            self.page.wait_for_timeout(16)
        (act or self.act)(self.page.mouse.up)

    def lasso(self, name: str, corners: list[tuple[float, float]]) -> None:
        """Draw a lasso through `corners`, shares of the plot from its top left."""
        self.plot(name).hover()
        self.plot(name).locator(".modebar-btn[data-title='Lasso Select']").click()
        area = self.area(name)
        x, y = ([area[a] + c[k] * area[b] for c in corners] for k, (a, b) in enumerate(SIDES))
        self.page.mouse.move(x[0], y[0])
        self.page.mouse.down()
        for across, down in zip(x[1:], y[1:], strict=True):
            self.page.mouse.move(across, down, steps=6)
        self.act(self.page.mouse.up)

    def status(self) -> str:
        """The visible line that says what is shown."""
        return self.page.locator(f"{ROOT} .offrl-readout:visible").first.inner_text()

    def problem(self) -> str:
        """The visible error line, empty if there is none."""
        lines = self.page.locator(f"{ROOT} .offrl-error:visible")
        return lines.first.inner_text() if lines.count() else ""

    def points(self) -> int:
        """Points of all traces of all figures of the page."""
        return self.page.evaluate(POINTS)

    def overflows(self) -> list[str]:
        """What sticks out of its column in the open tab: empty when the layout fits."""
        return self.page.evaluate(OVERFLOWING)


SIDES = (("x", "width"), ("y", "height"))
ALL_DRAWN = """(count) => {
  const plots = document.querySelectorAll(".offrl-dataset .js-plotly-plot");
  return plots.length === count && [...plots].every((plot) => plot._fullLayout && plot.data);
}"""
ALL_FIT = """() => {
  const seen = [...document.querySelectorAll(".offrl-dataset .js-plotly-plot")].filter(
    (plot) => plot.getBoundingClientRect().width > 0);
  return seen.every((plot) =>
    Math.abs(plot._fullLayout.width - plot.closest(".offrl-card").clientWidth) < 4);
}"""
LISTEN_TO_ALL = """() => {
  window.drawn = 0; window.lastDrawn = performance.now();
  for (const plot of document.querySelectorAll(".offrl-dataset .js-plotly-plot"))
    plot.on("plotly_afterplot", () => {
      window.drawn += 1; window.lastDrawn = performance.now();
    });
}"""
FIELD = """([plot, index, field]) => {
  const plain = (value) =>
    Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value, plain) : value;
  const drawn = document.querySelectorAll(".offrl-dataset .js-plotly-plot")[plot];
  return plain(field.split(".").reduce((found, name) => found?.[name], drawn.data[index]));
}"""
POINTS = """() => {
  let count = 0;
  for (const plot of document.querySelectorAll(".offrl-dataset .js-plotly-plot"))
    for (const trace of plot.data)
      count += Math.max((trace.x ?? []).length, (trace.y ?? []).length);
  return count;
}"""
OVERFLOWING = """() => {
  const found = [];
  const book = document.querySelector(".jp-Notebook");
  const edge = book.getBoundingClientRect().left + book.clientWidth;
  const root = document.querySelector(".offrl-dataset");
  const outer = root.closest(".jp-OutputArea-output");
  if (outer.scrollWidth > outer.clientWidth + 1)
    found.push(`output scrolls: ${outer.scrollWidth} > ${outer.clientWidth}`);
  const parts =
    ".widget-label, .widget-readout, button, select, .main-svg, pre, .lm-TabBar-tabLabel";
  for (const part of root.querySelectorAll(parts)) {
    const box = part.getBoundingClientRect();
    if (box.width === 0) continue;
    const name = `${part.className.baseVal ?? part.className} '${part.textContent.slice(0, 40)}'`;
    if (box.right > edge + 1) found.push(`${name} ends at ${box.right}, the notebook at ${edge}`);
    const text = part.matches(".widget-label, button, pre, .lm-TabBar-tabLabel");
    if (text && part.scrollWidth > part.clientWidth + 1)
      found.push(`${name} is cut off: ${part.scrollWidth} > ${part.clientWidth}`);
    const card = part.closest(".offrl-card");
    if (card && box.right > card.getBoundingClientRect().right + 1)
      found.push(`${name} is wider than its card`);
  }
  return found;
}"""
