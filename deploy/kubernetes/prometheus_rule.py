"""Generate base/prometheus-rule.yaml, for the Prometheus operator, from the rules in deploy/prometheus.

kustomize reads nothing outside its own folders, so the generated file is committed;
tests/ops/test_manifests.py checks that it is up to date.

    python deploy/kubernetes/prometheus_rule.py
"""

from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).resolve().parent
RULES = _HERE.parent / "prometheus"
TARGET = _HERE / "base" / "prometheus-rule.yaml"
_HEADER = "# Made by deploy/kubernetes/prometheus_rule.py from deploy/prometheus; do not edit.\n"


def render(folder: Path = RULES) -> str:
    """Return the PrometheusRule with the groups of all rule files in a folder, ordered by file name.

    Raises
    ------
    ValueError
        Two groups have the same name, which Kubernetes does not allow.
    """
    groups: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.yml")):
        groups += yaml.safe_load(path.read_text()).get("groups") or []  # other Prometheus files have no groups
    names = [group["name"] for group in groups]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several groups in {folder} have the same name: {', '.join(sorted(twice))}; rename them")
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "porestream", "labels": {"app.kubernetes.io/name": "porestream"}},
        "spec": {"groups": groups},
    }
    return _HEADER + yaml.safe_dump(rule, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(render())
