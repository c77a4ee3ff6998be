"""Measures in Chromium how long a brush stroke takes to become a picture in a served page.

python -m mmface.app.latency http://127.0.0.1:7860/ --strokes 40 --busy 1
"""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from mmface.app.painting import hex_color
from mmface.conditions import LABELS
from mmface.core.command_line import run_app

BROWSER_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 30_000

_WATCH = """() => {
  const seen = { up: 0, shown: 0, old: '' };
  const source = () => document.querySelector('#live-face img')?.src ?? '';
  window.strokeToPicture = seen;
  addEventListener('pointerup', () => {
    Object.assign(seen, { up: performance.now(), shown: 0, old: source() });
  }, true);
  new MutationObserver(() => {
    if (seen.shown || !source().startsWith('data:') || source() === seen.old) return;
    document.querySelector('#live-face img').decode().then(() => requestAnimationFrame(() => {
      seen.shown ||= performance.now();
    }));
  }).observe(document.querySelector('#live-face'),
    { subtree: true, childList: true, attributes: true, attributeFilter: ['src'] });
}"""
_SHOWN = "() => window.strokeToPicture.shown > window.strokeToPicture.up"
_TOOK = "() => window.strokeToPicture.shown - window.strokeToPicture.up"


@dataclass(frozen=True)
class StrokeTimes:
    """Milliseconds of each stroke: from the lifted pen to the shown face, and of the model's."""

    stroke_to_picture: tuple[float, ...]
    compute: tuple[float, ...]

    def as_text(self) -> str:
        """Write the quartiles and the slowest, a line each."""
        lines = []
        for title, times in (
            ("stroke to picture", self.stroke_to_picture),
            ("computed in", self.compute),
        ):
            low, middle, high, slow = np.percentile(times, (25, 50, 75, 95))
            lines.append(
                f"{title}: median {middle:.0f} ms (quartiles {low:.0f} to {high:.0f}, "
                f"95 % below {slow:.0f}), {len(times)} strokes"
            )
        return "\n".join(lines)


def measure_strokes(page: Any, strokes: int) -> StrokeTimes:
    """Paint strokes on the mask of an open page, each after the face of the one before.

    They lay hat and hair on top of each other, so that each changes the mask. `page` is
    playwright's; the first two strokes are not counted.
    """
    colors = [hex_color(LABELS.index(name)) for name in ("hat", "hair")]
    page.wait_for_selector("#mask [data-ready]")
    page.wait_for_selector("#live-face img[src^='data:']")
    page.locator("#mask canvas").scroll_into_view_if_needed()
    box = page.locator("#mask canvas").bounding_box()
    page.evaluate(_WATCH)
    shown, computed = [], []
    for stroke in range(-2, strokes):
        page.click(f"#mask [data-color='{colors[stroke % 2]}']")
        across = box["x"] + box["width"] * (0.15 + 0.1 * (stroke // 2 % 8))
        down = box["y"] + box["height"] * 0.2
        page.mouse.move(across, down)
        page.mouse.down()
        page.mouse.move(across + 6, down + 14, steps=4)
        page.mouse.up()
        page.wait_for_function(_SHOWN, timeout=PATIENCE_MS)
        if stroke >= 0:
            shown.append(page.evaluate(_TOOK))
            note = page.inner_text("#live-note")
            computed.append(float(note.split(" ms")[0].rpartition(" ")[2]))
        page.wait_for_timeout(120)
    return StrokeTimes(tuple(shown), tuple(computed))


def main(
    address: Annotated[str, typer.Argument(help="Of the page that scripts/app.py serves.")],
    strokes: Annotated[int, typer.Option(help="How many strokes.", min=2)] = 40,
    busy: Annotated[int, typer.Option(help="Processes that calculate beside it.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every stroke.")] = False,
) -> None:
    """Measure how long strokes take to become pictures in a page that is already served."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; this needs pip install -e '.[dev]'.") from error
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise FileNotFoundError("There is no chromium; install the system's package of it.")
    with ExitStack() as stack:
        for _ in range(busy):
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(neighbour.wait)
            stack.callback(neighbour.kill)
        library = stack.enter_context(sync_playwright())
        browser = library.chromium.launch(executable_path=chromium, args=list(BROWSER_OPTIONS))
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        times = measure_strokes(page, strokes)
    typer.echo(json.dumps(vars(times)) if as_json else times.as_text())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(run_app(app))
