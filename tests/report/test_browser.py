"""The pages in a browser: nothing scrolls sideways or is fetched, and every control does what it says."""

from __future__ import annotations

import csv
import io
import math
import re
from contextlib import contextmanager

import pytest
from chrome import chrome, executable
from synthetic_runs import ATTACK, CONFIG, LINEAGE, PATH_SUMMARY, SAMPLES, full_run, ppo_history, write_run

from rlaif.figures.svg import arm_key
from rlaif.report.ledger.entries import Entry
from rlaif.report.ledger.page import ledger_page
from rlaif.report.page import render_report
from rlaif.tracking.runs import find_runs

# Sorted by text, 9.1% would stand above 67.1%; a pipe, a quote and a formula ask for escapes.
ARMS = {
    "cot": 0.67,
    "a|b": 0.09,
    "=x": 0.45,
    'say "x", y': 0.41,
    "base": None,
    "detailed": 0.64,
    "last": 0.33,
}
READING = {
    "rule": "Most changed",
    "why": "many words",
    "id": "1",
    "prompt": ATTACK,
    "reference": "",
    "origin": "",
    "rationale": "",
    "heads": ["Policy", "Baseline"],
    "responses": [ATTACK, "b"],
    "verdicts": {"judge": 0.2},
    "margin": 1.0,
}


def sweep_runs(root):
    for index, (name, win) in enumerate(ARMS.items()):
        for seed in range(2):
            rate = {} if win is None else {"eval/win_rate": win + 0.002 * seed, "eval/kl": 4.0 + index}
            if win is not None:
                rate |= {"eval/win_rate_ci_low": win - 0.05, "eval/win_rate_ci_high": win + 0.05}
            kept = {key: value for key, value in PATH_SUMMARY.items() if not key.startswith("eval/win_rate")}
            write_run(
                root,
                f"run-{index}-{seed}",
                stage="eval",
                summary=kept | rate,
                overrides=[f"labeler={name}", f"seed={seed}"],
                config=CONFIG | {"labeler": {"name": name}},
                history=ppo_history(0.1 + 0.05 * seed, 0.8 + 0.02 * index),
                lineage=LINEAGE,
                tables={
                    "samples": SAMPLES,
                    "reading_policy": [
                        READING | {"marks": [["copies"], []]},
                        READING | {"marks": [["truncated"], ["copies"]]},
                    ],
                },
            )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The files of a sweep's page, a single path's, and a ledger."""
    root = tmp_path_factory.mktemp("pages")
    sweep_runs(root / "sweep")
    full_run(root / "path")
    files = {
        name: render_report(find_runs(root / name), root / f"{name}.html", title=f"{ATTACK} {'long' * 40}")
        for name in ("sweep", "path")
    }
    words = dict.fromkeys(
        ("title", "hypothesis", "paper", "measured", "sentence", "size", "models"), "x" * 90
    )
    rest = dict.fromkeys(("interval", "smallest", "reach", "data", "p", "p_holm", "date", "digest"), "1")
    effects = ("+9.0 points", "+10.0 points", "\u22123.0 points")
    entries = [
        Entry(id=f"C{n}", effect=text, verdict="undecided", firm=False, command="run", **words, **rest)
        for n, text in enumerate(effects, start=1)
    ]
    files["ledger"] = root / "ledger.html"
    files["ledger"].write_text(ledger_page(entries))
    return files


@pytest.fixture(scope="module")
def browser():
    with chrome() as found:
        yield found


@contextmanager
def opened(browser, file, width=1440, **options):
    """The page at `file`; at the end, no message of the console, no error and no request but the file's own."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, permissions=["clipboard-read", "clipboard-write"], **options
    )
    context.set_default_timeout(8000)
    page, told, asked = context.new_page(), [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    try:
        yield page
        assert told == [] and asked == [file.as_uri()]
    finally:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", ["sweep", "path", "ledger"])
def test_no_page_scrolls_sideways(browser, pages, name, width, scheme):
    with opened(browser, pages[name], width, color_scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.querySelectorAll('.tools').length") > 0


def column(table, place):
    return [cell.split("\n")[0] for cell in table.locator(f"tbody td:nth-child({place})").all_inner_texts()]


def arms_table(page):
    return page.locator("section:has(h2:text('Arms and head-to-heads')) table").first


def test_numbers_sort_as_numbers_and_what_is_missing_stands_last(browser, pages):
    with opened(browser, pages["sweep"]) as page:
        table = arms_table(page)
        head = table.locator("th", has_text="win rate").first
        place = 1 + head.evaluate("(node) => node.cellIndex")
        before = column(table, place)
        head.click()
        up = column(table, place)
        assert up == ["9.1%", "33.1%", "41.1%", "45.1%", "64.1%", "67.1%", "\u2013"]
        assert head.get_attribute("aria-sort") == "ascending"
        head.focus()
        page.keyboard.press("Enter")
        assert column(table, place) == [*reversed(up[:-1]), "\u2013"]
        table.locator("th").first.click()
        names = column(table, 1)
        assert names == sorted(names, key=str.lower) and len(names) == len(ARMS)
        page.get_by_role("button", name="Original order").first.click()
        assert column(table, place) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("63.4%", 63.4),
        ("\u22120.500", -0.5),
        ("1,234,567", 1234567),
        ("4e-05", 4e-5),
        ("< 0.001", 0.000999),
        ("0.100 \u2192 0.940", 0.1),
        ("+6.2 points", 6.2),
        ("3 min 20 s", 200),
        ("2 h 5 min", 7500),
        ("3.2 s", 3.2),
        ("28.0 MB", 28e6),
        ("23 : 4", 23),
        ("\u2013", None),
        ("detailed", None),
        ("", None),
    ],
)
def test_a_cell_is_worth_the_number_it_begins_with(browser, pages, text, value):
    """By a table of the value and of a 0 in both directions: what is missing is last in both."""
    other = 0 if value is None else value * 0.9999
    rows = f"<tr><td class=n>{text.replace('<', '&lt;')}</td></tr><tr><td class=n>{other}</td></tr>"
    html = f"<main><header></header><table><thead><tr><th class=n>x</th></tr></thead><tbody>{rows}"
    script = re.search(r"<script>(.*)</script>", pages["path"].read_text(), re.S)[1]
    page = browser.new_page()
    page.set_content(html)
    page.add_script_tag(content=script)
    places = []
    for _ in range(2):
        page.locator("th").click()
        texts = page.locator("td").all_inner_texts()
        places.append(texts.index(text))
    page.close()
    assert places == ([1, 1] if value is None else [1, 0] if value > 0 else [0, 1])


