"""The page by hand, in headless Chromium driven by Playwright: keyboard alone, light and dark, a
phone, print; no console message, no request. Needs `pip install playwright` and a Chromium
(`apt-get install chromium`); skipped where either is missing.
"""

import shutil

import pytest

from cai_jax.report import build
from cai_jax.report.run import Run
from tests import fake_run
from tests.test_report import HOSTILE

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
TEXTS = (
    "h1",
    ".lede",
    ".verdicts dt",
    ".verdicts span",
    ".verdicts b",
    ".cautions a",
    "figcaption",
    ".delta",
)
# Contrast of the text that says most, after WCAG 2.1: relative luminances of colour and background.
CONTRAST = """
(places) => {
  const linear = (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const luminance = function (colour) {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return places.map(function (css) {
    const ink = luminance(getComputedStyle(document.querySelector(css)).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
}
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )


def opened(browser, file, said, **options):
    page = browser.new_page(**options)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: said.append(request.url) if not request.url.startswith("file://") else None,
    )
    page.on("dialog", lambda dialog: said.append("a dialog"))
    page.goto(f"file://{file}")
    page.wait_for_selector("#cards details")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_by_hand(tmp_path, browser, scheme):
    file, said = tmp_path / "report.html", []
    file.write_text(build.page([Run(fake_run.write(tmp_path / "run", 21, hostile=HOSTILE))]))
    page = opened(browser, file, said, viewport={"width": 1366, "height": 860}, color_scheme=scheme)
    assert min(page.evaluate(CONTRAST, list(TEXTS))) >= 4.5
    for css in ("h1", ".verdicts", ".cautions", "svg.plot"):  # the first screen
        assert page.locator(css).first.bounding_box()["y"] < 860, css
    keys = page.keyboard
    keys.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#f-show")
    keys.press("ArrowDown")
    assert page.text_content("#count") == "21 prompts of 64"
    page.focus("#f-text")
    keys.type("jacket")
    playwright.expect(page.locator("#count")).not_to_have_text("21 prompts of 64")
    keys.press("Control+A")
    keys.press("Delete")
    playwright.expect(page.locator("#count")).to_have_text("21 prompts of 64")
    page.locator("#cards summary").nth(1).focus()
    keys.press("Enter")
    assert (
        page.locator("#cards details")
        .nth(1)
        .evaluate("(item) => item.open && item.children.length")
        == 2
    )
    page.focus("#next")
    keys.press("Enter")
    assert page.text_content("#where").startswith("Page 2 of")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".filters").is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('input, select')].every((box) => box.labels.length)"
    )
    assert said == []
    page.close()


def test_on_a_phone(tmp_path, browser):
    file, said = tmp_path / "report.html", []
    file.write_text(build.page([Run(fake_run.write(tmp_path / "run", 6, hostile=HOSTILE))]))
    page = opened(browser, file, said, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and said == []
    page.close()
