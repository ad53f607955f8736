"""The pages: tables in plain HTML, charts as data beside them; no network, no server, every name escaped by the engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.render import markdown, protocol
from leaderboards.render.figures import charts, diagram, views
from leaderboards.render.figures.curves import mean, of_method, of_run
from leaderboards.render.site.site import Place, Record, Site, Task
from leaderboards.schema.fields import parse_json_tag
from leaderboards.schema.method_card import HyperParameter, MethodCard
from leaderboards.schema.metrics import ATTACK_LABELS, CHECKPOINT_LABELS, RANK_METRIC, TRAIN_SECONDS
from leaderboards.tables.published import HEADING
from leaderboards.tables.suite_tables import Section

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent / "templates"
COSTS = {
    "train_seconds": "Training",
    "student_passes": "Student's passes for an image, each epoch",
    "peak_bytes": "Memory at most",
    "eval_seconds": "Evaluation",
    "eval_forwards": "Images forward in it",
    "eval_backwards": "Images backward in it",
}
LINES = 24  # of a chart of curves; more cannot be told apart


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """(path, HTML) of every page, one at a time: there may be thousands."""
    engine = _engine(site)
    yield "index.html", engine.get_template("index.html.j2").render(root="", **_index(site))
    template = engine.get_template("task.html.j2")
    for task in site.tasks:
        yield task.path, template.render(root="../", **_task(site, task))
    template = engine.get_template("method.html.j2")
    for name, places in site.methods.items():
        yield site.method_paths[name], template.render(root="../", **_method(site, name, places))
    template = engine.get_template("run.html.j2")
    for place in site.places:
        words = protocol.words([site.records[run] for run in place.row.run_ids])
        for run in place.row.run_ids:
            yield (
                site.run_paths[run],
                template.render(root="../", protocol=tuple(words), **_run(site, place, run)),
            )


def _engine(site: Site) -> jinja2.Environment:
    import jinja2

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    engine.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    engine.globals |= {
        "methods": site.method_paths,
        "runs": site.run_paths,
        "records": site.records,
        "number": markdown.number,
        "bracket": markdown.bracket,
        "percent": percent,
        "many": many,
        "zip": zip,
        "published": HEADING,
        "rank": RANK_METRIC,
        "seconds": TRAIN_SECONDS,
    }
    parts: Any = engine.get_template("parts.html.j2").module
    engine.globals["pairs"] = lru_cache(maxsize=64)(
        parts.pairs
    )  # the same for many runs, one after the other
    return engine


def percent(value: float, unit: str = "") -> str:
    """A fraction in percent; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}{unit}"


