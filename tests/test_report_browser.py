"""The page in a real browser: the record browser works from the keyboard's controls, nothing fails,
nothing is run.

Needs a Chromium (`apt-get install chromium`); skipped where there is none.
"""

import html
import json
import re
import shutil
import subprocess

import pytest

from cai_jax.report import build, cards
from cai_jax.report.run import Run
from tests import fake_run
from tests.test_report import HOSTILE

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

# Runs after the page's own script; what it finds goes into the title.
DRIVER = """
const out = {errors: window.failures};
const count = () => document.getElementById("count").textContent;
const set = (id, value) => {
  const box = document.getElementById(id);
  box.value = value;
  box.dispatchEvent(new Event("change"));
};
const first = () => document.querySelector("#cards summary .q").textContent;
const shown = (css) => [...document.querySelectorAll("#cards " + css)].map((x) => x.textContent);
const deltas = () =>
  shown(".delta").map((x) => x.replace("\\u2212", "-")).filter(Boolean).map(Number);
function drive() {
  out.all = count(); out.open = document.querySelectorAll("#cards details[open]").length;
  out.kinds = [...document.getElementById("f-kind").options].map((x) => x.value);
  set("f-kind", "theft"); out.theft = count(); out.chips = shown(".chip");
  set("f-kind", ""); set("f-show", "rev"); out.revisions = count();
  set("f-principle", "lawful"); out.lawful = count(); set("f-principle", "");
  set("f-change", "up"); out.rose = deltas(); set("f-change", "");
  set("f-sort", "down"); out.sorted = deltas(); set("f-sort", "");
  set("f-show", "ans"); document.querySelector("#cards details").open = true;
  set("f-show", ""); document.getElementById("next").click();
  out.page = document.getElementById("where").textContent;
  const search = document.getElementById("f-text");
  search.value = "jacket"; search.dispatchEvent(new Event("input"));
  for (const item of document.querySelectorAll("#cards details")) item.open = true;
  setTimeout(function () {
    out.found = count();
    for (const item of document.querySelectorAll("#cards details")) item.open = true;
    setTimeout(function () {
      out.marks = document.querySelectorAll("#cards ins, #cards del").length;
      out.heads = [...document.querySelectorAll("#cards h4")].map((x) => x.textContent);
      out.way = [...document.querySelectorAll("#cards h4 + .side")].map(
        (x) => [...x.querySelectorAll(".who b")].map((y) => y.textContent));
      const tags = [...document.querySelectorAll("#cards *")].map((x) => x.tagName);
      out.tags = [...new Set(tags)].sort();
      out.alerts = window.alerts; document.title = "RESULT" + JSON.stringify(out) + "END";
    }, 300);
  }, 400);
}
setTimeout(drive, 800);
"""
WATCH = (
    "window.failures=[];window.alerts=0;window.alert=()=>{window.alerts+=1};"
    "window.onerror=(m)=>{window.failures.push(String(m))};"
)


def drive(text: str, folder) -> dict:
    """Opens the page with the driver added (only the policy against foreign scripts is taken out
    for it)."""
    text = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>\n', f"<script>{WATCH}</script>", text
    )
    file = folder / "page.html"
    file.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking "
        "--disable-component-update --disable-sync "
        "--virtual-time-budget=8000 --dump-dom"
    ).split()
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", f"file://{file}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"RESULT(.*?)END", html.unescape(done.stdout), re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found[1])


@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.long), True])
def test_filters_and_hostile_text(tmp_path, monkeypatch, compressed):
    if compressed:
        monkeypatch.setattr(cards, "PLAIN_LIMIT", 1000)
    run = fake_run.write(tmp_path / "run", 21, hostile=HOSTILE[:6])
    out = drive(build.page([Run(run)], svg=lambda figure: ""), tmp_path)
    assert out["errors"] == [] and out["alerts"] == 0
    assert out["all"] == "64 prompts" and out["open"] == 1 and "theft" in out["kinds"]
    assert out["theft"].endswith("prompts of 64") and set(out["chips"]) == {"theft"}
    assert out["revisions"] == "21 prompts of 64" and int(out["lawful"].split()[0]) < 21
    assert out["rose"] and min(out["rose"]) > 0 and out["sorted"] == sorted(out["sorted"])
    assert out["page"].startswith("Page 2 of") and int(out["found"].split()[0]) == int(
        out["theft"].split()[0]
    )
    assert out["marks"] > 0
    assert (
        "From the first answer on" in out["heads"]
        and ["Initial response", "Revision 2", "RL-CAI"] in out["way"]
    )
    assert set(out["tags"]) <= {
        "DETAILS",
        "SUMMARY",
        "SPAN",
        "DIV",
        "P",
        "H4",
        "B",
        "INS",
        "DEL",
        "I",
    }, "markup came out of a text"
