"""The pages: plain HTML with charts as data, names escaped by the engine; no network, no server."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.render.figures.curve_views import mean_curves, method_views, run_views
from leaderboards.render.figures.plotly_charts import build_chart
from leaderboards.render.figures.rank_diagram import layout_diagram
from leaderboards.render.figures.task_views import accuracy_view, task_views
from leaderboards.render.figures.win_matrix import win_matrix
from leaderboards.render.numbers import FORMATS, format_percent
from leaderboards.render.protocol_text import (
    describe_protocol,
    describe_run,
    is_recorded,
    shared_settings,
)
from leaderboards.render.site.boards import FUNCTIONS, board_stems
from leaderboards.render.site.site_map import Site, SiteRow, Task
from leaderboards.schema.fields import (
    Tag,
    checkpoint_artifact,
    checksum_tag,
    escape_unprintable,
)
from leaderboards.schema.metrics import (
    ATTACK_LABELS,
    CHECKPOINT_LABELS,
    CLEAN,
    COST,
    METRICS,
    RANK_METRIC,
    TRAIN_SECONDS,
    WORST_CLASS,
    attack_seconds,
    describe_metric,
)
from leaderboards.tables.published import HEADING
from leaderboards.tables.rows import Row

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
    for name in ("rows", "submit"):
        yield f"{name}.html", engine.get_template(f"{name}.html.j2").render(root="")
    template = engine.get_template("task.html.j2")
    for task in site.tasks:
        yield task.path, template.render(root="../", **_task_values(site, task))
    template = engine.get_template("method.html.j2")
    for name, path in site.method_paths.items():
        yield path, template.render(root="../", **_method_values(site, name))
    template = engine.get_template("run.html.j2")
    parts: Any = engine.get_template("parts.html.j2").module
    for site_row in site.rows:
        seeds = parts.plain_seeds("../", site_row.row)
        for run_id in site_row.row.run_ids:
            values = _run_values(site, site_row, site.runs[run_id])
            yield site.run_paths[run_id], template.render(root="../", seeds=seeds, **values)


def _engine(site: Site) -> jinja2.Environment:
    import jinja2

    options: Any = {"trim_blocks": True, "lstrip_blocks": True, "auto_reload": False}
    loader, undefined = jinja2.FileSystemLoader(TEMPLATES), jinja2.StrictUndefined
    engine = jinja2.Environment(loader=loader, undefined=undefined, autoescape=True, **options)
    engine.policies["json.dumps_kwargs"] = JSON_OPTIONS
    engine.globals |= {
        "site": site, "published": HEADING, "rank": RANK_METRIC, "seconds": TRAIN_SECONDS,
        "clean": CLEAN, "worst_class": WORST_CLASS, "tag": Tag, "checksum_tag": checksum_tag,
        "checkpoint_artifact": checkpoint_artifact,
        "zip": zip, **FORMATS,
        "describe_protocol": describe_protocol, "shared_settings": shared_settings,
        "stems": board_stems(site), **FUNCTIONS, "families_of": partial(families_of, site),
        "summarise_method": summarise_method, "layout_diagram": layout_diagram,
    }  # fmt: skip
    parts: Any = engine.get_template("parts.html.j2").module
    # Many runs, one after the other, have the same protocol, settings and environment.
    engine.globals["cached_pairs"] = lru_cache(maxsize=64)(parts.pairs)
    return engine


def families_of(site: Site, rows: Sequence[Row]) -> list[str]:
    """Return the family of each row's method, "" for a method that is not described."""
    return [site.family(row.method) for row in rows]


def summarise_method(rows: Sequence[SiteRow]) -> dict[str, float]:
    """Summarise the rows of a method over its tasks of current suite versions."""
    tasks, first_ranks, shares, runs = set(), set(), [], 0
    for site_row in rows:
        runs += site_row.row.seeds
        if site_row.task and not site_row.section.outdated:
            tasks.add(site_row.task.path)
            share = site_row.kept
            if not math.isnan(share):
                shares.append(share)
            if any(leader is site_row.row for leader in site_row.task.table.leaders):
                first_ranks.add(site_row.task.path)
    kept = max(shares, default=math.nan)
    return {"tasks": len(tasks), "first_ranks": len(first_ranks), "kept": kept, "runs": runs}


def _task_values(site: Site, task: Task) -> dict[str, Any]:
    run_ids = chain.from_iterable(map(attrgetter("run_ids"), task.table.rows))
    protocol = describe_protocol(site.runs_of(run_ids), task.section.stated)
    charts = [*map(build_chart, task_views(task.table, site.runs, site.family))]
    wins = win_matrix(task.table)
    return {"task": task, "protocol": protocol, "charts": charts, "wins": wins}


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
        runs = site.runs_of(site_row.row.run_ids)
        curves = mean_curves([run["record"].curves for run in runs])
        if curves:
            lines.append((_line_name(site_row), curves))
        for run in runs:
            for name in names:
                if is_recorded(run[name]):
                    recorded[name.removeprefix(HYPER)].add(str(run[name]))
    charts = [*map(build_chart, method_views(lines[:MAX_CURVES]))]
    more = max(0, len(lines) - MAX_CURVES)
    about = site.about(method)
    values = {"name": method, "about": about, "rows": rows, "recorded": recorded}
    return {**values, "charts": charts, "more": more}


def _line_name(site_row: SiteRow) -> str:
    row = site_row.row
    parts = (site_row.section.experiment, row.dataset, row.student, row.variant, row.changed)
    return ", ".join(filter(None, parts))


def _run_values(site: Site, site_row: SiteRow, run: Mapping[str, Any]) -> dict[str, Any]:
    record = run["record"]
    settings = [(name, run[f"param/{name}"]) for name in site.varying(site_row.section)]
    views = run_views(record.curves)
    by_class = []
    for name, shares in record.accuracies_by_class.items():
        by_class.append((describe_metric(name).label, [*map(format_percent, shares)]))
    return {
        "site_row": site_row, "run": run, "protocol": tuple(describe_run(run)),
        "flags": record.flags, "by_class": by_class,
        "charts": [*map(build_chart, views)], "accuracies": _accuracies(site, run),
        "row": site_row.row, "checkpoints": tuple(CHECKPOINT_LABELS.values()),
        "settings": tuple(pair for pair in settings if is_recorded(pair[1])),
        "environment": _flatten(record.environment),
        "cost": cost_lines(record.metrics), "teachers": record.teacher_sha256,
    }  # fmt: skip


def _accuracies(site: Site, run: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the label of each attack with the accuracy of each checkpoint."""
    accuracies = []
    for attack in site.attacks:
        texts = []
        for kind in CHECKPOINT_LABELS:
            texts.append(format_percent(run.get(f"{kind}/{attack}", math.nan)))
        if set(texts) != {"-"}:
            accuracies.append((ATTACK_LABELS.get(attack, attack), texts))
    return accuracies


def cost_lines(measured: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return (label, text) pairs: the costs of the whole run, then the seconds of each attack."""
    names = dict.fromkeys((*METRICS, *map(attack_seconds, ATTACK_LABELS), *measured))
    lines = []
    for name in names:
        if name.startswith(COST) and name in measured:
            metric = describe_metric(name)
            # In tables the heading has the unit, and the cells have none.
            label = metric.label.removesuffix(f" {metric.unit}")
            lines.append((label, metric.format(measured[name])))
    return lines


def _flatten(values: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Flatten nested mappings, joining names by a space."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{name} ")
        else:
            label = escape_unprintable(f"{prefix}{name}")
            pairs.append((label, escape_unprintable(str(value))))
    return tuple(pairs)
