"""The deployments: what kustomize and compose make of them fits the schemas, the server's settings, and itself."""

import json
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from live import module_at, tool

from porestream.server.settings import Settings, environment_names, load_settings
from porestream.server.start.app import _LIVENESS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("overlays/cpu", "overlays/gpu")
# The oldest with all that is used here, and later ones.
VERSIONS = ("1.30", "1.32", "1.34")
PREFIX = "PORESTREAM_"
# Settings that name a file or folder in the container.
PATHS = ("models", "reference", "tls_certificate", "tls_key", "token_file", "cache_dir")
WRITTEN = {"cache_dir"}
SECRET_KEYS = {"porestream-tls": {"tls.crt", "tls.key"}, "porestream-tokens": {"tokens"}}

Object = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return kustomize(str(request.param))


def kustomize(folder: str) -> list[Object]:
    """What `kubectl apply -k` would send."""
    made = subprocess.run(
        [tool("kubectl"), "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert not made.stderr, made.stderr  # deprecated fields
    return list(yaml.safe_load_all(made.stdout))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def the(objects: list[Object], kind: str, name: str = "porestream") -> Object:
    found = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod_of(objects: list[Object]) -> Object:
    spec: Object = the(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def container_of(objects: list[Object]) -> Object:
    (container,) = pod_of(objects)["containers"]
    return dict(container)


def environment_of(objects: list[Object]) -> dict[str, str]:
    """Of the server's container: from ConfigMaps, then its own."""
    container = container_of(objects)
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        found |= the(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    found |= {each["name"]: each["value"] for each in container.get("env", [])}
    return found


def settings_of(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    """The server's own reading of an environment; PORESTREAM_MODELS, which must exist, becomes `folder`."""
    values = environment | {f"{PREFIX}MODELS": str(folder)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = load_settings({}, None)
    assert {environment_names()[name] for name in settings.model_fields_set} <= values.keys()
    return settings


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def bytes_of(quantity: str) -> int:
    """Of a memory limit, as Kubernetes (Gi) or compose (g, which is binary there) writes it."""
    number, unit = re.fullmatch(r"(\d+)(\D+)", quantity).groups()  # type: ignore[union-attr]
    powers = {"Mi": 20, "Gi": 30, "m": 20, "g": 30}
    return int(number) << powers[unit]


def paths_in(environment: dict[str, str]) -> dict[str, list[PurePosixPath]]:
    """The files and folders that settings name."""
    return {
        name: [PurePosixPath(part) for part in environment[f"{PREFIX}{name.upper()}"].split(",") if part]
        for name in PATHS
        if f"{PREFIX}{name.upper()}" in environment
    }


def is_under(path: PurePosixPath, mount: str) -> bool:
    return path.is_relative_to(PurePosixPath(mount))


# ---- Kubernetes: schemas


@pytest.mark.parametrize("folder", ["base", *OVERLAYS])
@pytest.mark.parametrize("version", VERSIONS)
def test_objects_fit_kubernetes_schemas(folder: str, version: str) -> None:
    checked = set()
    for each in kustomize(folder):
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, version, strict=True)
            checked.add(each["kind"])
    assert {"Namespace", "Deployment", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"} <= checked


def test_a_wrong_field_is_found() -> None:
    deployment = the(kustomize(OVERLAYS[0]), "Deployment")
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 100
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_load_data_pod_fits_and_writes_what_servers_read(objects: list[Object]) -> None:
    pod = yaml.safe_load((KUBERNETES / "load-data.yaml").read_text())
    kubernetes_validate.validate(pod, VERSIONS[0], strict=True)
    assert_restricted(pod["spec"])

    def claims(spec: Object) -> set[str]:
        return {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}

    assert claims(pod["spec"]) == claims(pod_of(objects)) == {
        each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")
    }  # fmt: skip
    assert pod["metadata"]["namespace"] == the(objects, "Namespace")["metadata"]["name"]
    # The servers' user reads what this one writes.
    assert pod["spec"]["securityContext"]["runAsUser"] == pod_of(objects)["securityContext"]["runAsUser"]


def test_everything_is_in_the_namespace(objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "porestream", each["metadata"]


def test_no_secret_is_committed() -> None:
    for folder in ("base", *OVERLAYS):
        assert not of_kind(kustomize(folder), "Secret")
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file() and path.name != ".env":  # which git ignores
            text = path.read_text()
            assert "PRIVATE KEY" not in text, path
            assert "kind: Secret\n" not in text, path
            assert "secretGenerator" not in text, path
    assert ".env" in (COMPOSE / ".gitignore").read_text().split()


# ---- Kubernetes: the server's settings


def test_settings_are_the_servers(objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = environment_of(objects)
    unknown = environment.keys() - set(environment_names().values())
    assert not unknown
    settings = settings_of(environment, monkeypatch, tmp_path)
    assert settings.token_file
    assert settings.tls_certificate
    assert settings.metrics_host == "0.0.0.0"


def test_no_link_of_a_service_becomes_a_setting(objects: list[Object]) -> None:
    assert pod_of(objects)["enableServiceLinks"] is False


def test_draining_ends_before_the_pod_is_killed(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(environment_of(objects), monkeypatch, tmp_path)
    before_s = container_of(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before_s >= 5
    assert pod_of(objects)["terminationGracePeriodSeconds"] >= before_s + settings.grace_s + 15


def test_memory_and_cores_suit_the_settings(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(environment_of(objects), monkeypatch, tmp_path)
    resources = container_of(objects)["resources"]
    assert settings.memory_budget * 2 < bytes_of(resources["limits"]["memory"])
    assert resources["requests"] == resources["limits"]
    # The server would count the node's cores.
    assert settings.threads == int(resources["limits"]["cpu"])


def test_ports_agree(objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = settings_of(environment_of(objects), monkeypatch, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in container_of(objects)["ports"]}
    assert ports == {
        "grpc": port_of(settings.listen),
        "health": port_of(settings.health_listen),
        "metrics": settings.metrics_port,
    }
    served = {}
    for service in of_kind(objects, "Service"):
        for port in service["spec"]["ports"]:
            assert port["targetPort"] == port["name"], "by name, so that it cannot differ from the container's"
            assert port["port"] == ports[port["name"]]
        served[service["metadata"]["name"]] = {port["name"] for port in service["spec"]["ports"]}
    assert served == {"porestream": {"grpc"}, "porestream-headless": {"grpc"}, "porestream-metrics": {"metrics"}}
    for name in ("porestream-headless", "porestream-metrics"):
        assert the(objects, "Service", name)["spec"]["clusterIP"] == "None"


def test_probes_ask_what_the_server_answers(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_of(environment_of(objects), monkeypatch, tmp_path)
    container = container_of(objects)
    asked = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        assert probe["grpc"]["port"] == port_of(settings.health_listen)
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
        asked[name] = probe["grpc"]["service"]
    assert asked == {"startupProbe": _LIVENESS, "readinessProbe": "", "livenessProbe": _LIVENESS}
    # Indexing a reference takes minutes; a rollout waits at least as long.
    startup_s = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert 600 <= startup_s < the(objects, "Deployment")["spec"]["progressDeadlineSeconds"]


def test_paths_are_mounted(objects: list[Object]) -> None:
    volumes = {volume["name"]: volume for volume in pod_of(objects)["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container_of(objects)["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert not any("subPath" in mount for mount in mounts.values()), "would not follow a change of its secret"
    for name, paths in paths_in(environment_of(objects)).items():
        for path in paths:
            (mount,) = [mount for where, mount in mounts.items() if is_under(path, where)]
            assert mount.get("readOnly", False) is (name not in WRITTEN)
            volume = volumes[mount["name"]]
            if secret := volume.get("secret"):
                assert path.name in SECRET_KEYS[secret["secretName"]]
                assert secret["defaultMode"] == 0o440
    assert {volume["secret"]["secretName"] for volume in volumes.values() if "secret" in volume} == set(SECRET_KEYS)
    for name in ("models", "references"):
        assert volumes[name]["persistentVolumeClaim"]["readOnly"]
        the(objects, "PersistentVolumeClaim", volumes[name]["persistentVolumeClaim"]["claimName"])
    for path in ("/tmp", "/cache"):
        assert volumes[mounts[path]["name"]]["emptyDir"]["sizeLimit"]


# ---- Kubernetes: the objects among themselves


def assert_restricted(pod: Object) -> None:
    """The Pod Security Standard of that name, and what goes beyond it here."""
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser", "seccompProfile"} & set(own)
        assert not any("hostPort" in port for port in container.get("ports", []))
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


def test_pods_are_restricted(objects: list[Object]) -> None:
    assert_restricted(pod_of(objects))
    labels = the(objects, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    # The image's user.
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()


def test_selectors_match(objects: list[Object]) -> None:
    deployment = the(objects, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["selector"]["matchLabels"],
        the(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(service["spec"]["selector"] for service in of_kind(objects, "Service")),
        *(each["labelSelector"]["matchLabels"] for each in pod_of(objects)["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels
    assert the(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_only_who_should_reaches_a_port(objects: list[Object]) -> None:
    policy = the(objects, "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    ports = {port["name"]: port["containerPort"] for port in container_of(objects)["ports"]}
    allowed = {}
    for rule in policy["ingress"]:
        (port,) = rule["ports"]
        allowed[port["port"]] = rule.get("from")
    key = "porestream.io/client"
    pods = {"matchExpressions": [{"key": key, "operator": "In", "values": ["true"]}]}
    namespaces = {"matchLabels": {key: "true"}}
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert allowed == {
        ports["grpc"]: [{"podSelector": pods}, {"namespaceSelector": namespaces}],
        ports["metrics"]: [{"namespaceSelector": monitoring}],
        ports["health"]: None,
    }


def test_cpu_pods_are_replaced_before_they_end() -> None:
    objects = kustomize("overlays/cpu")
    rollout = the(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxUnavailable": 0, "maxSurge": 1}
    assert container_of(objects)["image"] == "porestream:cpu"
    assert environment_of(objects)["PORESTREAM_DEVICE"] == "cpu"


def test_gpu_pods_have_a_card_each() -> None:
    objects = kustomize("overlays/gpu")
    rollout = the(objects, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxUnavailable": 1, "maxSurge": 0}
    assert container_of(objects)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container_of(objects)["image"] == "porestream:gpu"
    assert environment_of(objects)["PORESTREAM_DEVICE"] == "cuda"


def test_a_changed_setting_is_a_rollout(tmp_path: Path) -> None:
    before = container_of(kustomize("overlays/cpu"))["envFrom"]
    copy = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, copy)
    with (copy / "overlays/cpu/settings.env").open("a") as settings:
        settings.write("PORESTREAM_MAX_STREAMS=8\n")
    made = subprocess.run(
        [tool("kubectl"), "kustomize", str(copy / "overlays/cpu")], capture_output=True, text=True, check=True
    )
    assert container_of(list(yaml.safe_load_all(made.stdout)))["envFrom"] != before


def data_of(pods: Object) -> set[str]:
    """The claims and secrets that pods mount."""
    kinds = (("persistentVolumeClaim", "claimName"), ("secret", "secretName"))
    volumes = pods["spec"]["volumes"]
    return {volume[kind][name] for volume in volumes for kind, name in kinds if kind in volume}


def test_a_version_beside_another_shares_its_data_and_no_pod() -> None:
    old, new = kustomize("overlays/cpu"), kustomize("overlays/beside")
    for each in new:
        kubernetes_validate.validate(each, VERSIONS[0], strict=True)
    names = [{(each["kind"], each["metadata"]["name"]) for each in objects} for objects in (old, new)]
    assert not names[0] & names[1]
    kinds = {each["kind"] for each in old} - {each["kind"] for each in new}
    assert kinds == {"Namespace", "PersistentVolumeClaim", "ServiceMonitor", "PrometheusRule"}
    (old_pods, new_pods) = (
        next(each for each in of_kind(objects, "Deployment"))["spec"]["template"] for objects in (old, new)
    )
    for objects, others in ((old, new_pods), (new, old_pods)):
        selectors = [service["spec"]["selector"] for service in of_kind(objects, "Service")]
        selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of_kind(objects, "PodDisruptionBudget")]
        selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(objects, "NetworkPolicy")]
        assert len(selectors) == 5
        for selector in selectors:
            assert not selector.items() <= others["metadata"]["labels"].items()
    assert data_of(old_pods) == data_of(new_pods)
    assert of_kind(new, "NetworkPolicy")[0]["spec"]["ingress"] == the(old, "NetworkPolicy")["spec"]["ingress"]
    # The first version's monitor finds the second's pods.
    selector = the(old, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    assert [each for each in of_kind(new, "Service") if selector <= each["metadata"]["labels"].items()]


# ---- The operator's objects, for which there is no schema here


def test_service_monitor_finds_the_metrics_port(objects: list[Object]) -> None:
    monitor = the(objects, "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"jobLabel", "selector", "endpoints"}
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [each for each in of_kind(objects, "Service") if selector <= each["metadata"]["labels"].items()]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint == {"port": "metrics", "interval": "15s"}
    assert "metrics" in {port["name"] for port in service["spec"]["ports"]}
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "porestream"  # as in compose's prometheus.yml


def prometheus_rule() -> Any:
    return module_at(KUBERNETES / "prometheus_rule.py")


def test_prometheus_rule_is_that_of_the_rule_files(objects: list[Object]) -> None:
    generator = prometheus_rule()
    assert generator.TARGET.read_text() == generator.render(), "python deploy/kubernetes/prometheus_rule.py"
    rule = the(objects, "PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(rule["spec"]) == {"groups"}
    for group in rule["spec"]["groups"]:
        assert set(group) <= {"name", "interval", "rules", "limit", "labels", "query_offset"}
        for each in group["rules"]:
            assert ("alert" in each) != ("record" in each)
            assert set(each) <= {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}


def test_prometheus_rule_keeps_what_rules_say(tmp_path: Path) -> None:
    groups = [
        {
            "name": "a",
            "rules": [
                {
                    "alert": "Slow",
                    "expr": 'sum by (job) (rate(x_total{job="porestream"}[5m]))\n  > 0.5\n',
                    "for": "5m",
                    "annotations": {"summary": "{{ $labels.instance }}: {{ $value | humanize }} µs: slow"},
                }
            ],
        }
    ]
    (tmp_path / "b.yml").write_text(yaml.safe_dump({"groups": groups}))
    (tmp_path / "a.yml").write_text("rule_files: []\n")
    generator = prometheus_rule()
    assert yaml.safe_load(generator.render(tmp_path))["spec"]["groups"] == groups
    (tmp_path / "c.yml").write_text(yaml.safe_dump({"groups": groups}))
    with pytest.raises(ValueError, match="have the same name: a"):
        generator.render(tmp_path)


# ---- compose

OVERRIDES = ("compose.gpu.yaml", "compose.tls.yaml")
VARIABLES = {"GRAFANA_PASSWORD": "secret", "MODELS": "/lab/models", "REFERENCES": "/lab/references", "TLS": "/lab/tls"}
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(:(?P<kind>[-?])(?P<text>[^}]*))?\}")


def interpolate(tree: Any, variables: dict[str, str]) -> Any:
    """As compose does, after parsing, with ${NAME:-default} and ${NAME:?message}, the two forms used here."""
    if isinstance(tree, dict):
        return {key: interpolate(value, variables) for key, value in tree.items()}
    if isinstance(tree, list):
        return [interpolate(value, variables) for value in tree]

    def value(match: re.Match[str]) -> str:
        if found := variables.get(match["name"]):
            return found
        if match["kind"] == "-":
            return str(match["text"])
        raise KeyError(match["name"])

    return _VARIABLE.sub(value, tree) if isinstance(tree, str) else tree


def read_compose(name: str, variables: dict[str, str] = VARIABLES) -> Object:
    """One file, with variables' values."""
    read: Object = interpolate(yaml.safe_load((COMPOSE / name).read_text()), variables)
    return read


def compose(*names: str, **variables: str) -> Object:
    """Compose files, merged: mappings by key, lists one after the other, as compose does with all lists used here."""
    merged: Object = {}
    for name in ("compose.yaml", *names):
        merged = merge(merged, read_compose(name, VARIABLES | variables))
    return merged


def merge(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {key: merge(one[key], value) if key in one else value for key, value in other.items()}
    if isinstance(one, list) and isinstance(other, list):
        return one + other
    return other


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.fixture(params=[(), OVERRIDES[:1], OVERRIDES[1:], OVERRIDES], ids=lambda names: "+".join(("compose", *names)))
def project(request: pytest.FixtureRequest) -> Object:
    return compose(*request.param)


def test_compose_files_fit_the_specification() -> None:
    schema = json.loads((ROOT / "tests" / "ops" / "compose-spec.json").read_text())
    # Both came after this version of the schema; Docker Compose has them since 2.3.3 and 2.0.
    schema["properties"]["name"] = {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"}
    volume = schema["definitions"]["service"]["properties"]["volumes"]["items"]["oneOf"][1]
    volume["properties"]["bind"]["properties"]["create_host_path"] = {"type": "boolean"}
    validator = jsonschema.Draft201909Validator(schema)
    for name in ("compose.yaml", *OVERRIDES):
        validator.validate(read_compose(name))
    validator.validate(compose(*OVERRIDES))
    with pytest.raises(jsonschema.ValidationError, match="read_onyl"):
        validator.validate({"services": {"server": {"read_onyl": True}}})


def test_compose_services_are_confined(project: Object) -> None:
    assert set(project["services"]) == {"server", "prometheus", "grafana"}
    for name, service in project["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].partition(":")[0]) > 0, name
        assert service["restart"] == "unless-stopped", name
        assert any(each.startswith("/tmp") for each in service["tmpfs"]), name
        assert service["mem_limit"], name
        assert not {"privileged", "network_mode", "pid", "cap_add"} & set(service), name
        assert re.fullmatch(r"[\w./-]+:(cpu|gpu|v?\d+\.\d+\.\d+)", service["image"]), "pinned"
        for port in service["ports"]:
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


def test_compose_settings_are_the_servers(project: Object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = project["services"]["server"]
    settings = settings_of(server["environment"], monkeypatch, tmp_path)
    assert seconds(server["stop_grace_period"]) >= settings.grace_s + 15
    assert settings.memory_budget * 2 < bytes_of(server["mem_limit"])
    published = {int(port.rpartition(":")[2]) for port in server["ports"]}
    assert published == {port_of(settings.listen), settings.metrics_port}
    assert server["healthcheck"]["test"] == ["CMD", "porestream", "health"]
    # `porestream health` asks the port without TLS, whatever the other one has.
    assert settings.health_listen


def test_compose_paths_are_mounted(project: Object) -> None:
    server = project["services"]["server"]
    mounts = {}
    for volume in server["volumes"]:
        if isinstance(volume, str):
            name, _, where = volume.partition(":")
            assert name in project["volumes"]
            mounts[where] = False
        else:
            assert volume["bind"] == {"create_host_path": False}
            mounts[volume["target"]] = volume["read_only"]
    for name, paths in paths_in(server["environment"]).items():
        for path in paths:
            (where,) = [where for where in mounts if is_under(path, where)]
            assert mounts[where] is (name not in WRITTEN)
    assert {"/models", "/references"} <= set(mounts)


def test_compose_asks_for_what_it_cannot_do_without() -> None:
    for name in ("GRAFANA_PASSWORD", "MODELS", "REFERENCES"):
        with pytest.raises(KeyError, match=name):
            read_compose("compose.yaml", {**VARIABLES, name: ""})
    offered = set(re.findall(r"^#?([A-Z_]+)=", (COMPOSE / ".env.example").read_text(), re.MULTILINE))
    used = {
        match["name"]
        for each in ("compose.yaml", *OVERRIDES)
        for match in _VARIABLE.finditer((COMPOSE / each).read_text())
    }
    assert offered == used | {"COMPOSE_FILE"}  # compose's own


def test_compose_example_variables_are_consistent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = (COMPOSE / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert not example["GRAFANA_PASSWORD"], "chosen by whoever copies it"
    server = compose(**{key: value for key, value in example.items() if value})["services"]["server"]
    assert server == compose(MODELS=example["MODELS"], REFERENCES=example["REFERENCES"])["services"]["server"]


def test_compose_gpu_has_one_card() -> None:
    server = compose("compose.gpu.yaml")["services"]["server"]
    assert server["build"] == {"context": "../..", "target": "gpu"}
    assert server["image"] == "porestream:gpu"
    assert server["environment"]["PORESTREAM_DEVICE"] == "cuda"
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_compose_builds_targets_of_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for names in ((), ("compose.gpu.yaml",)):
        build = compose(*names)["services"]["server"]["build"]
        assert (COMPOSE / build["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
        assert re.search(rf"^FROM \S+ AS {build['target']}$", text, re.MULTILINE)


def test_compose_mounts_files_that_are_there() -> None:
    for name in ("prometheus", "grafana"):
        for volume in compose()["services"][name]["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), source


def test_prometheus_scrapes_the_server() -> None:
    project = compose()
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    assert config["global"]["scrape_interval"] == "15s"
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "porestream"
    port = project["services"]["server"]["environment"]["PORESTREAM_METRICS_PORT"]
    assert job["static_configs"] == [{"targets": [f"server:{port}"]}]
    mounted = [volume.split(":")[1] for volume in project["services"]["prometheus"]["volumes"]]
    (rules,) = config["rule_files"]
    assert [path for path in mounted if PurePosixPath(path).match(rules)] == [
        "/etc/prometheus/rules/recording.yml",
        "/etc/prometheus/rules/alerts.yml",
    ]
    assert f"--config.file={mounted[0]}" in project["services"]["prometheus"]["command"]


def test_promtool_takes_the_configuration() -> None:
    made = subprocess.run(
        [tool("promtool"), "check", "config", "--syntax-only", str(COMPOSE / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_grafana_is_provisioned() -> None:
    project = compose()
    folder = COMPOSE / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards" / "porestream.yml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in project["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    assert "/etc/grafana/provisioning" in mounted
