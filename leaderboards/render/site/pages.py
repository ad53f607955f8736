"""The pages: plain HTML with charts as data, names escaped by the engine; no network, no server."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.render.figures.curve_views import mean_curves, method_views, run_views
from leaderboards.render.figures.plotly_charts import build_chart
from leaderboards.render.figures.rank_diagram import layout_diagram
from leaderboards.render.figures.task_views import accuracy_view, task_views, win_matrix
from leaderboards.render.numbers import FORMATS, format_percent
from leaderboards.render.protocol_text import describe_protocol, describe_run, is_recorded
from leaderboards.render.site.analysis_pages import (
    ANALYSIS_FUNCTIONS,
    method_measures,
    render_analysis,
    run_analysis,
)
from leaderboards.render.site.boards import FUNCTIONS, board_stems, run_ids_of
from leaderboards.render.site.class_pages import CLASS_FUNCTIONS, render_class_pages
from leaderboards.render.site.site_map import Site, SiteRow, Task
from leaderboards.schema import fields, metrics
from leaderboards.schema.metrics import ATTACK_LABELS, CHECKPOINT_LABELS, describe_metric
from leaderboards.schema.record import Record
from leaderboards.schema.spec import flatten_names
from leaderboards.tables.published import HEADING

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
JSON_OPTIONS = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
HYPER = "param/hyper."
MAX_CURVES = 24  # of a chart: more lines cannot be told apart


def render_pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield (path, HTML) of every page, one at a time: there may be thousands."""
    # Engine and templates refer to each other, and what they hold would be searched for garbage.
    engine = _engine(weakref.proxy(site))
    front = engine.get_template("index.html.j2")
    yield "index.html", front.render(root="", **_front_values(site))
    for name in ("rows", "models", "submit"):
        yield f"{name}.html", engine.get_template(f"{name}.html.j2").render(root="")
    template = engine.get_template("task.html.j2")
    for task in site.tasks:
        yield task.path, template.render(root="../", **_task_values(site, task))
    yield from render_analysis(site, engine)
    yield from render_class_pages(site, engine)
    template = engine.get_template("method.html.j2")
    for name, path in site.method_paths.items():
        yield path, template.render(root="../", **_method_values(site, name))
    template = engine.get_template("run.html.j2")
    for site_row in site.rows:
        for run_id in site_row.row.run_ids:
            values = _run_values(site, site_row, site.runs[run_id])
            yield site.run_paths[run_id], template.render(root="../", **values)


def _engine(site: Site) -> jinja2.Environment:
    import jinja2

    options: Any = {"trim_blocks": True, "lstrip_blocks": True, "auto_reload": False}
    loader, undefined = jinja2.FileSystemLoader(TEMPLATES), jinja2.StrictUndefined
    engine = jinja2.Environment(loader=loader, undefined=undefined, autoescape=True, **options)
    engine.policies["json.dumps_kwargs"] = JSON_OPTIONS
    engine.globals |= {
        "site": site, "published": HEADING, "rank": metrics.RANK_METRIC, "metrics": metrics,
        "fields": fields, "describe_protocol": describe_protocol, **FORMATS,
        "stems": board_stems(site), **FUNCTIONS, "summarise_method": summarise_method,
        "layout_diagram": layout_diagram, **ANALYSIS_FUNCTIONS, **CLASS_FUNCTIONS,
    }  # fmt: skip
    parts: Any = engine.get_template("parts.html.j2").module
    # Many runs, one after the other, have the same protocol, settings and environment.
    engine.globals["cached_pairs"] = lru_cache(maxsize=64)(parts.pairs)
    return engine


def summarise_method(rows: Sequence[SiteRow]) -> dict[str, float]:
    """Summarise the rows of a method over its tasks of current suite versions."""
    tasks, first_ranks, shares = set(), set(), []
    for site_row in rows:
        if site_row.task and not site_row.section.outdated:
            tasks.add(site_row.task.path)
            shares.append(site_row.kept)
            if any(leader is site_row.row for leader in site_row.task.table.leaders):
                first_ranks.add(site_row.task.path)
    kept = max((share for share in shares if not math.isnan(share)), default=math.nan)
    runs = sum(site_row.row.seeds for site_row in rows)
    return {"tasks": len(tasks), "first_ranks": len(first_ranks), "kept": kept, "runs": runs}


