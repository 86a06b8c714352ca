"""`sapo analyze … --report` in a real browser: its script runs, what runs have said does not."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

# Each would set a mark on the page that runs it.
HOSTILE = "</script><img src=x onerror=\"top.ran=1;document.title='ran'\"><script>top.ran=1</script>{{7*7}}"
TASKS = ["task195_sentiment", f"task363_{HOSTILE}"]
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk" * 4
N = 60


def write_run(folder: Path, policy: str) -> None:
    """A finished run of two tasks, in whose end state example 0 of the first is lost and 1 is gained."""
    folder.mkdir(parents=True)
    candidates = [
        {"index": index, "text": f"{HOSTILE} {LONG_WORD}", "loss": 1.5 - index / 10, "n_examples": 8}
        for index in (-1, 0, 1)
    ]
    record = {
        "id": folder.name,
        "sequence": "made_up",
        "tasks": TASKS,
        "unseen": [],
        "model": "none",
        "method": "lorainc",
        "policy": policy,
        "seed": 0,
        "parity": "paper",
        "demonstration": True,
        "prompts": dict.fromkeys(TASKS, HOSTILE),
        "choices": [{"task": task, "index": 1, "text": HOSTILE, "candidates": candidates} for task in TASKS],
        "comparable": {"model": "m", "data": {}, "evaluator": {}},
        "notes": [HOSTILE],
    }
    rows = [
        {
            "after": after,
            "task": task,
            "prompt_index": -1,
            "example": example,
            "prediction": f"{HOSTILE} {LONG_WORD} {after if example < 2 else ''}",
            "target": LONG_WORD,
            "rougeL": 50.0 + {0: -20, 1: 20}.get(example, 0) * after,
            "exact_match": 0.0,
            "nll": 1.0,
            "target_tokens": 3,
        }
        for after in range(3)
        for task in TASKS
        for example in range(N)
    ]
    pd.DataFrame(rows).to_parquet(folder / "predictions.parquet")
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page and the browser's own files lie in."""
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def page(workplace: Path) -> Path:
    """The page of two runs whose every text is hostile."""
    for policy in ("static", "sapo"):
        write_run(workplace / "store" / "runs" / policy, policy)
    program = Path(sys.executable).with_name("sapo")
    environment = os.environ | {"SAPO_STORE": str(workplace / "store")}
    command = [program, "analyze", "static", "sapo", "--report", "--output", workplace / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workplace / "out" / "report.html"


def chromium(workplace: Path, *arguments: object) -> str:
    """What a headless Chromium prints."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags.append(f"--user-data-dir={workplace / 'browser'}")
    command = [str(CHROMIUM), *flags, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


# Views of the page: address after #, width, and what the frame may do.
VIEWS = {
    "plain": ("", 1200, "allow-scripts allow-same-origin"),
    "filtered": ("#task=NI195&run=sapo&change=gained", 1200, "allow-scripts allow-same-origin"),
    "no such task": ("#task=<img src=x onerror=top.ran=1>", 1200, "allow-scripts allow-same-origin"),
    "phone": ("", 375, "allow-scripts allow-same-origin"),
    "no scripts": ("", 375, "allow-same-origin"),
}
LOOK = """
addEventListener("load", function () {
  var found = {};
  document.querySelectorAll("iframe").forEach(function (frame) {
    var page = frame.contentDocument, root = page.documentElement;
    var closed = root.scrollWidth;
    var seen = Array.prototype.filter.call(page.querySelectorAll("tr[data-change]"), function (row) {
      return row.checkVisibility({contentVisibilityAuto: true});
    });
    var here = {
      title: page.title, images: page.images.length, scripts: page.scripts.length, closed: closed,
      rows: seen.map(function (row) {
        var block = row.closest(".block").dataset;
        return [block.task, block.run, row.dataset.change];
      }),
      form: page.getElementById("filter").checkVisibility(),
      count: page.querySelector("output").textContent,
      texts: page.body.textContent.split("{{7*7}}").length - 1
    };
    page.querySelectorAll("details").forEach(function (details) { details.open = true; });
    here.open = root.scrollWidth;
    here.opened = page.querySelectorAll("tr[data-change]").length;
    found[frame.title] = here;
  });
  found.ran = typeof window.ran;
  document.getElementById("found").textContent = JSON.stringify(found);
});
"""


@pytest.fixture
def views(page: Path, workplace: Path) -> dict[str, Any]:
    """What a browser makes of each of the VIEWS, all in one start."""
    frames = "".join(
        f'<iframe title="{name}" sandbox="{may}" style="width:{width}px;height:900px" '
        f'src="{page.as_uri()}{html.escape(address)}"></iframe>'
        for name, (address, width, may) in VIEWS.items()
    )
    style = "<style>iframe { border: 0; display: block; }</style>"
    wrapper = workplace / "wrapper.html"
    wrapper.write_text(f"<!DOCTYPE html>{style}{frames}<pre id=found></pre><script>{LOOK}</script>")
    # The outer page may look into frames that were read from files.
    dom = chromium(workplace, "--allow-file-access-from-files", "--dump-dom", wrapper.as_uri())
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found
    assert found[1], dom[-2000:]
    return json.loads(html.unescape(found[1]))


def test_the_page_in_a_browser(views: dict[str, Any]) -> None:
    assert views.pop("ran") == "undefined", "a text of the runs was run"
    for name, view in views.items():
        assert view["title"] == "sapo report"
        assert (view["images"], view["scripts"]) == (0, 1), "a text of the runs became an element"
        assert view["texts"] > 400
        assert view["opened"] == 4 * 50, "50 rows of each task and run"
        width = VIEWS[name][1]
        assert (view["closed"], view["open"]) == (width, width), f"{name}: wider than its window"
    for name in ("plain", "no such task", "phone"):
        assert (views[name]["form"], views[name]["rows"]) == (True, [])
        assert views[name]["count"] == "200 of 200 rows"
    assert views["filtered"]["rows"] == [[TASKS[0], "sapo", "gained"]]
    assert views["filtered"]["count"] == "1 of 200 rows"
    assert not views["no scripts"]["form"], "a form that does nothing is not shown"


def pages_printed(page: Path, workplace: Path) -> int:
    """Pages of the page's print."""
    pdf = workplace / "print.pdf"
    chromium(workplace, f"--print-to-pdf={pdf}", page.as_uri())
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf.read_bytes()))


def test_what_is_folded_is_printed_too(page: Path, workplace: Path) -> None:
    folded = workplace / "folded.html"
    text = page.read_text(encoding="utf-8")
    rule = "details::details-content { content-visibility: visible; }"
    assert rule in text
    folded.write_text(text.replace(rule, ""), encoding="utf-8")
    assert pages_printed(page, workplace) > 2 * pages_printed(folded, workplace)