def test_a_filter_leaves_the_rows_that_have_all_its_words(browser, pages):
    with opened(browser, pages["path"]) as page:
        section = page.locator("section:has(h2:text-is('Results'))")
        rows = section.locator("tbody tr")
        total = rows.count()
        section.get_by_placeholder("Filter rows").fill("EVALUATION rate")
        left = section.locator("tbody tr:visible").all_inner_texts()
        assert 0 < len(left) < total and all("Evaluation" in row and "rate" in row for row in left)
        assert section.get_by_role("status").inner_text() == f"{len(left)} of {total}"
        section.get_by_placeholder("Filter rows").fill("")
        assert section.locator("tbody tr:visible").count() == total


def copied(page, name):
    page.get_by_role("button", name=name).first.click()
    page.get_by_text("Copied", exact=True).wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    page.get_by_text("Copied", exact=True).wait_for(state="detached")
    return text


def test_a_table_is_copied_as_it_is_shown(browser, pages):
    with opened(browser, pages["sweep"]) as page:
        head = arms_table(page).locator("th", has_text="win rate").first
        head.click()
        page.get_by_role("button", name="labeler=last", exact=True).click()
        lines = copied(page, "Copy as Markdown").splitlines()
        assert lines[0].startswith("| Arm |") and set(lines[1]) <= set("| -:") and "---:" in lines[1]
        cells = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
        assert len(set(map(len, cells))) == 1, "an escaped pipe makes no column"
        rows = {row[0]: row for row in cells[2:]}
        assert [row[0] for row in cells[2:]][:2] == ["labeler=a\\|b", 'labeler=say "x", y']
        assert "labeler=last" not in rows and len(rows) == len(ARMS) - 1
        rate = cells[0].index("win rate")
        assert re.fullmatch(r"67\.1% \(\d+\.\d\u2013\d+\.\d%\)", rows["labeler=cot"][rate])
        table = list(csv.DictReader(io.StringIO(copied(page, "CSV"), newline="")))
        assert [row["Arm"] for row in table][:2] == ["labeler=a|b", 'labeler=say "x", y']
        best = next(row for row in table if row["Arm"] == "labeler=cot")
        assert best["win rate"] == "67.1%" and re.fullmatch(r"\S+%", best["win rate (range)"])