def _task_values(site: Site, task: Task) -> dict[str, Any]:
    protocol = describe_protocol(site.runs_of(run_ids_of(task.table.rows)), task.section.stated)
    charts = [*map(build_chart, task_views(task.table, site.runs, site.family))]
    return {"task": task, "protocol": protocol, "charts": charts, "wins": win_matrix(task.table)}


def _front_values(site: Site) -> dict[str, Any]:
    """Return the main task with its first chart: most ranked rows, then most images."""
    current = [task for task in site.tasks if task.best and not task.section.outdated]
    task = max(current, key=lambda task: (len(task.table.ranked), task.images), default=None)
    view = task and accuracy_view(task.table, site.family)
    return {"main": task, "charts": [build_chart(view)] if view else []}


def _method_values(site: Site, method: str) -> dict[str, Any]:
    rows = site.methods[method]
    lines = []
    recorded: dict[str, set[str]] = defaultdict(set)
    names = [name for name in site.collected.columns if name.startswith(HYPER)]
    for site_row in rows:
        row = site_row.row
        runs = site.runs_of(row.run_ids)
        if curves := mean_curves([run["record"].curves for run in runs]):
            where = site_row.section.experiment, row.dataset, row.student
            lines.append((", ".join(filter(None, (*where, row.variant, row.changed))), curves))
        for run, name in product(runs, names):
            if is_recorded(run[name]):
                recorded[name.removeprefix(HYPER)].add(str(run[name]))
    values: dict[str, Any] = {
        "name": method,
        "about": site.about(method),
        "rows": rows,
        "recorded": recorded,
    }
    charts = [*map(build_chart, method_views(lines[:MAX_CURVES]))]
    values |= {"charts": charts, "more": max(0, len(lines) - MAX_CURVES)}
    return {**values, "measures": method_measures(site, rows)}


def _run_values(site: Site, site_row: SiteRow, run: Mapping[str, Any]) -> dict[str, Any]:
    record = run["record"]
    settings = [(name, run[f"param/{name}"]) for name in site.varying[site_row.section.experiment]]
    return {
        "site_row": site_row, "row": site_row.row, "run": run, "by_class": _class_lines(record),
        "protocol": tuple(describe_run(run)), "accuracies": _accuracies(site, run),
        "charts": [*map(build_chart, run_views(record.curves))],
        "analysis": run_analysis(record), "cost": cost_lines(record.metrics),
        "settings": tuple(pair for pair in settings if is_recorded(pair[1])),
        "environment": tuple(
            (fields.escape_unprintable(name), fields.escape_unprintable(str(value)))
            for name, value in flatten_names(record.environment, " ")
        ),
    }  # fmt: skip


def _class_lines(record: Record) -> tuple[list[int], list[tuple[str, list[str]]]]:
    """Return the classes, and lines of a label and the accuracy on each, "-" without images."""
    by_class = record.accuracies_by_class
    classes = sorted(set(chain.from_iterable(by_class.values())))
    lines = []
    for name, shares in by_class.items():
        texts = [format_percent(shares.get(label, math.nan)) for label in classes]
        lines.append((describe_metric(name).label, texts))
    return classes, lines


def _accuracies(site: Site, run: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the label of each attack with the accuracy of each checkpoint."""
    accuracies = []
    for attack in site.attacks:
        names = [f"{kind}/{attack}" for kind in CHECKPOINT_LABELS]
        texts = [format_percent(run.get(name, math.nan)) for name in names]
        if set(texts) != {"-"}:
            accuracies.append((metrics.attack_label(attack), texts))
    return accuracies


def cost_lines(measured: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return (label, text) pairs: the costs of the whole run, then the seconds of each attack."""
    attacks = map(metrics.attack_seconds, ATTACK_LABELS)
    lines = []
    for name in dict.fromkeys((*metrics.METRICS, *attacks, *measured)):
        if name.startswith(metrics.COST) and name in measured:
            metric = describe_metric(name)
            # In tables the heading has the unit, and the cells have none.
            label = metric.label.removesuffix(f" {metric.unit}")
            lines.append((label, metric.format(measured[name])))
    return lines
