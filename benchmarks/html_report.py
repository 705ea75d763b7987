"""A results file as one HTML page without external resources or scripts: plots, goals, and all tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from benchmarks.charts import Axis, Bar, Series, bar_chart, line_chart
from benchmarks.goals import check_goals, describe_verdict
from benchmarks.histogram import Histogram, bucket_bounds
from benchmarks.results import Measurement, Results, case_key
from benchmarks.terminal import columns_of, describe_problems

__all__ = ["render_cpu_plot", "render_report"]

COLOURS = {
    "cgw": ("#0b5fd0", "#6fb1ff"),
    "cgw-tick0": ("#5d97e6", "#a9cdf9"),
    "nginx": ("#1f8a4c", "#57c785"),
    "haproxy": ("#8a7a00", "#d6c445"),
    "go": ("#00838f", "#4cc9d6"),
    "litellm": ("#c2410c", "#ff9563"),
    "litellm-messages": ("#a1305f", "#f285b5"),
    "litellm-raw": ("#8f5a2b", "#d8a36f"),
    "portkey": ("#7a3fc4", "#bd93f5"),
    "redis-py-threads": ("#c2410c", "#ff9563"),
    "redis-py-trio": ("#0f766e", "#5eead4"),
    "redis-py-asyncio": ("#7a3fc4", "#bd93f5"),
    "direct": ("#6b7280", "#9ca3af"),
}
OTHER_COLOURS = (("#4d5b2a", "#b4c67e"), ("#b00020", "#ff7b8a"), ("#37474f", "#b0bec5"))

STYLE = Path(__file__).with_name("html_report.css")

METHOD = """\
Open loop: the upstream sends each event when it is due, and each event carries the time at which it was sent.
Latency is the time of receipt minus that timestamp. CPU is the time of all processes and threads of the subject,
counted by the kernel's scheduler while the window was open. Subjects take turns within each round. Saturated: the
subject carried less than 97 % of the offered load, so its latencies are those of a growing queue. Figures of different
runs cannot be compared; ratios within a run can. The scenario limits differs: clients use a store on the load's core in
a closed loop; a pair is an admit and its settle, and its time starts when its caller is ready to send it."""

HEADLINES: tuple[tuple[str, str, dict[str, int | str], str, int], ...] = (
    # title, scenario, parameters, metric, decimals
    ("CPU µs/event, 200 streams", "steady", {"streams": 200, "rate": 50}, "cpu_us_per_event", 1),
    ("event p50 µs", "steady", {"streams": 200, "rate": 50}, "latency_us.p50", 0),
    ("event p99 µs", "steady", {"streams": 200, "rate": 50}, "latency_us.p99", 0),
    ("CPU µs/event, 20,000 events/s", "throughput", {"streams": 100, "rate": 200}, "cpu_us_per_event", 1),
    ("CPU µs/event, streams of 100 events", "short-streams", {"streams": 200, "events": 100}, "cpu_us_per_event", 1),
    ("CPU µs/request, autocomplete", "autocomplete", {"rate": 100, "users": 100}, "cpu_us_per_request", 0),
    ("CPU µs/event, HTTP/2", "http2", {"protocol": "h2", "streams": 200, "rate": 50}, "cpu_us_per_event", 1),
    ("first byte µs", "first-byte", {}, "first_byte_us.p50", 0),
    ("requests/s", "requests", {"connections": 32}, "requests_per_second", 0),
    ("KiB per open stream", "idle", {"streams": 1000}, "rss_kib_per_stream", 1),
    ("closed p99 ms", "cancel", {"phase": "streaming"}, "upstream_closed_ms.p99", 2),
    ("pairs/s, 50 callers, 3 limits", "limits", {"callers": 50, "limits": 3}, "pairs_per_second", 0),
)


def render_report(results: Results) -> str:
    """Return the whole page."""
    sections = (
        _render_head(results),
        _render_headlines(results),
        _render_plots(results),
        _render_goals(results),
        _render_tables(results),
        _render_method(results),
    )
    light, dark = (
        " ".join(f"--{_variable(results, name)}: {_colours(results, name)[index]};" for name in results.subjects)
        for index in (0, 1)
    )
    colours = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>cgw benchmarks, {escape(results.date[:10])}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}{colours}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def _variable(results: Results, subject: str) -> str:
    return f"s{results.subjects.index(subject)}"


def _colours(results: Results, subject: str) -> tuple[str, str]:
    if subject in COLOURS:
        return COLOURS[subject]
    others = [name for name in results.subjects if name not in COLOURS]
    return OTHER_COLOURS[others.index(subject) % len(OTHER_COLOURS)]


def _colour(results: Results, subject: str) -> str:
    return f"var(--{_variable(results, subject)})"


# --- text and tables
def _render_head(results: Results) -> str:
    machine = results.machine
    rows = {
        "Machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_mib / 1024:.0f} GiB, {machine.kernel}",
        "Pinned": f"subject on core {_list(machine.subject_cores)}, load on core {_list(machine.load_cores)}",
        "Date": results.date,
        "Commit": results.commit,
        "Rounds": f"{results.rounds}, profile {results.profile}; tools in {results.tools}",
        "Subjects": "; ".join(f"{name}: {version}" for name, version in results.versions.items()),
    }
    if results.left_out:
        rows["Left out"] = "; ".join(f"{name}: {reason}" for name, reason in results.left_out.items())
    details = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    command = f"<dt>Command</dt><dd><code>{escape(results.command)}</code></dd>"
    return f"<h1>cgw benchmarks</h1>\n<dl>{details}{command}</dl>"


def _list(cores: Iterable[int]) -> str:
    return ", ".join(map(str, cores))


def _table(titles: Sequence[str], rows: Iterable[tuple[bool, Sequence[str]]], *, has_text: bool = False) -> str:
    """Return a table. ``rows`` are pairs of "is cgw" and HTML cells; with ``has_text`` the last one is a text cell."""

    def cells(tag: str, values: Sequence[str]) -> str:
        last = len(values) - 1 if has_text else -1
        return "".join(
            f'<{tag} class="text">{value}</{tag}>' if index == last else f"<{tag}>{value}</{tag}>"
            for index, value in enumerate(values)
        )

    head = cells("th", [escape(title) for title in titles])
    body = "\n".join(f"<tr{' class=own' if is_own else ''}>{cells('td', values)}</tr>" for is_own, values in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _render_headlines(results: Results) -> str:
    present = [row for row in HEADLINES if (row[1], case_key(row[2])) in results.cases]
    if not present:
        return ""

    def rows() -> Iterator[tuple[bool, Sequence[str]]]:
        for subject in results.subjects:
            values = [results.median(row[1], case_key(row[2]), subject, row[3]) for row in present]
            if any(value is not None for value in values):
                shown = ["" if v is None else f"{v:,.{row[4]}f}" for v, row in zip(values, present, strict=True)]
                yield _is_own(subject), [escape(subject), *shown]

    return "<h2>At a glance</h2>\n" + _table(["subject", *(row[0] for row in present)], rows())


def _is_own(subject: str) -> bool:
    return subject.startswith("cgw")


def _render_goals(results: Results) -> str:
    verdicts = [verdict for verdict in check_goals(results) if verdict.is_met is not None]
    if not verdicts:
        return ""

    def rows() -> Iterator[tuple[bool, Sequence[str]]]:
        for verdict in verdicts:
            measured, bound = describe_verdict(verdict)
            met = '<span class="yes">yes</span>' if verdict.is_met else '<span class="no">no</span>'
            yield False, [escape(verdict.goal.title), escape(measured), escape(bound), met]

    return (
        "<h2>Goals</h2>\n<p>Ratios are medians of the ratios within each round.</p>"
        f"{_table(['goal', 'measured', 'bound', 'met'], rows())}"
    )


def _render_tables(results: Results) -> str:
    parts = [
        "<h2>All figures</h2>\n<p>Medians over the rounds. “×” is cgw's first column divided by the subject's: "
        "for CPU, latency and memory, below 1 means that cgw needs less.</p>"
    ]
    parts += [_render_case(results, scenario, case) for scenario, case in results.cases]
    return "\n".join(parts)


def _render_case(results: Results, scenario: str, case: str) -> str:
    columns = columns_of(scenario)
    own = next((name for name in results.subjects if _is_own(name)), None)

    def rows() -> Iterator[tuple[bool, Sequence[str]]]:
        for subject in results.subjects:
            if not any(results.select(scenario, case, subject)):
                continue
            values = [column.show(results.median(scenario, case, subject, column.metric)) for column in columns]
            ratio = results.ratio(scenario, case, own, subject, columns[0].metric) if own and subject != own else None
            problems = escape(describe_problems(results, scenario, case, subject))
            yield (
                _is_own(subject),
                [escape(subject), *values, "" if ratio is None else f"{ratio:.2f}", problems],
            )

    titles = ["subject", *(column.title for column in columns), f"{own} ×" if own else "", "notes"]
    return f"<h3>{escape(f'{scenario} {case}'.strip())}</h3>\n{_table(titles, rows(), has_text=True)}"


def _render_method(results: Results) -> str:
    failures = dict.fromkeys(m.metrics.failed for m in results.measurements if m.metrics.failed)
    listed = "".join(f"<li><code>{escape(reason)}</code></li>" for reason in failures)
    shown = f"<h2>Failures</h2>\n<ul>{listed}</ul>" if failures else ""
    return f"{shown}<h2>Method</h2>\n<p>{METHOD}</p>"


# --- plots
def _render_plots(results: Results) -> str:
    plots = (
        _plot_cpu(results),
        _plot_latency(results),
        _plot_bars(results, "flood", "events_per_second", "Flooded", "events/s, 100 streams without a pause", 0),
        _plot_bars(
            results, "requests", "requests_per_second", "Without streaming", "requests/s on one core", 0, "conn"
        ),
        _plot_bars(results, "first-byte", "first_byte_us.p50", "First byte", "µs from the request, p50", 0),
        _plot_bars(results, "idle", "rss_kib_per_stream", "Memory", "KiB for each open, idle stream", 1),
        _plot_bars(
            results,
            "cancel",
            "upstream_closed_ms.p99",
            "Client disconnect",
            "ms until the upstream connection is closed, p99",
            2,
            "streaming",
        ),
        _plot_bars(results, "throughput", "cpu_us_per_event", "20,000 events/s", "CPU µs/event over 100 streams", 1),
        _plot_bars(
            results,
            "limits",
            "pairs_per_second",
            "Limits",
            "admit + settle pairs/s, 50 callers, 3 limits",
            0,
            "callers=50 limits=3",
        ),
    )
    shown = "\n".join(plot for plot in plots if plot)
    return f'<h2>Plots</h2>\n<div class="plots">\n{shown}\n</div>' if shown else ""


def _figure(title: str, subtitle: str, chart: str, legend: str = "") -> str:
    return (
        f"<figure><figcaption>{escape(title)}<small>{escape(subtitle)}</small></figcaption>\n{chart}\n{legend}</figure>"
    )


def _legend(series: Sequence[Series]) -> str:
    items = "".join(f'<li><i style="background:{line.colour}"></i>{escape(line.name)}</li>' for line in series)
    return f'<ul class="legend">{items}</ul>'


def render_cpu_plot(results: Results) -> str:
    """Return the plot of CPU per event as a complete SVG file, for pages without the report's style sheet (README)."""
    chart, series = _chart_cpu(results)
    for subject in results.subjects:
        chart = chart.replace(_colour(results, subject), _colours(results, subject)[0])
    names = ""
    for index, line in enumerate(series):
        colour = _colours(results, line.name)[0]
        names += f'<text x="{76 + 92 * index}" y="330" style="fill:{colour}">● {escape(line.name)}</text>'
    style = (
        "<style>rect.page { fill: #ffffff } text { fill: #59636e; font: 12px system-ui, sans-serif } "
        ".grid { stroke: #d8dde3 } .line { fill: none; stroke-width: 2.2 }</style>"
    )
    head, _, body = chart.partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ').replace("0 0 560 320", "0 0 560 340")
    return (
        f'{head}>\n{style}<rect class="page" width="560" height="340"/>{body.removesuffix("</svg>")}{names}\n</svg>\n'
    )


