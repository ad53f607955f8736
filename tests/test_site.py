"""The site in a browser: sorting, searching, links, charts, dark mode, a phone, no script."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import analysed
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright
from record_store import Records
from test_leaderboards import NASTY, fill, scores

import leaderboards
from bench.protocol import suites
from bench.reference.about import describe_method
from leaderboards.read.records import read_record

CHROMIUM = (
    shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
)
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium"), pytest.mark.e2e]
TASK = "tasks/digits@1-digits-resnet8-w4.html"
METHODS = "tbody th a"
ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "leaderboards" / "results"
# The task of the README's table and picture, in pixels.
PICTURED, WIDTH, HEIGHT = "tasks/digits@3-digits-resnet8-w8.html", 1180, 1130
ROWS = ["rslad", "gacd", "gacd", "kd"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    tracked = Records(folder / "records")
    fill(tracked)
    slopes = {"val/clean": 0.1, "val/robust": 0.05, "train/kl_adv": 0.2, "lr": 0.01}
    curves = {
        name: [(epoch, slope * epoch) for epoch in range(6)] for name, slope in slopes.items()
    }
    numbers = scores(0.96, 0.76, 60)
    tracked.run("gacd", 0.72, variant="tau=0.1", seed=3, metrics=numbers, curves=curves)
    for student in ("net1", "net2", "net3"):
        for method, aa in (("rslad", 0.5), ("kd", 0.1), ("gacd", 0.45)):
            tracked.run(method, aa, "pair@1", student=student, metrics=scores(0.9, aa, 9))
    leaderboards.write(tracked.folder, folder / "site", about=describe_method)
    return folder / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        yield started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may complain of nothing and fetch nothing but files."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, complaints = context.new_page(), list[str]()

    def collect_complaint(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    page.on("console", collect_complaint)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url) if request.url[:5] not in ("file:", "data:") else 0
        ),
    )
    yield page
    context.close()
    assert complaints == []


def visible(page: Page) -> list[str]:
    return page.locator("table.data").first.locator(METHODS).all_inner_texts()


def chart(page: Page) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = page.evaluate("document.querySelector('.plot').data")
    return traces


def paths(site: Path) -> list[str]:
    """One page of every kind, and those with names that want to be more than text."""
    nasty = [path for path in sorted(site.glob("*/*.html")) if "script" in path.name]
    kinds = [next(site.glob(f"{kind}/*.html")) for kind in ("methods", "runs")]
    return ["index.html", TASK, *(str(path.relative_to(site)) for path in (*kinds, *nasty))]


def test_links_lead_from_front_to_task_to_run_to_method(site: Path, page: Page) -> None:
    page.goto((site / "index.html").as_uri())
    page.get_by_role("link", name="digits, resnet8-w4").first.click()
    assert page.title() == "digits, resnet8-w4 · digits@1"
    page.get_by_role("row", name="gacd").first.get_by_role("link", name="run of seed").last.click()
    assert page.get_by_role("heading", level=1).inner_text() == "gacd tau=0.1"
    assert "python -m bench run --suite digits" in page.get_by_role("main").inner_text()
    page.get_by_label("Breadcrumb").get_by_role("link", name="gacd").click()
    assert page.get_by_role("heading", name="Formula").is_visible()
    page.get_by_label("Breadcrumb").get_by_role("link", name="Leaderboard").click()
    assert page.url.endswith("/index.html")


def test_a_click_and_a_key_sort(site: Path, page: Page) -> None:
    """The table is sorted a moment after the click or the key; the heading says so then."""
    page.goto((site / TASK).as_uri())
    assert visible(page) == ROWS

    def head(name: str) -> Locator:
        return page.locator("thead th", has_text=name).first

    page.get_by_text("Columns: what they mean").click()
    for column in ("PGD-20", "AutoAttack, last"):
        page.get_by_role("checkbox", name=column).check()
    head("Rank").click()
    expect(head("Rank")).to_have_attribute("aria-sort", "ascending")
    head("PGD-20").click()
    expect(head("PGD-20")).to_have_attribute("aria-sort", "descending")
    expect(head("Rank")).not_to_have_attribute("aria-sort", "ascending")
    assert visible(page) == ["gacd", "rslad", "gacd", "kd"]
    page.get_by_role("button", name="Method: Activate to sort").focus()
    page.keyboard.press("Enter")
    expect(head("Method")).to_have_attribute("aria-sort", "ascending")
    assert visible(page) == ["gacd", "gacd", "kd", "rslad"]
    for order in ("descending", "ascending"):  # what was not measured comes last in both
        head("AutoAttack, last").click()
        expect(head("AutoAttack, last")).to_have_attribute("aria-sort", order)
        assert sorted(visible(page)[2:]) == ["gacd", "kd"]


def test_search_and_marks_filter(site: Path, page: Page) -> None:
    page.goto((site / TASK).as_uri())
    search = page.get_by_role("searchbox", name="Search rows")
    search.fill("gacd")
    assert visible(page) == ["gacd", "gacd"]
    assert page.locator("output").first.inner_text() == "2 of 4 rows"
    page.get_by_role("checkbox", name="another protocol").check()
    assert visible(page) == ["gacd"]
    search.fill("")
    assert visible(page) == ["rslad", "gacd", "kd"]
    page.get_by_role("checkbox", name="sanity flag").check()
    assert visible(page) == ["rslad", "gacd"]
    page.get_by_role("checkbox", name="another protocol").uncheck()
    assert visible(page) == ["rslad", "gacd", "gacd"]


def test_charts_show_the_numbers_of_the_table(site: Path, page: Page) -> None:
    page.goto((site / TASK).as_uri())
    front, *families = chart(page)
    assert page.locator(".plot svg").first.is_visible()
    assert (front["x"], front["y"]) == ([95, 96], [73, 72])
    shown = [
        round(float(text.split()[0]), 1) for text in page.locator("tbody td.bar").all_inner_texts()
    ]
    points = [round(value, 1) for family in families for value in family["y"]]
    assert sorted(points, reverse=True) == shown
    assert page.get_by_role("img", name="Chart: Robust and clean").is_visible()
    page.get_by_role("radio", name="Robust and clean").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("img", name="Chart: Intervals and seeds").is_visible()
    assert sorted(chart(page)[0]["x"]) == [71, 72, 72, 72, 73, 74]
    assert "dots are seeds" in page.locator("figcaption").inner_text()


def test_a_key_shows_the_rows_outside_the_frame(site: Path, page: Page) -> None:
    page.goto((site / "tasks/pair@1-digits-net1.html").as_uri())
    box = page.get_by_role("checkbox", name="Show the rows outside the frame")

    def lowest() -> float:
        low: float = page.evaluate("document.querySelector('.plot')._fullLayout.yaxis.range[0]")
        return low

    assert "1 row lies below the frame" in page.locator("figcaption").inner_text()
    assert lowest() > 10
    box.focus()
    page.keyboard.press("Space")
    assert lowest() < 10
    page.get_by_role("radio", name="Intervals and seeds").check()
    expect(box).to_be_hidden()


def test_curves_of_a_run_and_of_its_method(site: Path, page: Page) -> None:
    (path,) = (path for path in site.glob("runs/*.html") if '"name":"kl_adv"' in path.read_text())
    page.goto(path.as_uri())
    assert [(line["name"], line["y"][-1]) for line in chart(page)] == [
        ("clean", 50),
        ("robust", 25),
    ]
    page.get_by_role("radio", name="Loss terms").check()
    assert [(line["name"], line["y"]) for line in chart(page)] == [
        ("kl_adv", [0, 0.2, 0.4, 0.6, 0.8, 1])
    ]
    page.goto((site / "methods" / "gacd.html").as_uri())
    assert chart(page)[0]["y"] == [0, 5, 10, 15, 20, 25]


def test_names_are_text_in_tables_and_charts(site: Path, page: Page) -> None:
    (path,) = site.glob("tasks/*script*.html")
    page.goto(path.as_uri())
    page.get_by_role("radio", name="Intervals and seeds").check()
    assert (page.locator(".plot .ytick text").first.text_content() or "").startswith(
        "$x$ <script>alert"
    )
    assert NASTY in page.get_by_role("heading", level=1).inner_text()


def test_the_critical_difference_diagram_names_every_row(site: Path, page: Page) -> None:
    page.goto((site / "index.html").as_uri())
    drawn = page.get_by_role("img", name="Critical-difference diagram of pair@1")
    assert {"rslad", "kd", "gacd", "critical difference 1.9"} <= {
        *drawn.locator("text").all_text_contents()
    }


def test_dark_mode_reaches_page_and_chart(site: Path, page: Page) -> None:
    page.goto((site / TASK).as_uri())

    def colours() -> tuple[str, str]:
        ground: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink: str = page.evaluate("document.querySelector('.plot')._fullLayout.font.color")
        return ground, ink

    assert colours() == ("rgb(251, 250, 248)", "#1f2328")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.querySelector('.plot')._fullLayout.font.color !== '#1f2328'")
    assert colours() == ("rgb(19, 21, 23)", "#e4e6e8")


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_is_wider_than_the_window(site: Path, page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    for path in paths(site):
        page.goto((site / path).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_long_names_leave_room_for_the_chart_on_a_phone(site: Path, page: Page) -> None:
    def names(path: str) -> Locator:
        page.goto((site / path).as_uri())
        page.get_by_role("radio", name="Intervals and seeds").check()
        return page.locator(".plot .ytick")

    long = "gacd (tau=0.1; training.epochs=2)"
    ticks = names(TASK)
    ticks.get_by_text(long).wait_for()
    page.set_viewport_size({"width": 390, "height": 800})
    ticks.get_by_text("gacd (tau=0…pochs=2)").wait_for()
    assert not ticks.get_by_text(long).count()
    (path,) = site.glob("tasks/*script*.html")
    names(f"tasks/{path.name}").get_by_text("$x$ <script…").wait_for()


def test_pages_have_landmarks_and_captions(site: Path, page: Page) -> None:
    for path in paths(site):
        page.goto((site / path).as_uri())
        assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1
        assert page.locator("table:not(:has(> caption))").count() == 0
        assert page.locator("[role=img]:not([aria-label])").count() == 0
        assert page.locator("[role=img] :is(a, button)").count() == 0
        assert page.locator("[role=region]:not([aria-label])").count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


def test_the_picture_of_the_readme(browser: Browser, tmp_path: Path) -> None:
    """Take the picture of the README; BENCH_PICTURES=docs/images writes it there."""
    leaderboards.write(RECORDS, tmp_path / "site", about=describe_method)
    path = Path(os.environ.get("BENCH_PICTURES", tmp_path)) / "task.png"
    with browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}) as page:
        page.goto((tmp_path / "site" / PICTURED).as_uri())
        page.locator(".plot svg").first.wait_for()
        page.screenshot(path=path)
    with Image.open(path) as picture:
        assert picture.size == (WIDTH, HEIGHT)
        # Text and charts, no empty page.
        colours = picture.convert("RGB").getcolors(1 << 24) or ()
        assert len(colours) > 100
        picture.quantize(128).save(path, optimize=True)
    assert "docs/images/task.png" in (ROOT / "README.md").read_text()


def test_without_scripts_the_tables_are_there(site: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / TASK).as_uri())
    assert visible(page) == ROWS
    assert not page.locator(".tools").first.is_visible()
    assert not page.locator("figure.charts").is_visible()
    context.close()


def test_an_empty_store_says_how_to_begin(page: Page, tmp_path: Path) -> None:
    leaderboards.write(None, tmp_path / "site")
    page.goto((tmp_path / "site" / "index.html").as_uri())
    assert page.get_by_text("python -m bench run --method gacd --suite digits").is_visible()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the repository's own records."""
    folder = tmp_path_factory.mktemp("recorded")
    leaderboards.write(RECORDS, folder, about=describe_method)
    return folder


