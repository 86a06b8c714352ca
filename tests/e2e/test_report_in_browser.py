"""`sapo analyze … --report` in a real browser: its script runs, what runs have said does not."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up import candidate, edit_run, write_run
from tiny import call

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

# Each would set a mark on the page that runs it.
HOSTILE = "</script><img src=x onerror=\"top.ran=1;document.title='ran'\"><script>top.ran=1</script>{{7*7}}"
NAME = "<img src=x onerror=\"top.ran=1;document.title='ran'\">{{7*7}}"  # what a task may be called
TASKS = ["task195_sentiment", f"task363_{NAME}"]
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk" * 4
UNSEEN = [f"mini_reverse_the_words_{place}" for place in range(10)]
N = 60
ROWS = 2 * (2 * 50 + len(UNSEEN))  # of both runs: at most 50 a trained task, one an unseen one


def hostile_run(folder: Path, policy: str) -> None:
    """A finished run of two tasks, in whose end state example 0 of the first is lost and 1 is gained.

    Ten unseen tasks of one example each make its matrices wide.
    """
    candidates = [candidate(index, 1.5 - index / 10, text=f"{HOSTILE} {LONG_WORD}") for index in (-1, 0, 1)]
    choices = [{"task": task, "index": 1, "text": HOSTILE, "candidates": candidates} for task in TASKS]
    scores = {(after, task): np.full(N, 50.0) for after in range(3) for task in TASKS}
    scores |= {(after, task): np.full(1, 50.0) for after in range(3) for task in UNSEEN}
    for (after, _), values in scores.items():
        values[:2] += np.array([-20.0, 20.0])[: len(values)] * after
    texts = {"prompts": dict.fromkeys(TASKS, HOSTILE), "choices": choices, "notes": [HOSTILE]}
    path = write_run(folder, policy, scores, TASKS, unseen=UNSEEN, policy=policy, **texts)

    def said(frame: pd.DataFrame) -> pd.DataFrame:
        state = frame["after"].astype(str).where(frame["example"] < 2, "")
        return frame.assign(prediction=f"{HOSTILE} {LONG_WORD} " + state, target=LONG_WORD, exact_match=0.0)

    losses = pd.DataFrame({"task": np.repeat(TASKS, 30), "step": [*range(1, 31)] * 2, "loss": 1.0})
    losses.to_csv(path / "losses.csv", index=False)
    edit_run(path, said)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder that the page and the browser's own files lie in."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def page(workplace):
    """The page of two runs whose every text is hostile."""
    for policy in ("static", "sapo"):
        hostile_run(workplace / "store" / "runs", policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAPO_STORE", str(workplace / "store"))
        done = call("analyze", "static", "sapo", "--report", "--output", workplace / "out")
    assert done.code == 0, done.err
    return workplace / "out" / "report.html"


def chromium(workplace: Path, *arguments: object) -> str:
    """What a headless Chromium prints."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags.append(f"--user-data-dir={workplace / 'browser'}")
    command = [str(CHROMIUM), *flags, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


# Views of the page: file and address after #, width, and what the frame may do. On A4 with Chromium's own
# margins a line is 718 pixels wide.
SCRIPTS = "allow-scripts allow-same-origin"
VIEWS = {
    "plain": ("report.html", 1200, SCRIPTS),
    "filtered": ("report.html#task=NI195&run=sapo&change=gained", 1200, SCRIPTS),
    "no such task": ("report.html#task=<img src=x onerror=top.ran=1>", 1200, SCRIPTS),
    "phone": ("report.html", 375, SCRIPTS),
    "no scripts": ("report.html", 375, "allow-same-origin"),
    "paper": ("on_paper.html", 718, SCRIPTS),
}
LOOK = r"""
const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
function luminance(colour) {
  const [r, g, b] = colour.map((part) => part / 255).map(
    (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  // The colour behind a text: its element's background on that of the elements that it lies in.
  const own = channels(getComputedStyle(element).backgroundColor), alpha = own[3] ?? 1;
  if (alpha === 1 || !element.parentElement) return own;
  const under = behind(element.parentElement);
  return [0, 1, 2].map((part) => alpha * own[part] + (1 - alpha) * under[part]);
}
function contrast(element) {
  // The Web Content Accessibility Guidelines' ratio of a text and what is behind it, 1 to 21.
  const both = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}
addEventListener("load", function () {
  const found = {ran: typeof window.ran};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const rows = [...page.querySelectorAll("tr[data-change]")];
    const here = found[frame.title] = {
      title: page.title, images: page.images.length, scripts: page.scripts.length, closed: root.scrollWidth,
      rows: rows.filter((row) => row.checkVisibility({contentVisibilityAuto: true})).map((row) => {
        const block = row.closest(".block").dataset;
        return [block.task, block.run, row.dataset.change];
      }),
      form: page.getElementById("filter").checkVisibility(),
      count: page.querySelector("output").textContent,
      texts: page.body.textContent.split("{{7*7}}").length - 1, opened: rows.length
    };
    page.querySelectorAll("details").forEach((details) => { details.open = true; });
    here.open = root.scrollWidth;
    const texts = [...page.body.querySelectorAll("*")].filter((element) => element.checkVisibility()
      && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
    here.contrast = Math.min(...texts.map(contrast));
    here.background = getComputedStyle(page.body).backgroundColor;
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
"""


def look(page: Path, workplace: Path, *flags: str) -> dict[str, Any]:
    """What a browser makes of each of the VIEWS, all in one start."""
    # A copy of the page shows on the screen what is printed.
    text = page.read_text(encoding="utf-8").replace("@media print {", "@media all {")
    page.with_name("on_paper.html").write_text(text, encoding="utf-8")
    frames = "".join(
        f'<iframe title="{name}" sandbox="{may}" style="width:{width}px;height:900px" '
        f'src="{page.parent.as_uri()}/{html.escape(address)}"></iframe>'
        for name, (address, width, may) in VIEWS.items()
    )
    style = "<style>iframe { border: 0; display: block; }</style>"
    wrapper = workplace / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html>{style}{frames}<pre id=found></pre><script>{LOOK}</script>")
    # The outer page may look into frames that were read from files.
    dom = chromium(workplace, *flags, "--allow-file-access-from-files", "--dump-dom", wrapper.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found
    assert found[1], dom[-2000:]
    return json.loads(html.unescape(found[1]))


def test_the_page_in_a_browser(page, workplace):
    views = look(page, workplace)
    assert views.pop("ran") == "undefined", "a text of the runs was run"
    for name, view in views.items():
        assert view["title"] == "sapo report"
        assert (view["images"], view["scripts"]) == (1, 1), "a text of the runs became an element"
        assert view["texts"] > 400
        assert view["opened"] == ROWS
        width = VIEWS[name][1]
        assert (view["closed"], view["open"]) == (width, width), f"{name}: wider than its window"
    for name in ("plain", "no such task", "phone"):
        assert (views[name]["form"], views[name]["rows"]) == (True, [])
        assert views[name]["count"] == f"{ROWS} of {ROWS} rows"
    assert views["filtered"]["rows"] == [[TASKS[0], "sapo", "gained"]]
    assert views["filtered"]["count"] == f"1 of {ROWS} rows"
    assert not views["no scripts"]["form"], "a form that does nothing is not shown"


@pytest.mark.parametrize(
    ("flags", "background"), [((), (255, 255, 255)), (("--force-dark-mode",), (0x15, 0x18, 0x1C))], ids=str
)
def test_every_text_stands_out_in_light_and_dark(page, workplace, flags, background):
    views = look(page, workplace, *flags)
    del views["ran"]
    for name, view in views.items():
        # 4.5 is what the guidelines ask of small text.
        assert view["contrast"] >= 4.5, name
        assert view["background"] == f"rgb{background}", name


def pages_printed(page: Path, workplace: Path) -> int:
    """Pages of the page's print."""
    pdf = workplace / "print.pdf"
    chromium(workplace, f"--print-to-pdf={pdf}", page.as_uri())
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes()))


def test_what_is_folded_is_printed_too(page, workplace):
    folded = workplace / "folded.html"
    text = page.read_text(encoding="utf-8")
    rule = "details::details-content { content-visibility: visible; }"
    assert rule in text
    folded.write_text(text.replace(rule, ""), encoding="utf-8")
    assert pages_printed(page, workplace) > 2 * pages_printed(folded, workplace)
