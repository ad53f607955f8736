"""The pages of the analysis, and its sections on the pages of methods and runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from leaderboards.render.figures import analysis_views
from leaderboards.render.figures.plotly_charts import build_chart
from leaderboards.render.figures.views import row_labels
from leaderboards.render.numbers import format_cell
from leaderboards.render.site.class_pages import WORST_CLASS_PAGE
from leaderboards.render.site.site_map import Site, SiteRow, Task
from leaderboards.schema import analysis
from leaderboards.schema.analysis import GROUPS, part_label, split_name
from leaderboards.schema.metrics import describe_metric
from leaderboards.schema.record import Record
from leaderboards.stats.correlation import MIN_METHODS, Correlation
from leaderboards.tables.across_tasks import usual_teacher
from leaderboards.tables.analysis_tables import AnalysisTable
from leaderboards.tables.rows import Column, Row, SeedSummary
from leaderboards.tables.transfer_matrix import TransferMatrix, build_matrix

if TYPE_CHECKING:
    import jinja2

WHAT_TEACHES = "what-teaches"
VALUE = "value"
# A heat map of more classes is larger than a page.
MAX_CLASSES = 20


def render_analysis(site: Site, engine: jinja2.Environment) -> Iterator[tuple[str, str]]:
    """Yield (path, HTML) of the pages of each analysed task: a page a group, and what teaches."""
    template = engine.get_template("analysis.html.j2")
    for task in site.analysed_tasks:
        for name, table in site.analyses[task.path].items():
            values = {"task": task, "analysis": table, "page": name}
            values |= _group_values(site, task, table)
            yield task.analysis_path(name), template.render(root="../", **values)
        entries = site.correlations[task.path]
        view = analysis_views.correlation_view(entries)
        teaches = engine.get_template("what_teaches.html.j2")
        charts = [build_chart(view)] if view else []
        values = {"task": task, "page": WHAT_TEACHES, "entries": entries, "charts": charts}
        yield task.analysis_path(WHAT_TEACHES), teaches.render(root="../", **values)


def _group_values(site: Site, task: Task, table: AnalysisTable) -> dict[str, Any]:
    teacher = usual_teacher(table.table.rows, task.section.teachers)
    views = analysis_views.group_views(table, teacher, site.runs, site.family)
    values: dict[str, Any] = {"charts": [*map(build_chart, views)], "matrix": None}
    run_ids = [run_id for row in table.measured for run_id in row.run_ids]
    kept = [*filter(None, (site.runs[run_id]["record"].analysis for run_id in run_ids))]
    # The other groups have images of their own.
    on_test = table.group.name in (analysis.STRUCTURE, analysis.FEATURES, analysis.GRADIENTS)
    images = max((each.images for each in kept), default=0)
    values |= {"analysed_runs": len(kept), "images": images if on_test else 0}
    if table.group.name == analysis.TRANSFERABILITY:
        values["matrix"] = transfer_matrix(site, task)
    return values


def transfer_matrix(site: Site, task: Task) -> TransferMatrix | None:
    """Return whose adversarial examples fool whom in a task."""
    labels = row_labels(task.table.rows)
    return build_matrix(task.table, labels, site.runs)


def method_measures(site: Site, rows: Iterable[SiteRow]) -> list[dict[str, Any]]:
    """Return a method's measures over tasks: value, position, and the range of the task."""
    lines = []
    for site_row in rows:
        tables = site.analyses.get(site_row.task.path, {}) if site_row.task else {}
        for name, table in tables.items():
            row = next(row for row in table.table.rows if row.run_ids == site_row.row.run_ids)
            for metric in [metric for metric in table.main if row[metric].n]:
                line = {"site_row": site_row, "group": table.group, "page": name, "row": row}
                line |= {"metric": metric, "position": table.position(row, metric)}
                lines.append(line | {"span": table.spans[metric]})
    return lines


