"""Compare the web page of an exported model with `predict`, in headless Chromium.

    python scripts/page_parity.py RUN/export/page/1 RUN IMAGES [--most 300] [--screenshots FOLDER]

Prints how many images get the same label, and by how much the score of that label differs. Needs the package
playwright, and Chromium on the machine.
"""

import argparse
import functools
import http.server
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from report_opening import CHROMIUM


@contextmanager
def opened(folder, width=500):
    """Yield the page in headless Chromium, ready.

    Raises:
        AssertionError: something was written to the console, or fetched from elsewhere.
    """
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home, complaints = f"http://127.0.0.1:{server.server_port}/", []
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "request",
                lambda asked: asked.url.startswith((home, "blob:")) or complaints.append(asked.url),
            )
            page.goto(home)
            page.wait_for_selector("#status:text('Ready.')", timeout=120_000)
            yield page
            browser.close()
    finally:
        server.shutdown()
    if complaints:
        raise AssertionError(f"the page complains: {complaints}")


def shown(page) -> dict[str, float]:
    """Return the scores on the page by name."""
    page.wait_for_selector("#status:text-is('')", timeout=60_000, state="attached")
    rows = page.eval_on_selector_all(
        "#answer li", "x => x.map(e => [e.dataset.name, e.dataset.score])"
    )
    return {name: float(score) for name, score in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--most", type=int, default=300)
    parser.add_argument("--screenshots", type=Path, help="folder for phone.png and desktop.png")
    options = parser.parse_args()
    import keras_transfer as kt

    found, _ = kt.evaluation.predict(kt.Run.open(options.run).model, [options.images])
    rows = np.linspace(0, len(found) - 1, min(options.most, len(found))).astype(int)
    same, gaps, seconds = 0, [], []
    with opened(options.page) as page:
        for one in (found[row] for row in rows):
            started = time.perf_counter()
            page.set_input_files("input[type=file] >> nth=0", one.path)
            scores = shown(page)
            seconds.append(time.perf_counter() - started)
            same += max(scores, key=scores.get) == one.label
            gaps.append(abs(scores[one.label] - one.score))
        if options.screenshots:
            options.screenshots.mkdir(parents=True, exist_ok=True)
            for name, width in (("phone", 390), ("desktop", 1000)):
                page.set_viewport_size({"width": width, "height": 640})
                page.screenshot(path=options.screenshots / f"{name}.png")
    print(
        f"{same} of {len(rows)} images get the same label; the score differs by {np.mean(gaps):.4f} on "
        f"average, {max(gaps):.4f} at most; {1000 * np.median(seconds):.0f} ms per image"
    )


if __name__ == "__main__":
    main()
