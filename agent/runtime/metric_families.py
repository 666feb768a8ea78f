"""Families of metrics, each under the prefix `testcni_`."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric


def gauge(name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a gauge; `values` are by the values of the labels."""
    family = GaugeMetricFamily(f"testcni_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def counter(name: str, text: str, labels: list[str], counts: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a counter; `counts` are by the values of the labels."""
    family = CounterMetricFamily(f"testcni_{name}", text, labels=labels)
    for key, count in counts.items():
        family.add_metric(key, count)
    return family
