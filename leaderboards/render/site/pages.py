"""The pages: tables in plain HTML, charts as data in them; they need no network and no server."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.render.figures import curve_views, plotly_charts, task_views
from leaderboards.render.figures.rank_diagram import layout_diagram
from leaderboards.render.numbers import format_cell, format_count, format_interval, format_percent
from leaderboards.render.protocol_text import describe_protocol, is_recorded, shared_settings
from leaderboards.render.site.site_map import RunRecord, Site, SiteRow, Task
from leaderboards.schema import fields
from leaderboards.tables.published import HEAD
from leaderboards.tables.rows import CHECKPOINTS, LABELS, RANK, SECONDS

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
JSON_OPTIONS = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
COSTS = {
    "train_seconds": "Training",
    "student_passes": "Student's passes for an image, each epoch",
    "peak_bytes": "Memory at most",
    "eval_seconds": "Evaluation",
    "eval_forwards": "Images forward in it",
    "eval_backwards": "Images backward in it",
}
HYPER = "param/hyper."
MAX_CURVES = 24  # of a chart: more lines cannot be told apart


def render_pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield (path, HTML) of every page, one at a time: there may be thousands."""
    engine = _engine(site)
    summaries = [_summarize_method(site, name) for name in site.methods]
    yield "index.html", engine.get_template("index.html.j2").render(root="", summaries=summaries)
    template = engine.get_template("task.html.j2")
    for task in site.tasks:
        yield task.path, template.render(root="../", **_task_values(site, task))
    template = engine.get_template("method.html.j2")
    for name, path in site.method_paths.items():
        yield path, template.render(root="../", **_method_values(site, name))
    template = engine.get_template("run.html.j2")
    for site_row in site.rows:
        protocol = tuple(describe_protocol(site.records_of(site_row.row.run_ids)))
        for run_id in site_row.row.run_ids:
            values = _run_values(site, site_row, site.records[run_id])
            yield site.run_paths[run_id], template.render(root="../", protocol=protocol, **values)


def _engine(site: Site) -> jinja2.Environment:
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    engine.policies["json.dumps_kwargs"] = JSON_OPTIONS
    functions = (format_cell, format_count, format_interval, format_percent, describe_protocol,
                 shared_settings, layout_diagram, zip)  # fmt: skip
    engine.globals |= {function.__name__: function for function in functions}
    engine.globals |= {"site": site, "published": HEAD, "rank": RANK, "seconds": SECONDS}
    parts: Any = engine.get_template("parts.html.j2").module
    # Many runs, one after the other, have the same protocol, settings and environment.
    engine.globals["cached_pairs"] = lru_cache(maxsize=64)(parts.pairs)
    return engine


def _summarize_method(site: Site, name: str) -> dict[str, Any]:
    """Summarize a method over its tasks of current suite versions."""
    tasks, first_ranks, shares = set(), set(), []
    for site_row in site.methods[name]:
        if site_row.task and not site_row.section.outdated:
            tasks.add(site_row.task.path)
            shares.append(site_row.kept)
            if site_row.row.standing.rank == 1:
                first_ranks.add(site_row.task.path)
    return {
        "name": name,
        "tasks": len(tasks),
        "first_ranks": len(first_ranks),
        "kept": max((share for share in shares if not math.isnan(share)), default=math.nan),
        "runs": sum(site_row.row.seeds for site_row in site.methods[name]),
    }


def _task_values(site: Site, task: Task) -> dict[str, Any]:
    run_ids = [run_id for row in task.rows for run_id in row.run_ids]
    return {
        "task": task,
        "protocol": describe_protocol(site.records_of(run_ids)),
        "charts": [*map(plotly_charts.chart, task_views.task_views(task.group, site.records))],
    }


def _method_values(site: Site, method: str) -> dict[str, Any]:
    rows = site.methods[method]
    lines = []
    recorded: dict[str, set[str]] = defaultdict(set)
    for site_row in rows:
        run_ids = site_row.row.run_ids
        curves = curve_views.mean_curves([site.curves.get(run_id, {}) for run_id in run_ids])
        if curves:
            lines.append((_line_name(site_row), curves))
        for record in site.records_of(run_ids):
            for name, value in record.items():
                if name.startswith(HYPER) and is_recorded(value):
                    recorded[name.removeprefix(HYPER)].add(str(value))
    return {
        "name": method,
        "about": site.about(method),
        "rows": rows,
        "recorded": recorded,
        "charts": [*map(plotly_charts.chart, curve_views.method_views(lines[:MAX_CURVES]))],
        "more": max(0, len(lines) - MAX_CURVES),
    }


def _line_name(site_row: SiteRow) -> str:
    row = site_row.row
    parts = (site_row.section.experiment, row.dataset, row.student, row.variant, row.changed)
    return ", ".join(filter(None, parts))


def _run_values(site: Site, site_row: SiteRow, record: RunRecord) -> dict[str, Any]:
    settings = _recorded_values(site, "param", record)
    settings.pop("seed", None)
    views = curve_views.run_views(site.curves.get(record["run_id"], {}))
    return {
        "site_row": site_row,
        "row": site_row.row,
        "record": record,
        "settings": tuple(settings.items()),
        "accuracies": _accuracies(site, record),
        "checkpoints": ("best", *CHECKPOINTS.values()),
        "cost": cost_lines(_recorded_values(site, "cost", record)),
        "flags": fields.texts(record["flags"]) or {},
        "teachers": fields.texts(record["teacher_sha256"]) or {},
        "environment": tuple(_flatten(site.environment(record))),
        "charts": [*map(plotly_charts.chart, views)],
    }


def _recorded_values(site: Site, kind: str, record: RunRecord) -> dict[str, Any]:
    values = {}
    for name in site.columns.get(kind, ()):
        value = record[f"{kind}/{name}"]
        if is_recorded(value):
            values[name] = value
    return values


def _accuracies(site: Site, record: RunRecord) -> list[tuple[str, list[str]]]:
    """Return the label of each attack with the accuracy of each checkpoint."""
    accuracies = []
    for attack in site.attacks:
        values = [record.get(f"{kind}/{attack}", math.nan) for kind in ("test", *CHECKPOINTS)]
        if any(map(is_recorded, values)):
            accuracies.append((LABELS.get(attack, attack), [*map(format_percent, values)]))
    return accuracies


def cost_lines(spent: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return (label, text) pairs: the costs of the whole run, then the seconds of each attack."""
    order = (*COSTS, *(f"{attack}_seconds" for attack in LABELS), *spent)
    return [_cost_line(name, spent[name]) for name in dict.fromkeys(order) if name in spent]


def _cost_line(name: str, value: float) -> tuple[str, str]:
    attack = name.removesuffix("_seconds")
    label = COSTS.get(name) or LABELS.get(attack, attack.replace("_", " "))
    if name.endswith("_bytes"):
        return label, f"{value / 2**20:,.0f} MiB"
    if name.endswith("_seconds"):
        return label, f"{value:,.1f} s"
    return label, f"{value:,.10g}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested mappings, joining names by a space."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", str(value)