def run_analysis(record: Record) -> dict[str, Any] | None:
    """Return the analysis of a run for its page; None where it was not analysed."""
    kept = record.analysis
    if kept is None:
        return None
    groups = []
    for name, group in GROUPS.items():
        metrics = analysis.metrics_of_group(record.metrics, name)
        gaps = [(gap, reason) for gap, reason in sorted(kept.gaps.items()) if _is_of(gap, name)]
        if metrics or gaps:
            groups.append((group, *_measure_table(metrics, record.metrics), gaps))
    maps = analysis_views.correlation_maps(record)
    classes = max((len(matrix) for _, pair in maps for _, matrix in pair), default=0)
    return {
        "kept": kept,
        "groups": groups,
        "classes": classes,
        "maps": maps if classes <= MAX_CLASSES else [],
        "charts": [*map(build_chart, analysis_views.run_views(kept))],
        "tsne": [*map(build_chart, analysis_views.tsne_views(kept))],
    }


def _is_of(gap: str, group: str) -> bool:
    return gap.partition("/")[0] == group


def _measure_table(
    metrics: Sequence[str], values: Mapping[str, float]
) -> tuple[list[str], list[tuple[str, list[str], str]]]:
    """Return headings, and lines of label, values and meaning.

    A column is what measures were taken on, the last part of their names. Of the lines of one
    measure the first has the meaning.
    """
    lines: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    abouts: dict[tuple[str, ...], str] = {}
    for metric in metrics:
        parts = split_name(metric)
        assert parts
        *labels, view = _labels_of(metric) if parts[2] else (parts[1].label, VALUE)
        lines[*labels,][view] = describe_metric(metric).format(values[metric])
        if (about := measure_about(metric)) not in abouts.values():
            abouts[*labels,] = about
    views = [*dict.fromkeys(chain.from_iterable(lines.values()))]
    table = []
    for name, cells in lines.items():
        texts = [cells.get(view, "") for view in views]
        table.append((", ".join(name), texts, abouts.get(name, "")))
    return views, table


def format_measure(metric: str, value: float) -> str:
    """Format one value of a measure as the cells of tables are; "-" for NaN."""
    summary = SeedSummary() if math.isnan(value) else SeedSummary(value, n=1)
    return format_cell(summary, Column(metric, ""))


def format_correlation(correlation: Correlation | None) -> str:
    """Format "0.72 [0.51, 0.85]"; "-" for too few methods."""
    if correlation is None:
        return "-"
    return f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]"


def heading_parts(metric: str) -> tuple[str, str]:
    """Return the label of a measure, and what it was measured on; of a group of one its task."""
    label, *parts = _labels_of(metric)
    return label, ", ".join(parts)


def _labels_of(metric: str) -> list[str]:
    """Return the labels of a measure's name, without the measure's in a group of one."""
    parts = split_name(metric)
    assert parts
    group, measure, names = parts
    labels = [measure.label, *map(part_label, names)]
    return labels[1:] if len(group.measures) == 1 and names else labels


def measure_about(metric: str) -> str:
    """Return what a measure says in a sentence, and which values are closer to the claim."""
    parts = split_name(metric)
    assert parts
    _, measure, _ = parts
    closer = {True: " Higher is closer to the claim.", False: " Lower is closer to the claim."}
    return measure.about + closer.get(measure.higher_is_closer, "")  # type: ignore[arg-type]


def percent_share(table: AnalysisTable, row: Row, metric: str) -> int | None:
    """Return the depth of a colour in percent, None for none."""
    share = table.share(row, metric)
    return None if math.isnan(share) else round(100 * share)


def analysis_links(site: Site, task: Task) -> list[tuple[str, str, str]]:
    """Return (page, title, path) of the analysis pages of a task."""
    tables = site.analyses.get(task.path, {})
    pages = [(name, table.group.title) for name, table in tables.items()]
    if tables:
        pages.append((WHAT_TEACHES, "Which features teach"))
    if task.path in site.class_tables:
        pages.append((WORST_CLASS_PAGE, "Worst class"))
    return [(name, title, task.analysis_path(name)) for name, title in pages]


# For templates.
ANALYSIS_FUNCTIONS = {
    "analysis_links": analysis_links, "format_correlation": format_correlation,
    "format_measure": format_measure, "heading_parts": heading_parts,
    "measure_about": measure_about, "percent_share": percent_share,
    "min_methods": MIN_METHODS, "models_view": analysis_views.models_view,
    "build_chart": build_chart,
}  # fmt: skip
