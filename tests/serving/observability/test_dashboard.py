"""Every query of the Grafana dashboard finds its metrics and labels in what the running server shows."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import VectorSelector

from qwen_vqa.serving import observability
from tests.serving.asgi import ask, image_part

DASHBOARD = json.loads((Path(observability.__file__).parent / "grafana_dashboard.json").read_text(encoding="utf-8"))
QUERIES = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
# What the scraper adds.
SCRAPED = {"job", "instance"}
VARIABLES = {"$__rate_interval": "5m", "$job": ".*"}


@pytest.fixture(scope="module")
def shown(guarded_server) -> dict[str, set[str]]:
    """The samples of /metrics after some traffic: each name with its labels."""
    client = guarded_server.client_with(guarded_server.keys["alice"])
    ask(client, image_part(), {"type": "text", "text": "hi"}, max_tokens=4)
    assert httpx.get(f"{guarded_server.url}/models").status_code == 401
    reply = httpx.get(f"{guarded_server.address}/metrics", headers=guarded_server.headers("alice"))
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


def parsed(expression: str) -> promql_parser.Expr:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return promql_parser.parse(expression)


def nodes(expression) -> Iterator:
    """The expression and everything in it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        inner = getattr(expression, name, None)
        if inner is not None:
            yield from nodes(inner)
    arguments = getattr(expression, "args", None)
    for argument in arguments if isinstance(arguments, list) else []:
        yield from nodes(argument)


@pytest.mark.parametrize(("title", "target"), QUERIES, ids=[f"{title} {t['refId']}" for title, t in QUERIES])
def test_a_query_finds_its_metrics_and_labels(shown: dict[str, set[str]], title: str, target: dict):
    tree = list(nodes(parsed(target["expr"])))
    selectors = [node for node in tree if isinstance(node, VectorSelector)]
    assert selectors, "no metric in it"
    names = {selector.name for selector in selectors}
    assert names <= set(shown), f"not in /metrics: {sorted(names - set(shown))}"
    labels = {matcher.name for selector in selectors for matcher in selector.matchers.matchers}
    grouped = {label for node in tree if getattr(node, "modifier", None) for label in node.modifier.labels or []}
    legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    known = set.intersection(*(shown[name] for name in names)) | SCRAPED
    assert labels | grouped | legend <= known
    assert legend <= grouped, "a legend shows only what the query keeps"


def test_every_metric_of_ours_is_on_the_dashboard(shown: dict[str, set[str]]):
    text = json.dumps(DASHBOARD)
    ours = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in shown if name.startswith("qwen_vqa_")}
    missing = sorted(name for name in ours if name not in text)
    assert missing == []
