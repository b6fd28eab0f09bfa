"""The Dockerfile, compose.yaml and deploy/, as far as they can be held against the code without building an image."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Histogram

from trimtab.cli.main import build_parser
from trimtab.serving.config import read_config
from trimtab.serving.limits import Limits
from trimtab.serving.metrics import Metrics

UID = "10001"


@pytest.fixture
def deploy(repository: Path) -> Path:
    return repository / "deploy"


@pytest.fixture
def dockerfile(repository: Path) -> str:
    return (repository / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.fixture
def compose(repository: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((repository / "compose.yaml").read_text(encoding="utf-8"))
    return read


@pytest.fixture
def kubernetes(deploy: Path) -> dict[str, Any]:
    documents = yaml.safe_load_all((deploy / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


def _instruction(dockerfile: str, name: str) -> list[str]:
    (found,) = re.findall(rf"^(?:HEALTHCHECK.*)?\s*{name} (\[.*\])$", dockerfile, flags=re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def _accepted(words: list[str]) -> Any:
    return build_parser().parse_args(words[1:])


def test_the_image_starts_a_server_that_listens_on_its_port(dockerfile: str) -> None:
    command = re.findall(r"^CMD (\[.*\])$", dockerfile, flags=re.MULTILINE)
    args = _accepted([*_instruction(dockerfile, "ENTRYPOINT"), *json.loads(command[0])])
    assert (args.command, args.host) == ("serve", "0.0.0.0")
    assert f"EXPOSE {args.port}" in dockerfile
    assert f"http://127.0.0.1:{args.port}/health" in dockerfile
    assert args.config.startswith(re.findall(r"^WORKDIR (/config)$", dockerfile, flags=re.MULTILINE)[-1])


def test_the_image_runs_without_root_and_writes_below_its_volume(dockerfile: str) -> None:
    last = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert f"USER {UID}:{UID}" in last
    assert last.index("USER ") < last.index("ENTRYPOINT")
    for variable in ("HF_HOME", "TRIMTAB_CACHE"):
        assert re.search(rf"\b{variable}=/models/", last), variable
    assert "VOLUME /models" in last
    assert "HOME=/tmp " in last


def test_what_the_image_is_built_from_is_sent_to_the_builder(repository: Path, dockerfile: str) -> None:
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, flags=re.MULTILINE)
        for name in line.split()[:-1]
    ]
    let_in = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    assert all((repository / name).exists() for name in copied)


def test_compose_starts_the_server_that_the_image_is(dockerfile: str, compose: dict[str, Any]) -> None:
    server = compose["services"]["trimtab"]
    args = _accepted([*_instruction(dockerfile, "ENTRYPOINT"), *server["command"]])
    assert server["ports"] == [f"127.0.0.1:{args.port}:{args.port}"]
    assert args.api_key_file == f"/run/secrets/{server['secrets'][0]}"
    assert set(server["build"]["args"]) == set(re.findall(r"^ARG (\w+)", dockerfile, flags=re.MULTILINE))
    assert float(server["stop_grace_period"].removesuffix("s")) > Limits().drain_s


def test_every_container_is_read_only_and_has_no_rights(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_what_compose_mounts_is_there(repository: Path, compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (repository / source).is_dir() if source.startswith(".") else source in compose["volumes"], volume
        assert set(service.get("secrets", ())) <= set(compose["secrets"])


def test_what_is_added_for_a_gpu_is_a_service_of_compose(repository: Path, compose: dict[str, Any]) -> None:
    added = yaml.safe_load((repository / "compose.cuda.yaml").read_text(encoding="utf-8"))
    assert set(added["services"]) <= set(compose["services"])


def test_the_configuration_that_is_served_is_one(deploy: Path) -> None:
    config = read_config(deploy / "serve" / "serve.yaml")
    assert config.model
    assert {guide for weights in config.presets.values() for guide in weights} <= set(config.guides)


def test_no_key_goes_into_an_archive_or_a_commit(repository: Path, compose: dict[str, Any]) -> None:
    file = compose["secrets"]["api-key"]["file"].removeprefix("./")
    assert f"/{file}\n" in (repository / ".gitignore").read_text()
    assert f"exclude {file}\n" in (repository / "MANIFEST.in").read_text()


def test_prometheus_asks_the_server_with_its_key(deploy: Path, compose: dict[str, Any]) -> None:
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["trimtab:8000"]}]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{compose['services']['prometheus']['secrets'][0]}"
    assert [(deploy / "prometheus" / name).is_file() for name in config["rule_files"]] == [True]


def test_grafana_finds_its_dashboard_and_its_source(deploy: Path, compose: dict[str, Any]) -> None:
    provisioning = deploy / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "trimtab.yml").read_text())["providers"]
    targets = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in targets
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in _dashboard(deploy)["panels"]} == {source["uid"]}
    assert source["url"].split("//")[1].split(":")[0] in compose["services"]


def _dashboard(deploy: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((deploy / "grafana" / "dashboards" / "trimtab.json").read_text("utf-8"))
    return read


def _expressions(deploy: Path) -> Iterator[str]:
    for panel in _dashboard(deploy)["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((deploy / "prometheus" / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def _samples() -> dict[str, set[str]]:
    """Name of a sample that the server gives -> its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            (family,) = metric.describe()
            endings = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("_total",)
            endings = ("",) if family.type == "gauge" else endings
            for ending in endings:
                found[f"{family.name}{ending}"] = {*metric._labelnames, *(["le"] if ending == "_bucket" else [])}
    return found


