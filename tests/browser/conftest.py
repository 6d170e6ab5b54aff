"""Reports in a real Chromium: `make test-browser`. A missing browser is a failure here, never a skip."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.finished_runs import write_run
from visual_r1.config import build, keyword_lists, recorded
from visual_r1.report.write import report

SCREENSHOTS = Path(__file__).resolve().parent.parent.parent / "build" / "screenshots"
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> Wait, {{css}} <!-- "
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two configurations, a run that did not finish, and one whose texts attack the page."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / "plain" / f"seed{seed}", seed=seed, accuracy=(0.5, 0.6))
        write_run(
            folder / "better" / f"seed{seed}", seed=seed, accuracy=(0.4, 0.9), config={"method": {"name": "dapo"}}
        )
    write_run(folder / "plain" / "seed2", seed=2, is_finished=False, steps=(0, 5))
    hostile = folder / "evil<script>window.hacked=1<!--{{data}}" / "seed0"
    completion = f"{HOSTILE}{{thought}}</think>\n<answer>({{letter}})</answer>"
    write_run(hostile, config={"method": {"name": HOSTILE}}, completion=completion)
    # Unicode, a text without an end, and a data set that is not on this machine: no images.
    gone = {"_target_": "visual_r1.datasets.spatial.Spatial", "split": "nowhere", "size": 16}
    write_run(
        folder / "日本語 عربى 🙂" / "seed0",
        completion=f"{{thought}} 𝔚𝔞𝔦𝔱 e\u0301\u202e {'endless' * 3000}</think>\n<answer>({{letter}})</answer>",
        config={"dataset": {"name": "spatial", "probe": gone, "train": gone}},
    )
    out = folder / "report.html"
    report(
        [folder],
        out=out,
        format="html",
        keyword_lists=keyword_lists(),
        examples_of=lambda node: build(recorded(node)),
    )
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    assert executable, "chromium is needed, in which the reports are opened: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report from disk; afterwards nothing may have been fetched, logged as an error, or run."""
    opened: list[Any] = []
    troubles: list[str] = []

    def open_page(*, width: int = 1600, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(20_000)
        opened.append(page)
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda request: note(request.url))
        page.goto(page_file.as_uri())
        page.locator("html[data-ready=true]").wait_for(state="attached", timeout=60_000)
        return page

    def note(url: str) -> None:
        if url != page_file.as_uri() and not url.startswith(("data:", "blob:")):
            troubles.append(f"request: {url}")

    yield open_page
    hacked = [page.evaluate("window.hacked") for page in opened]
    for page in opened:
        page.close()
    assert opened and not troubles
    assert not any(hacked)