def many(count: int, noun: str) -> str:
    """ "1 run", "2,000 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _index(site: Site) -> dict[str, Any]:
    current = [section for section in site.sections if not section.outdated]
    return {
        "problems": site.problems,
        "first_run": markdown.first_run(site.suite),
        "boards": [
            (title, tasks)
            for title, old in (("Tasks", False), ("Older protocol versions", True))
            if (tasks := [task for task in site.tasks if task.section.outdated is old])
        ],
        "suites": current,
        "older": [section for section in site.sections if section.outdated],
        "tasks_of": lambda section: [task for task in site.tasks if task.section is section],
        "protocol": lambda section: protocol.words(_records(site, section)),
        "settings": lambda section: protocol.settings(_records(site, section)),
        "diagram": diagram.layout,
        "overview": [
            _overview(name, places, site.about(name)) for name, places in site.methods.items()
        ],
        "total": sum(task.runs for task in site.tasks),
    }


def _records(site: Site, section: Section) -> list[Record]:
    return [site.records[run] for run in section.runs["run_id"]]


def _overview(name: str, places: Sequence[Place], about: MethodCard | None) -> dict[str, Any]:
    """A method over all its current tasks."""
    tasks = [place for place in places if place.task and not place.section.outdated]
    shares = [place.kept for place in tasks if not math.isnan(place.kept)]
    return {
        "name": name,
        "title": about.title if about else "",
        "tasks": len({place.task.path for place in tasks if place.task}),
        "firsts": len(
            {place.task.path for place in tasks if place.task and place.row.ranking.rank == 1}
        ),
        "kept": max(shares, default=math.nan),
        "runs": sum(place.row.seeds for place in places),
    }


def _task(site: Site, task: Task) -> dict[str, Any]:
    records = [site.records[run] for row in task.rows for run in row.run_ids]
    return {
        "task": task,
        "flagged": [row for row in task.rows if row.flags],
        "protocol": protocol.words(records),
        "charts": [charts.chart(view) for view in views.of_task(task.group, site.records)],
    }


def _method(site: Site, name: str, places: Sequence[Place]) -> dict[str, Any]:
    means = [
        (_line(place), mean([site.curves.get(run, {}) for run in place.row.run_ids]))
        for place in places
    ]
    lines = [(label, curves) for label, curves in means if curves]
    drawn = of_method(lines[:LINES])
    about = site.about(name)
    return {
        "name": name,
        "about": about,
        "places": places,
        "parameters": [*_parameters(about, _values(site, places))],
        "charts": [charts.chart(view) for view in drawn],
        "more": max(0, len(lines) - LINES),
    }


def _line(place: Place) -> str:
    row = place.row
    return ", ".join(
        filter(None, (place.section.experiment, row.dataset, row.student, row.variant, row.changed))
    )


def _values(site: Site, places: Iterable[Place]) -> dict[str, list[str]]:
    """The recorded values of each hyper-parameter."""
    found: dict[str, dict[str, None]] = {}
    for record in (site.records[run] for place in places for run in place.row.run_ids):
        for key, value in record.items():
            if key.startswith("param/hyper.") and protocol.known(value):
                found.setdefault(key[12:], {})[str(value)] = None
    return {key: sorted(values) for key, values in found.items()}


def _parameters(
    about: MethodCard | None, values: Mapping[str, list[str]]
) -> Iterator[tuple[HyperParameter, list[str]]]:
    """Each hyper-parameter and its recorded values; those that were recorded alone come last."""
    told = about.parameters if about else ()
    names = {parameter.name for parameter in told}
    for parameter in (*told, *(HyperParameter(name) for name in values if name not in names)):
        yield parameter, values.get(parameter.name, [])


def _run(site: Site, place: Place, run: str) -> dict[str, Any]:
    record = site.records[run]
    curves = site.curves.get(run, {})
    drawn = of_run(curves)
    return {
        "place": place,
        "row": place.row,
        "record": record,
        "settings": tuple(
            (name, value) for name, value in _recorded(site, "param", record) if name != "seed"
        ),
        "numbers": [*_numbers(site, record)],
        "kinds": {"test": "best", **CHECKPOINT_LABELS},
        "cost": [*_costs(dict(_recorded(site, "cost", record)))],
        "flags": parse_json_tag(record["flags"]) or {},
        "taught": parse_json_tag(record["teacher_sha256"]) or {},
        "environment": tuple(_flat(site.environment(record))),
        "charts": [charts.chart(view) for view in drawn],
        "others": [
            (site.run_paths[other], site.records[other]["seed"] or other)
            for other in place.row.run_ids
            if other != run
        ],
    }


def _recorded(site: Site, kind: str, record: Record) -> Iterator[tuple[str, Any]]:
    for name in site.columns.get(kind, ()):
        value = record[f"{kind}/{name}"]
        if protocol.known(value):
            yield name, value


def _numbers(site: Site, record: Record) -> Iterator[tuple[str, list[str]]]:
    """(attack, accuracy of each checkpoint in percent)."""
    for name in site.attacks:
        values = [record.get(f"{kind}/{name}", math.nan) for kind in ("test", *CHECKPOINT_LABELS)]
        if any(value == value for value in values):
            yield ATTACK_LABELS.get(name, name), [percent(value) for value in values]


def _costs(spent: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The whole first, then the seconds of each attack."""
    attacks = [f"{attack}_seconds" for attack in ATTACK_LABELS]
    for name in dict.fromkeys((*COSTS, *attacks, *spent)):
        if name in spent:
            yield _cost(name, spent[name])


def _cost(name: str, value: float) -> tuple[str, str]:
    what = name.removesuffix("_seconds")
    said = COSTS.get(name) or ATTACK_LABELS.get(what, what.replace("_", " "))
    if name.endswith("_bytes"):
        return said, f"{value / 2**20:,.0f} MiB"
    return (said, f"{value:,.1f} s") if what != name else (said, f"{value:,.10g}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """One level: nested names are joined by a space."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", str(value)