REAL_TASK = "tasks/digits@3-digits-resnet8-w4.html"


def test_the_state_of_a_table_is_in_the_address(recorded: Path, page: Page) -> None:
    page.goto((recorded / REAL_TASK).as_uri())
    rows = page.locator("#board tbody tr")
    total = rows.count()
    page.get_by_label("Family").select_option("control")
    expect(rows).not_to_have_count(total)
    assert "board.Family=control" in page.url
    count = rows.count()
    page.get_by_text("Columns: what they mean").click()
    page.get_by_role("checkbox", name="Balance").uncheck()
    expect(page.locator("#board thead th[data-key='row/balance']")).to_have_count(0)
    page.reload()
    expect(rows).to_have_count(count)
    expect(page.locator("#board thead th[data-key='row/balance']")).to_have_count(0)
    page.go_back()
    expect(page.locator("#board thead th[data-key='row/balance']")).to_have_count(1)
    page.go_back()
    expect(rows).to_have_count(total)


def recorded_rows() -> list[dict[str, str]]:
    """Return the facets of each student's row in the repository's records, one for all seeds."""
    rows = {}
    for path in RECORDS.rglob("*.json"):
        spec = read_record(path).spec
        card = describe_method(spec.method)
        if spec.role == "student":
            assert card
            # The robust teacher first.
            teachers = [
                spec.teachers[role].rpartition("-")[0] for role in sorted(spec.teachers)[::-1]
            ]
            rows[repr(dataclasses.replace(spec, seed=0))] = {
                "Data": spec.dataset,
                "Student": spec.arch,
                "Suite": spec.suite,
                "Teacher": " + ".join(teachers) or "none",
                "Family": card.family,
                "method": spec.method,
            }
    return list(rows.values())