def _plot_cpu(results: Results) -> str:
    chart, series = _chart_cpu(results)
    if not series:
        return ""
    return _figure("CPU per event", "microseconds of one core; lower is better", chart, _legend(series))


def _chart_cpu(results: Results) -> tuple[str, list[Series]]:
    cases = [case for scenario, case in results.cases if scenario == "steady"]
    streams = {case: float(next(results.select("steady", case)).parameters["streams"]) for case in cases}
    series = []
    for subject in results.subjects:
        found = [(streams[case], results.median("steady", case, subject, "cpu_us_per_event")) for case in cases]
        points = [(at, value) for at, value in found if value]
        if points:
            series.append(Series(subject, _colour(results, subject), points))
    if not series:
        return "", []
    values = [value for line in series for _, value in line.points]
    x = Axis.categories("streams of 50 events/s each", list(streams.values()))
    y = Axis.logarithmic("CPU µs per event", min(values), max(values))
    return line_chart("CPU per event against streams", x, y, series), series


def _plot_latency(results: Results) -> str:
    """Plot the distribution at 200 streams, or at the largest smaller number that the run has."""
    cases = [(next(results.select("steady", case)), case) for scenario, case in results.cases if scenario == "steady"]
    fitting = [pair for pair in cases if int(pair[0].parameters["streams"]) <= 200]
    if not fitting:
        return ""
    example, case = max(fitting, key=lambda pair: int(pair[0].parameters["streams"]))
    series = []
    for subject in results.subjects:
        histogram = _merge_latencies(results.select("steady", case, subject))
        if histogram.count:
            points = _distribution(histogram)
            series.append(Series(subject, _colour(results, subject), points, is_dashed=subject == "direct"))
    if not series:
        return ""
    values = [value for line in series for _, value in line.points]
    chart = line_chart(
        "distribution of event latency",
        Axis.percentiles("percentile", 99.9),
        Axis.logarithmic("latency of an event, µs", min(values), max(values)),
        series,
        has_dots=False,
    )
    title = f"Event latency, {example.parameters['streams']} streams"
    return _figure(title, "all rounds together; 90, 99, 99.9 at equal distances", chart, _legend(series))