def test_copied_text_runs_nothing(browser, pages):
    """A cell that a spreadsheet would take for a formula is text, and a negative number stays one."""
    cells = "".join(f"<td>{text}</td>" for text in ("=1+1", "+lr=1", "-2.5", "@x", "a\\b &lt;i&gt; *c*"))
    html = f"<main><header></header><table><thead><tr>{'<th>h</th>' * 5}</tr></thead><tbody><tr>{cells}</tr>"
    with opened(browser, pages["path"]) as page:
        page.evaluate("(html) => (document.body.innerHTML = html)", html)
        script = re.search(r"<script>(.*)</script>", pages["path"].read_text(), re.S)[1]
        page.evaluate(f"() => {{ {script} }}")
        assert copied(page, "CSV").splitlines()[1] == "'=1+1,'+lr=1,-2.5,'@x,a\\b <i> *c*"
        assert copied(page, "Copy as Markdown").splitlines()[2] == (
            r"| =1+1 | +lr=1 | -2.5 | @x | a\\b \<i\> \*c\* |"
        )


def marked(page, name):
    return page.locator(f'[data-arm~="{arm_key(name)}"]')


def test_an_arm_is_switched_off_everywhere_at_once(browser, pages):
    with opened(browser, pages["sweep"]) as page:
        page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
        figures = page.locator("figure svg").filter(
            has=page.locator(f'[data-arm="{arm_key("labeler=cot")}"]')
        )
        assert figures.count() >= 3, "estimates, proxy against judge, learning curves"
        other, own = marked(page, "labeler=detailed"), marked(page, "labeler=cot")
        count = own.count()
        assert count > 10 and page.locator("figure svg text:text-is('labeler=cot'):visible").count() >= 3
        chip = page.get_by_role("button", name="labeler=cot", exact=True)
        assert chip.get_attribute("aria-pressed") == "true"
        chip.focus()
        page.keyboard.press("Space")
        assert chip.get_attribute("aria-pressed") == "false"
        assert (
            own.evaluate_all(
                "(nodes) => nodes.filter((one) => getComputedStyle(one).display !== 'none').length"
            )
            == 0
        )
        assert page.locator("figure svg text:text-is('labeler=cot'):visible").count() == 0
        assert arms_table(page).locator("tbody tr:visible").count() == len(ARMS) - 1
        assert other.first.is_visible() and "6 of 7" in page.locator(".arms summary").inner_text()
        page.get_by_role("button", name="None", exact=True).click()
        assert not any(marked(page, f"labeler={name}").locator("visible=true").count() for name in ARMS)
        page.get_by_role("button", name="All", exact=True).click()
        assert page.locator("[data-arm].off").count() == 0


def test_values_show_under_the_pointer(browser, pages):
    with opened(browser, pages["sweep"]) as page:
        tip = page.locator(".tip")
        assert page.locator("figure svg title").count() == 0, (
            "the browser's own hints would lie over the page's"
        )
        dot = page.locator("figure svg [data-tip^='labeler=cot: win rate 67.1% (']").last
        dot.hover()
        assert tip.inner_text().startswith("labeler=cot: win rate 67.1% (")
        figure = page.locator("section:has(h2:text('Learning curves')) figure svg").first
        line = figure.locator("[data-line='labeler=last'] path").first
        line.scroll_into_view_if_needed()
        x, y = line.evaluate(
            "(path) => { const at = path.getPointAtLength(path.getTotalLength()); const m = path.getScreenCTM();"
            " const to = new DOMPoint(at.x, at.y).matrixTransform(m); return [to.x, to.y]; }"
        )
        page.mouse.move(x, y - 3)
        name, value, step = re.fullmatch(r"(.+): ([\d.]+) at ([\d.]+)", tip.inner_text()).groups()
        # The two seeds' rewards at the last step, by the rule of `ppo_history`.
        expected = 0.8 + 0.02 * (len(ARMS) - 1) + 0.01 * math.sin(3.0 * 39)
        assert (name, float(step)) == ("labeler=last", 39.0) and abs(float(value) - expected) < 0.006
        page.mouse.move(2, 2)
        assert tip.is_hidden()