def test_all_rows_are_narrowed_by_every_facet(recorded: Path, page: Page) -> None:
    page.goto((recorded / "rows.html").as_uri())
    rows, current = page.locator("#rows-table tbody tr"), suites.protocols()
    # Those of older versions are on the pages of their suites and methods.
    wanted = [row for row in recorded_rows() if row["Suite"] in current]
    assert rows.count() == len(wanted)
    for facet in ("Data", "Student", "Suite", "Teacher", "Family"):
        choice = page.locator(f"select[data-facet='{facet}']")
        counts = Counter(row[facet] for row in wanted)
        assert len(counts) > 1
        for value, count in counts.items():
            choice.select_option(value)
            expect(rows).to_have_count(count)
        choice.select_option("")


def test_the_rows_of_a_method_are_narrowed_by_teacher(recorded: Path, page: Page) -> None:
    page.goto((recorded / "methods" / "gacd.html").as_uri())
    counts = Counter(row["Teacher"] for row in recorded_rows() if row["method"] == "gacd")
    assert len(counts) > 1
    for teacher, count in counts.items():
        page.locator("select[data-facet='Teacher']").select_option(teacher)
        expect(page.locator("#rows-table tbody tr")).to_have_count(count)


def test_a_row_highlights_its_point_and_itself(recorded: Path, page: Page) -> None:
    page.goto((recorded / REAL_TASK).as_uri())
    row = page.locator("#board-r0")
    row.locator("a").first.focus()
    expect(row).to_have_class("marked")
    expect(page.locator(".plot .hoverlayer .hovertext")).to_have_count(1)