def _merge_latencies(measurements: Iterable[Measurement]) -> Histogram:
    found = (m.metrics.latency_us for m in measurements if not m.metrics.failed)
    return Histogram.merged(latency.histogram for latency in found if latency and latency.histogram)


def _distribution(histogram: Histogram) -> list[tuple[float, float]]:
    """Return pairs of percentile and latency (µs), one per bucket up to the 99.9th percentile."""
    points, seen = [], 0
    for index, count in histogram.buckets:
        points.append((100 * seen / histogram.count, max(bucket_bounds(index)[1], 1) / 1000))
        seen += count
        if seen >= 0.999 * histogram.count:
            break
    return points


def _plot_bars(
    results: Results, scenario: str, metric: str, title: str, subtitle: str, decimals: int, wanted: str = ""
) -> str:
    case = next((case for name, case in results.cases if name == scenario and wanted in case), None)
    if case is None:
        return ""
    bars = []
    for subject in results.subjects:
        value = results.median(scenario, case, subject, metric)
        if value is not None and not (subject == "direct" and "requests" in scenario):
            note = "saturated" if results.is_saturated(scenario, case, subject) else ""
            bars.append(Bar(subject, _colour(results, subject), value, note))
        elif scenario == "cancel" and any(
            m.metrics.upstream_never_closed for m in results.select(scenario, case, subject)
        ):
            bars.append(Bar(subject, _colour(results, subject), 0, "never within 1 s"))
    if not bars:
        return ""
    return _figure(title, subtitle, bar_chart(f"{title}: {subtitle}", bars, lambda value: f"{value:,.{decimals}f}"))