def test_samples_are_chosen_by_outcome_and_by_marker(browser, pages):
    with opened(browser, pages["path"]) as page:
        section = page.locator("section:has(h2:text-is('Samples'))")
        section.get_by_role("button", name="loss (4)").click()
        badges = section.locator(".sample:visible > header .badge").all_inner_texts()
        assert badges == ["loss"] * 4, "those in the folded part too"
        section.get_by_role("button", name="all (14)").click()
        assert section.locator(".sample:not(.out)").count() == 14
    with opened(browser, pages["sweep"]) as page:
        section = page.locator("section:has(h2:text('Reading the samples'))")
        assert section.get_by_role("button").all_inner_texts() == ["all (2)", "copies (2)", "truncated (1)"]
        section.get_by_role("button", name="truncated").click()
        assert section.locator(".sample:visible").count() == 1


def test_dark_mode_changes_page_and_figures(browser, pages):
    colours = (
        "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector("
        "'figure svg text')).fill, getComputedStyle(document.querySelector('th')).color]"
    )
    with opened(browser, pages["sweep"], color_scheme="light") as page:
        light = page.evaluate(colours)
        page.get_by_role("button", name="Dark mode").click()
        dark = page.evaluate(colours)
        assert all(one != other for one, other in zip(light, dark, strict=True))
        page.emulate_media(media="print")
        assert page.evaluate(colours) == light, "paper is white"
        assert page.locator(".tools:visible, .chips:visible, .theme:visible, .arms:visible").count() == 0
    with opened(browser, pages["sweep"], color_scheme="dark") as page:
        assert page.evaluate(colours) == dark
        page.get_by_role("button", name="Light mode").click()
        assert page.evaluate(colours) == light


def test_without_scripts_all_is_shown_and_no_control(browser, pages):
    with opened(browser, pages["sweep"], java_script_enabled=False) as page:
        assert page.locator("button, input, .tools, .chips, [hidden]").count() == 0
        assert page.locator("[data-arm]").count() > 50
        shown = page.locator("h2:visible").all_inner_texts()
    with opened(browser, pages["sweep"]) as page:
        assert page.locator("h2:visible").all_inner_texts() == shown and len(shown) > 6


def test_no_script_but_the_page_s_own_can_run(browser, pages):
    file = pages["path"].with_name("attacked.html")
    attack = "<img src=x onerror='document.title = 1'><script>document.title = 2</script>"
    file.write_text(pages["path"].read_text().replace("<main", f"{attack}<main", 1))
    page = browser.new_page()
    page.goto(file.as_uri())
    title = page.title()
    page.close()
    assert title.startswith(ATTACK[:8]), "even if a text were not escaped"


def test_the_ledger_sorts_too(browser, pages):
    with opened(browser, pages["ledger"]) as page:
        page.locator("th", has_text="Here").click()
        assert column(page.locator("table"), 1) == ["C3", "C1", "C2"]


def test_a_missing_browser_is_told_in_a_sentence(monkeypatch):
    monkeypatch.delenv("RLAIF_CHROME", raising=False)
    monkeypatch.setattr("chrome.shutil.which", lambda name: None)
    monkeypatch.setattr("chrome.MACOS", ())
    with pytest.raises(pytest.fail.Exception, match="install one .*RLAIF_CHROME"):
        executable()
    monkeypatch.setenv("RLAIF_CHROME", "/some/chrome")
    assert executable() == "/some/chrome"
