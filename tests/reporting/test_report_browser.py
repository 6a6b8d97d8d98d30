"""The report in headless Chromium: nothing is fetched, nothing complains, nothing is wider than the window."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from report_opening import CHROMIUM, QUIET, noise_shots, random_answers
from test_run_report import EVIL, finished, run  # noqa: F401 (fixtures)

from keras_transfer.reporting.run_report import render_report

HEIGHT = 1500
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")


def opened(page, folder, width, dark):
    """(pixels [H, W, 3], what the page wrote into the console, addresses that were asked for)."""
    image, log = folder / "seen.png", folder / "net.json"
    settings = (
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{HEIGHT}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--screenshot={image}",
        f"--log-net-log={log}",
    )
    command = [CHROMIUM, *QUIET, *settings, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert image.exists(), done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text())["events"]
    params = [event.get("params", {}) for event in events]
    # The browser's own requests, for the time and the like, have no page behind them.
    asked = {p["url"] for p in params if p.get("initiator", "not an origin") != "not an origin"}
    return np.asarray(Image.open(image).convert("RGB")), console, asked


@pytest.mark.parametrize("dark", (False, True), ids=("light", "dark"))
@pytest.mark.parametrize("width", (500, 1280), ids=("phone", "desktop"))
def test_the_page_is_quiet_and_fits(run, tmp_path, width, dark):  # noqa: F811
    document = random_answers(100, 400, 100, EVIL)
    page = tmp_path / "report.html"
    text = render_report(run, run.model, document, noise_shots(document))
    page.write_text(text, encoding="utf-8")
    pixels, console, asked = opened(page, tmp_path, width, dark)
    assert not console
    assert not asked
    assert pixels.shape == (HEIGHT, width, 3)
    edge = pixels[:, -4:].reshape(-1, 3)
    assert len(np.unique(edge, axis=0)) == 1, "something reaches to the edge of the window"
    assert (edge.mean() < 80) == dark
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "the page is empty"


def test_what_is_asked_for_would_be_seen(tmp_path):
    """The test above can fail: a page that fetches and complains is found out."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh')</script>")
    _, console, asked = opened(page, tmp_path, 500, dark=False)
    assert any("oh" in line for line in console)
    assert "http://127.0.0.1:9/x.png" in asked
