"""The overlays as kustomize renders them, and walks over what they hold."""

from __future__ import annotations

import base64
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
CRDS = ROOT.parent / "shared" / "crds"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
RAY_OVERLAYS = [name for name in OVERLAYS if name != "spark"]
CRD_OF = {
    ("ray.io/v1", "RayJob"): "rayjob-ray-v1.json",
    ("sparkoperator.k8s.io/v1alpha1", "SparkConnect"): "sparkconnect-sparkoperator-v1alpha1.json",
    ("sparkoperator.k8s.io/v1beta2", "SparkApplication"): "sparkapplication-sparkoperator-v1beta2.json",
}


def renderers() -> list[list[str]]:
    """Return the commands of this machine that render an overlay: kustomize itself, and kubectl, which has it built in."""
    found = shutil.which("kustomize", path=str(Path(sys.prefix) / "bin")) or shutil.which("kustomize")
    kubectl = shutil.which("kubectl")
    return ([[found, "build"]] if found else []) + ([[kubectl, "kustomize"]] if kubectl else [])


@functools.cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """Return the documents of an overlay."""
    done = subprocess.run([*renderers()[0], str(K8S / "overlays" / overlay)], capture_output=True, text=True, timeout=120, check=True)
    return tuple(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str, name: str | None = None) -> dict[str, Any]:
    """Return the only document of a kind (and name)."""
    (found,) = [d for d in rendered(overlay) if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    return found


def templates(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pod templates of a custom resource by what they are for."""
    spec = document["spec"]
    if document["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
        return {"submitter": spec["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **groups}
    return {role: spec[role]["template"] for role in ("server", "driver", "executor") if role in spec}


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every pod template of an overlay, with a name for messages."""
    for document in rendered(overlay):
        if (document["apiVersion"], document["kind"]) in CRD_OF:
            for role, template in templates(document).items():
                yield f"{document['kind']}/{role}", template


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a pod's containers, those that run before it included."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def walk(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every value of a document with its path."""
    yield path, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


def secrets(*arguments: str) -> dict[str, dict[str, bytes]]:
    """Return what the script makes: the bytes of each secret by name and key."""
    done = subprocess.run([K8S / "secrets.sh", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return {d["metadata"]["name"]: {k: base64.b64decode(v) for k, v in d["data"].items()} for d in yaml.safe_load_all(done.stdout)}
