"""Queries of results: ratios, comparisons, goals, the report."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.charts import log_ticks
from benchmarks.compare import compare_results, print_changes
from benchmarks.goals import check_goals
from benchmarks.html_report import render_cpu_plot, render_report
from benchmarks.results import Distribution, Metrics, Results, ResultsError

STEADY = {"streams": 200, "rate": 50}
Make = Callable[..., Results]
Spread = Callable[..., Distribution]


def cpu(value: float) -> Metrics:
    return Metrics(cpu_us_per_event=value)


def met(results: Results) -> dict[str, bool | None]:
    return {verdict.goal.title: verdict.is_met for verdict in check_goals(results)}


def test_a_ratio_is_taken_within_each_round(make_results: Make) -> None:
    """A round on a machine that is twice as slow does not change a ratio; a failed measurement does not count."""
    results = make_results(
        [("steady", STEADY, "cgw", cpu(30)), ("steady", STEADY, "go", cpu(40))],
        [("steady", STEADY, "cgw", cpu(60)), ("steady", STEADY, "go", cpu(80))],
        [("steady", STEADY, "cgw", Metrics(cpu_us_per_event=500, failed="broke")), ("steady", STEADY, "go", cpu(40))],
    )

    assert results.ratio("steady", "streams=200 rate=50", "cgw", "go", "cpu_us_per_event") == 0.75
    assert results.median("steady", "streams=200 rate=50", "cgw", "cpu_us_per_event") == 45
    assert results.ratio("steady", "streams=200 rate=50", "cgw", "nginx", "cpu_us_per_event") is None


def test_results_survive_the_file(make_results: Make, spread: Spread, tmp_path: Path) -> None:
    """Results are the same after writing and reading, histograms included."""
    metrics = Metrics(latency_us=spread(1, 50, 3000), errors={"truncated": 1}, saturated=True)
    results = make_results([("steady", STEADY, "cgw", metrics)])

    results.write(tmp_path / "made" / "results.json")

    assert Results.read(tmp_path / "made" / "results.json") == results


@pytest.mark.parametrize("text", ["", "[]", '{"schema":"cgw-benchmarks/1"}'])
def test_a_file_that_holds_no_results_is_named(tmp_path: Path, text: str) -> None:
    """A wrong file raises an error that names it."""
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"other\.json"):
        Results.read(path)


def test_compare_fails_past_the_tolerance_only(make_results: Make) -> None:
    """A ratio that is 20 % worse fails at 10 % and passes at 30 %, although the absolute figures improved."""
    before = make_results([("steady", STEADY, "cgw", cpu(50)), ("steady", STEADY, "go", cpu(100))])
    after = make_results([("steady", STEADY, "cgw", cpu(30)), ("steady", STEADY, "go", cpu(50))])

    changes = compare_results(before, after)

    assert [(change.before, change.after) for change in changes] == [(0.5, 0.6)]
    assert changes[0].worse == pytest.approx(0.2)
    assert print_changes(changes, 0.1, Console(quiet=True))
    assert not print_changes(changes, 0.3, Console(quiet=True))


def test_compare_knows_which_direction_is_worse(make_results: Make) -> None:
    """Half the requests a second are worse; half the CPU is better."""
    case = {"connections": 32}

    def run(rate: float, used: float) -> Results:
        ours = Metrics(requests_per_second=rate, cpu_us_per_request=used)
        return make_results(
            [
                ("requests", case, "cgw", ours),
                ("requests", case, "go", Metrics(requests_per_second=1000, cpu_us_per_request=100)),
            ]
        )

    changes = compare_results(run(2000, 400), run(1000, 200))

    worse = {change.metric: change.worse for change in changes}
    assert worse["requests_per_second"] == pytest.approx(1.0)
    assert worse["cpu_us_per_request"] == pytest.approx(-0.5)


def test_compare_needs_what_both_runs_have(make_results: Make) -> None:
    """Runs without a common reference or subject raise an error with a sentence."""
    ours = make_results([("steady", STEADY, "cgw", cpu(50))])
    theirs = make_results([("steady", STEADY, "cgw", cpu(50)), ("steady", STEADY, "go", cpu(50))])
    with pytest.raises(ResultsError, match="share none"):
        compare_results(ours, theirs)
    with pytest.raises(ResultsError, match="not in both runs: nginx"):
        compare_results(theirs, theirs, reference="nginx")


def test_goals_are_met_missed_or_not_measured(make_results: Make, spread: Spread) -> None:
    """Each goal is checked against its own figure; without a figure it is neither met nor missed."""
    ours = Metrics(cpu_us_per_event=30, latency_us=spread(900, 950, 5000))
    results = make_results(
        [("steady", STEADY, "cgw", ours), ("steady", STEADY, "go", cpu(40)), ("steady", STEADY, "nginx", cpu(20))]
    )

    verdicts = met(results)

    assert verdicts["CPU/event, 200 streams × 50/s, to Go"] is True
    assert verdicts["CPU/event, 200 streams × 50/s, to nginx"] is False
    assert verdicts["event latency p50, 200 streams"] is True
    assert verdicts["event latency p99, 200 streams"] is False
    assert verdicts["plain requests/s on a core"] is None


def test_http2_is_compared_to_http1_of_the_same_round(make_results: Make) -> None:
    """The goal of HTTP/2 is a ratio of two cases of cgw, that of short streams a ratio to Go."""
    results = make_results(
        [
            ("http2", {"protocol": "http1", **STEADY}, "cgw", cpu(20)),
            ("http2", {"protocol": "h2", **STEADY}, "cgw", cpu(30)),
            ("short-streams", {"streams": 200, "events": 100}, "cgw", cpu(30)),
            ("short-streams", {"streams": 200, "events": 100}, "go", cpu(40)),
        ]
    )

    measured = {verdict.goal.title: verdict.measured for verdict in check_goals(results)}

    assert measured["CPU/event, 200 streams over 4 HTTP/2 connections, to own HTTP/1.1"] == 1.5
    assert measured["CPU/event, 200 streams of 100 events, to Go"] == 0.75


def test_added_latency_leaves_out_what_direct_takes(make_results: Make, spread: Spread) -> None:
    """100 µs and 60 µs have a ratio of 2 after subtracting the 20 µs of the suite itself from both."""
    results = make_results(
        [
            ("steady", STEADY, "direct", Metrics(latency_us=spread(20))),
            ("steady", STEADY, "go", Metrics(latency_us=spread(60))),
            ("steady", STEADY, "cgw-tick0", Metrics(latency_us=spread(100))),
        ]
    )

    measured = {verdict.goal.title: verdict.measured for verdict in check_goals(results)}

    assert measured["added latency p50, 200 streams, tick 0, to Go"] == pytest.approx(2.0)


def test_the_strongest_route_of_litellm_is_the_reference(make_results: Make, spread: Spread) -> None:
    """Of several routes of LiteLLM, the one with the best figure is the reference."""
    results = make_results(
        [
            ("first-byte", {}, "cgw", Metrics(first_byte_us=spread(1000))),
            ("first-byte", {}, "litellm", Metrics(first_byte_us=spread(20_000))),
            ("first-byte", {}, "litellm-raw", Metrics(first_byte_us=spread(5000))),
        ]
    )

    measured = {verdict.goal.title: verdict.measured for verdict in check_goals(results)}

    assert measured["first byte p50, to LiteLLM's best"] == pytest.approx(0.2)


class Page(HTMLParser):
    """Collects open elements, and addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_well_formed_page(make_results: Make, spread: Spread) -> None:
    """Plots are valid XML, text from outside is escaped, all elements are closed, and nothing is fetched."""
    rows: list[tuple[str, dict[str, int | str], str, Metrics]] = []
    for subject, used in (("direct", None), ("cgw", 30.0), ("go", 40.0), ("mine", 50.0)):
        metrics = Metrics(cpu_us_per_event=used, latency_us=spread(90, 100, 400), events_per_second=1e4)
        rows += [("steady", {"streams": count, "rate": 50}, subject, metrics) for count in (1, 200)]
        rows.append(("flood", {"streams": 100, "burst": 1}, subject, Metrics(events_per_second=2e5)))
        rows.append(("idle", {"streams": 1000}, subject, Metrics(rss_kib_per_stream=used)))
    rows.append(("cancel", {"phase": "streaming"}, "go", Metrics(upstream_never_closed=3)))
    text = render_report(make_results(rows))

    page = Page()
    page.feed(text)

    assert page.open == []
    assert page.fetched == []
    assert "A &lt;CPU&gt;" in text
    assert "<package>" not in text
    svgs = text.split("<svg ")[1:]
    assert len(svgs) == 5
    for svg in svgs:
        ElementTree.fromstring("<svg " + svg.partition("</svg>")[0] + "</svg>")


def test_the_plot_stands_alone(make_results: Make) -> None:
    """The plot for the README is valid SVG with each subject's name, and colours that need no style sheet."""
    rows = [
        ("steady", {"streams": count, "rate": 50}, subject, cpu(used))
        for subject, used in (("cgw", 30.0), ("go", 40.0))
        for count in (1, 200)
    ]
    text = render_cpu_plot(make_results(rows))
    plot = ElementTree.fromstring(text)
    assert plot.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"● cgw", "● go"} <= {element.text for element in plot.iter("{http://www.w3.org/2000/svg}text")}
    assert "var(--s" not in text


@pytest.mark.parametrize(("lowest", "highest"), [(1, 1), (23.4, 913), (0.7, 250_000), (99, 101)])
def test_ticks_enclose_the_values(lowest: float, highest: float) -> None:
    """The ticks of an axis enclose its values, and are 2 to 9."""
    logarithmic = log_ticks(lowest, highest)

    assert logarithmic[0] <= lowest * 1.001
    assert logarithmic[-1] >= highest * 0.999
    assert 2 <= len(logarithmic) <= 9