def test_every_metric_that_is_drawn_or_watched_is_one_of_the_servers(deploy: Path) -> None:
    samples = _samples()
    assert samples["trimtab_answers_total"] == {"finish_reason"}
    page = Metrics().page().decode()
    assert all(name in page for name in samples if name.endswith(("length", "size", "tokens_total")))
    for expression in _expressions(deploy):
        names = re.findall(r"\btrimtab_\w+", expression)
        assert [name for name in names if name not in samples] == [], expression
        used = {label.strip() for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(",")}
        used |= set(re.findall(r"[{,]\s*(\w+)=", expression.replace('up{job="trimtab"}', "")))
        assert used <= set().union(*(samples[name] for name in names)), expression
        assert expression.count("(") == expression.count(")")


def test_every_metric_of_the_servers_is_drawn(deploy: Path) -> None:
    drawn = {name for expression in _expressions(deploy) for name in re.findall(r"\btrimtab_\w+", expression)}
    missing = {name for name in _samples() if not name.endswith(("_sum", "_count"))} - drawn
    assert missing == set(), "the dashboard does not show them"


def test_a_legend_names_labels_that_its_panel_sums_by(deploy: Path) -> None:
    for panel in _dashboard(deploy)["panels"]:
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            summed = re.search(r"sum by \(([\w, ]+)\)", target["expr"])
            assert labels <= set(summed[1].replace(" ", "").split(",") if summed else ()), target


def test_kubernetes_starts_the_server_and_asks_its_routes(dockerfile: str, kubernetes: dict[str, Any]) -> None:
    pod = kubernetes["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = _accepted([*_instruction(dockerfile, "ENTRYPOINT"), *container["args"]])
    assert container["ports"] == [{"name": "http", "containerPort": args.port}]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: get["path"] for name, get in asked.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    # A pod's address is no name that a server with --allow-host answers to.
    assert all(get["httpHeaders"] == [{"name": "Host", "value": "localhost"}] for get in asked.values())
    assert pod["terminationGracePeriodSeconds"] > Limits().drain_s
    assert str(pod["securityContext"]["runAsUser"]) == UID
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert {one["mountPath"] for one in container["volumeMounts"]} >= {"/models", "/config", "/tmp"}


def test_the_page_says_what_was_not_tried(repository: Path) -> None:
    page = (repository / "docs" / "serving" / "containers.md").read_text(encoding="utf-8")
    assert "No image was built" in page
    for path in re.findall(r"\]\(\.\./\.\./([^)#]+)\)", page):
        assert (repository / path).exists(), path