def test_a_phone_shows_rank_method_and_accuracies(recorded: Path, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto((recorded / REAL_TASK).as_uri())
    heads = page.locator("#board thead th:visible").all()
    assert len(heads) == 4
    for head in heads:
        box = head.bounding_box()
        assert box
        assert box["x"] + box["width"] <= 390


def test_the_heat_map_and_the_files_of_a_table(recorded: Path, page: Page) -> None:
    page.goto((recorded / REAL_TASK).as_uri())
    page.get_by_text("How likely each row beats each other").click()
    cells = page.locator(".heat tbody tr").nth(0).locator("td").all_inner_texts()
    back = page.locator(".heat tbody tr").nth(1).locator("td").first.inner_text()
    assert cells[0] == "-"
    assert 99 <= int(cells[1]) + int(back) <= 101
    for kind in ("csv", "md", "tex", "json"):
        text = (recorded / f"tables/digits@3-digits-resnet8-w4.{kind}").read_text()
        assert "rslad" in text
        assert "cifar10" not in text
    assert "sha256 of their records" in page.locator(".take pre").first.text_content()  # type: ignore[operator]


def test_the_site_is_small(recorded: Path) -> None:
    """About 20 kB a run; its analysis is as much again as test_the_analysis_of_a_run_is_small."""
    files = [path for path in recorded.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if ".min.js" not in path.name)
    records = [*map(read_record, RECORDS.glob("*.json"))]
    assert size < sum(80_000 if record.analysis else 21_000 for record in records)


def test_the_analysis_of_a_run_is_small(analysed_site: Path) -> None:
    """Six maps of a hundred numbers, lines, and two t-SNE of 360 images."""
    sizes = [path.stat().st_size for path in analysed_site.glob("runs/*.html")]
    assert max(sizes) < 70_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_violation(recorded: Path, page: Page, width: int, scheme: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    run = next(recorded.glob("runs/*.html")).relative_to(recorded)
    for path in ("index.html", "rows.html", "submit.html", REAL_TASK, "methods/rslad.html", run):
        page.goto((recorded / path).as_uri())
        results = axe.run(page, options={"preload": False})
        assert results.response["violations"] == [], path


ANALYSED = "digits@3-digits-resnet8-w4"


@pytest.fixture(scope="module")
def analysed_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of one task of the repository with an invented analysis."""
    folder = tmp_path_factory.mktemp("analysed")
    paths = [*RECORDS.glob("digits@3-*-resnet8-w4-*-seed0-*.json")]
    paths += RECORDS.glob("digits@3-*-resnet8-w16-*.json")
    leaderboards.write(analysed.write_analysed(folder / "records", paths), folder / "site")
    return folder / "site"


def analysis_pages(site: Path) -> list[str]:
    """The pages of the analysis, and those of a method and a run with a section of it."""
    run = next(path for path in site.glob("runs/*.html") if "tsne-adv" in path.read_text())
    pages = [path.relative_to(site).as_posix() for path in sorted(site.glob("analysis/*.html"))]
    return [*pages, "models.html", "methods/gacd.html", f"runs/{run.name}"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_axe_finds_no_violation_in_the_analysis(
    analysed_site: Path, page: Page, width: int, scheme: Any
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for path in analysis_pages(analysed_site):
        page.goto((analysed_site / path).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        results = axe.run(page, options={"preload": False})
        assert results.response["violations"] == [], path


def test_the_analysis_is_reached_sorted_and_left(analysed_site: Path, page: Page) -> None:
    page.goto((analysed_site / "index.html").as_uri())
    page.get_by_role("link", name="Analysis", exact=True).click()
    page.get_by_role("link", name="Structural knowledge").click()
    assert page.url.endswith(f"analysis/{ANALYSED}-structure.html")
    expect(page.get_by_role("img", name="Chart: CKA, features, adversarial")).to_be_visible()
    head = page.locator("#board thead th", has_text="CKA")
    head.click()
    expect(head).to_have_attribute("aria-sort", "descending")
    column = page.locator("#board tbody tr td:nth-child(4)")
    numbers = [text for text in column.all_inner_texts() if text[0] != "-"]
    assert numbers == sorted(numbers, reverse=True)
    page.get_by_text("Columns: what they mean").click()
    page.get_by_role("checkbox", name="CKA, stage 1, clean").check()
    expect(page.locator("#board thead th", has_text="stage 1")).to_have_count(1)
    page.get_by_role("link", name="Leaderboard of the task").click()
    assert page.url.endswith(f"tasks/{ANALYSED}.html")


def test_the_charts_of_a_run_are_chosen_each_for_itself(analysed_site: Path, page: Page) -> None:
    page.goto((analysed_site / analysis_pages(analysed_site)[-1]).as_uri())
    page.get_by_role("radio", name="Loss terms").check()
    page.get_by_role("radio", name="Loss surface").check()
    assert page.get_by_role("img", name="Chart: Loss terms").is_visible()
    assert page.get_by_role("img", name="Chart: Loss surface").is_visible()
    for view in ("clean", "adversarial"):
        assert page.get_by_role("img", name=f"Chart: t-SNE, {view}").is_visible()
