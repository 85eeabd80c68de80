"""Every overlay renders cleanly, fits its schemas, refers to what exists, and grants as little as it can."""

from __future__ import annotations

import copy
import ipaddress
import json
import re
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.rendering import (
    CRD_OF,
    CRDS,
    K8S,
    OVERLAYS,
    RAY_OVERLAYS,
    containers,
    one,
    pods,
    rendered,
    renderers,
    secrets,
    templates,
    walk,
)
from topicscale.config import Config

pytestmark = pytest.mark.skipif(not renderers(), reason="needs kustomize (make test installs it where there is Go) or kubectl")

KUBERNETES = "1.34"
README = (K8S / "README.md").read_text(encoding="utf-8")


def core_errors(document):
    """Return what Kubernetes' own schema says against a document, unknown fields included."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{list(error.absolute_path)}: {error.message}"]
    return []


def crd_errors(document):
    """Return what a custom resource's schema says against a document. Templates it leaves open are checked as Kubernetes' own."""
    if not CRDS.is_dir():
        pytest.skip("needs the schemas of the custom resources beside the checkout (../shared/crds)")
    schema = json.loads((CRDS / CRD_OF[document["apiVersion"], document["kind"]]).read_text())
    found = [f"{list(e.absolute_path)}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(document)]
    for template in templates(document).values():
        found += core_errors({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})
    return found


def errors(document):
    custom = (document["apiVersion"], document["kind"]) in CRD_OF
    return crd_errors(document) if custom else core_errors(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rendering_is_clean_and_the_same_with_every_tool(overlay) -> None:
    texts = set()
    for command in renderers():
        done = subprocess.run([*command, K8S / "overlays" / overlay], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, ""), command
        texts.add(done.stdout)
    assert len(texts) == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_fits_its_schema(overlay) -> None:
    found = {f"{d['kind']}/{d['metadata']['name']}": errors(d) for d in rendered(overlay)}
    assert found == {name: [] for name in found}


@pytest.mark.parametrize(
    ("overlay", "kind", "path", "value"),
    [
        ("cpu", "RayJob", ("spec", "backofLimit"), 3),
        ("cpu", "RayJob", ("spec", "backoffLimit"), "three"),
        ("cpu", "RayJob", ("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        ("cpu", "RayJob", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "serviceAcountName"), "x"),
        ("cpu", "SparkConnect", ("spec", "sparkConf", "spark.ui.enabled"), False),
        ("cpu", "SparkConnect", ("spec", "server", "template", "spec", "securityContext", "runAsNonroot"), True),
        ("spark", "SparkApplication", ("spec", "driver", "cores"), "8"),
        ("spark", "SparkApplication", ("spec", "executor", "template", "spec", "containers"), {}),
        ("cpu", "NetworkPolicy", ("spec", "policyType"), ["Ingress"]),
        ("cpu", "PodDisruptionBudget", ("spec", "minAvailable"), True),
        ("cpu", "ServiceAccount", ("automountServiceAccountToken",), "no"),
    ],
)
def test_a_wrong_field_is_refused(overlay, kind, path, value) -> None:
    document = copy.deepcopy(next(d for d in rendered(overlay) if d["kind"] == kind))
    assert errors(document) == []
    inside = document
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    assert errors(document) != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_referred_to_exists_or_is_made_by_hand(overlay) -> None:
    there = {(d["kind"], d["metadata"]["name"]) for d in rendered(overlay)} | {("ConfigMap", "kube-root-ca.crt")}
    wanted = {("Secret", one(overlay, "RayJob")["spec"]["rayClusterSpec"]["authOptions"]["secretName"])} if overlay != "spark" else set()
    for _, template in pods(overlay):
        wanted.add(("ServiceAccount", template["spec"]["serviceAccountName"]))
        for path, value in walk(template):
            match path[-2:]:
                case ("secretKeyRef" | "secretRef", "name") | ("secret", "secretName"):
                    wanted.add(("Secret", value))
                case ("configMap" | "configMapRef" | "configMapKeyRef", "name"):
                    wanted.add(("ConfigMap", value))
                case ("persistentVolumeClaim", "claimName"):
                    wanted.add(("PersistentVolumeClaim", value))
    for document in rendered(overlay):
        for path, value in walk(document):
            if len(path) > 2 and path[-3] == "imagePullSecrets":
                wanted.add(("Secret", value))
            if len(path) > 2 and path[-3] == "subjects" and path[-1] == "name":
                wanted.add(("ServiceAccount", value))
    missing = wanted - there
    assert {kind for kind, _ in missing} <= {"Secret"}, missing
    assert not [name for _, name in missing if f"`{name}`" not in README]
    # and nothing lies about that nothing needs
    configs = {name for kind, name in there if kind in ("ConfigMap", "ServiceAccount", "PersistentVolumeClaim")}
    used = {name for _, name in wanted} | {"kube-root-ca.crt"}
    assert configs - used <= ({"topicscale-ray-head", "topicscale-ray-worker", "topicscale-submitter"} if overlay == "spark" else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_mount_has_its_volume_and_every_file_named_is_mounted(overlay) -> None:
    for name, template in pods(overlay):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        for container in containers(template):
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container.get("volumeMounts", [])}
            words = [*container.get("command", []), *container.get("args", [])]
            words += [v["value"] for v in container.get("env", []) if "value" in v]
            for file in re.findall(r"/etc/topicscale[\w.\-/]*", " ".join(words)):
                assert file in files(overlay, mounts), (name, container["name"], file)


def files(overlay, mounts):
    """Return the paths of the files that ConfigMaps and secrets bring to a container."""
    found = set()
    for path, volume in mounts.items():
        if "configMap" in volume and volume["configMap"]["name"] != "kube-root-ca.crt":
            found |= {f"{path}/{key}" for key in one(overlay, "ConfigMap", volume["configMap"]["name"])["data"]}
        if "secret" in volume:
            found |= {f"{path}/{item['path']}" for item in volume["secret"]["items"]}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_finds_its_configuration_where_it_runs(overlay) -> None:
    if overlay == "spark":
        (document, role), arguments = (one(overlay, "SparkApplication"), "driver"), one(overlay, "SparkApplication")["spec"]["arguments"]
    else:
        (document, role), arguments = (one(overlay, "RayJob"), "head"), one(overlay, "RayJob")["spec"]["entrypoint"].split()
    template = templates(document)[role]
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in template["spec"]["containers"][0]["volumeMounts"]}
    assert arguments[arguments.index("--config") + 1] in files(overlay, mounts)
    data = one(overlay, "ConfigMap", "topicscale-job")["data"]
    config = Config.from_dict(yaml.safe_load(data["job.yaml"]))
    local = [path for path in (*config.input.paths, arguments[arguments.index("--store") + 1]) if "://" not in path]
    for name, pod in pods(overlay):  # what is a path is the same path in every pod that reads or writes it
        if name.endswith(("submitter",)):
            continue
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        here = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        for path in local:
            groups = [group["groupName"] for group in (document["spec"]["rayClusterSpec"]["workerGroupSpecs"]) if group["maxReplicas"]]
            if name.split("/")[1] in ("gpu", "llm") and name.split("/")[1] not in groups:
                continue
            assert path in files(overlay, here) or any("persistentVolumeClaim" in v and path.startswith(f"{m}/") for m, v in here.items())


@pytest.mark.parametrize("overlay", RAY_OVERLAYS)
def test_the_job_asks_for_workers_that_its_groups_can_give(overlay) -> None:
    config = Config.from_dict(yaml.safe_load(one(overlay, "ConfigMap", "topicscale-job")["data"]["job.yaml"]))
    groups = one(overlay, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["cpu", "gpu", "llm"]
    room = least = 0
    for group in groups:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        fits = int(limits["cpu"]) // config.ray.cpus_per_actor
        if config.ray.gpus_per_actor:
            fits = min(fits, int(gpus / config.ray.gpus_per_actor))
        room += group["maxReplicas"] * fits
        least += group["minReplicas"] * fits
    # work begins with the first worker, and the autoscaler brings machines for the others
    assert room >= config.ray.actors
    assert least >= 1
    assert config.ray.address == "auto"
    assert config.spark.remote == "sc://topicscale-spark-server:15002/;use_ssl=true"
    assert one(overlay, "SparkConnect")["metadata"]["name"] + "-server" == "topicscale-spark-server"  # the operator's name of its service


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_and_bounded(overlay) -> None:
    for name, template in pods(overlay):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume], name
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            if container["name"] != "spark-kubernetes-executor":  # Spark writes those from its own settings
                assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
                assert "memory" in container["resources"]["limits"], name
            if container["name"] != "wait-for-spark" and container["name"] != "tls":
                assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], name
    for document in rendered(overlay):
        if document["kind"] == "ServiceAccount":
            assert document["automountServiceAccountToken"] is False
    assert one(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rights_are_those_of_spark_s_driver_alone(overlay) -> None:
    (role,) = [d for d in rendered(overlay) if d["kind"] == "Role"]
    assert not [d for d in rendered(overlay) if d["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"pods", "configmaps"}
    assert not [rule for rule in role["rules"] if "*" in rule["verbs"]]
    assert [s["name"] for s in one(overlay, "RoleBinding")["subjects"]] == ["topicscale-spark-driver"]
    holders = {
        name for name, template in pods(overlay) for container in containers(template) for mount in container.get("volumeMounts", [])
        if mount["mountPath"].startswith("/var/run/secrets")
    }  # fmt: skip
    assert holders == ({"SparkApplication/driver"} if overlay == "spark" else {"SparkConnect/server"})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_go_to_spot_nodes_and_what_a_job_cannot_lose_does_not(overlay) -> None:
    for name, template in pods(overlay):
        affinity = template["spec"]["affinity"]["nodeAffinity"]
        keys = {toleration["key"] for toleration in template["spec"].get("tolerations", [])}
        if name.split("/")[1] in ("cpu", "gpu", "llm", "executor"):
            spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
            assert keys == spot | ({"nvidia.com/gpu"} if name.split("/")[1] in ("gpu", "llm") else set()), name
            assert len(affinity["preferredDuringSchedulingIgnoredDuringExecution"]) == 4, name
        else:
            assert not keys, name
            (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert [part["operator"] for part in term["matchExpressions"]] == ["NotIn"] * 4, name
    guarded = [d["spec"]["selector"]["matchLabels"] for d in rendered(overlay) if d["kind"] == "PodDisruptionBudget"]
    labels = {name: template["metadata"]["labels"] for name, template in pods(overlay)}
    for name, label in labels.items():
        assert (label in guarded) == (name.split("/")[1] in ("head", "server", "driver")), name


def selects(selector, labels) -> bool:
    ok = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    for part in selector.get("matchExpressions", []):
        assert part["operator"] == "In"
        ok = ok and labels.get(part["key"]) in part["values"]
    return ok


def may_talk(overlay, source, target, port) -> bool:
    """Tell whether the policies let one kind of pod open a connection to another, by Kubernetes' rules: both sides must allow it."""

    def allowed(pod, other, direction, peer):
        policies = [d["spec"] for d in rendered(overlay) if d["kind"] == "NetworkPolicy" and direction in d["spec"]["policyTypes"]]
        policies = [spec for spec in policies if selects(spec["podSelector"], pod)]
        assert policies  # nothing is open for want of a policy
        for spec in policies:
            for rule in spec.get(direction.lower(), []):
                ports = rule.get("ports")
                fits = ports is None or any(p["port"] == port and p["protocol"] == "TCP" for p in ports)
                pods = [p["podSelector"] for p in rule[peer] if "podSelector" in p and "namespaceSelector" not in p]
                if fits and any(selects(selector, other) for selector in pods):
                    return True
        return False

    return allowed(source, target, "Egress", "to") and allowed(target, source, "Ingress", "from")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_is_closed_but_for_what_is_needed(overlay) -> None:
    deny = one(overlay, "NetworkPolicy", "topicscale-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = {
        part: {"app.kubernetes.io/part-of": "topicscale", "app.kubernetes.io/component": part}
        for part in ("ray-head", "ray-worker", "submitter", "spark-driver", "spark-executor")
    }
    worn = [template["metadata"]["labels"] for _, template in pods(overlay)]
    assert all(label in labels.values() for label in worn)
    open_ = {
        (a, b, port)
        for a in labels for b in labels for port in (8265, 15002, 6379, 7078)
        if may_talk(overlay, labels[a], labels[b], port)
    }  # fmt: skip
    ray = {(a, b, port) for a in ("ray-head", "ray-worker") for b in ("ray-head", "ray-worker") for port in (8265, 15002, 6379, 7078)}
    spark = {
        (a, b, port) for a in ("spark-driver", "spark-executor") for b in ("spark-driver", "spark-executor")
        for port in (8265, 15002, 6379, 7078)
    }  # fmt: skip
    assert open_ - ray - spark == {
        ("submitter", "ray-head", 8265),
        ("submitter", "spark-driver", 15002),
        ("ray-head", "spark-driver", 15002),
    }
    for document in rendered(overlay):
        for path, block in walk(document):
            if path and path[-1] == "ipBlock":
                assert ipaddress.ip_network("169.254.0.0/16") in map(ipaddress.ip_network, block["except"])  # a node's own credentials


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_named_and_never_held(overlay) -> None:
    assert not [d for d in rendered(overlay) if d["kind"] == "Secret"]
    for document in rendered(overlay):
        for path, value in walk(document):
            if isinstance(value, dict) and re.search(r"TOKEN|KEY|PASSWORD|SECRET", str(value.get("name", ""))):
                assert "value" not in value, (document["kind"], path)
            # the operator puts Spark's settings on a command line
            if "sparkConf" in path and isinstance(value, str):
                assert not re.search(r"[\s'\"$;&|<>()`\\]", value), path
                assert "token" not in str(path[-1])
    if overlay != "spark":
        auth = one(overlay, "RayJob")["spec"]["rayClusterSpec"]["authOptions"]
        assert auth == {"mode": "token", "secretName": "topicscale-ray-token"}


def test_the_script_makes_the_secrets_that_are_named(tmp_path) -> None:
    made = secrets("elsewhere")
    assert {name: sorted(keys) for name, keys in made.items()} == {
        "topicscale-ray-token": ["auth_token"],
        "topicscale-spark-token": ["token"],
        "topicscale-spark-tls": ["ca.crt", "tls.crt", "tls.key"],
    }
    again = secrets("elsewhere")
    for name, key in (("topicscale-ray-token", "auth_token"), ("topicscale-spark-token", "token")):
        assert re.fullmatch(rb"[0-9a-f]{64}", made[name][key])
        assert made[name][key] != again[name][key]
    (tmp_path / "tls.crt").write_bytes(made["topicscale-spark-tls"]["tls.crt"])
    command = ["openssl", "x509", "-in", tmp_path / "tls.crt", "-noout", "-checkhost", "topicscale-spark-server.elsewhere.svc"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "does match" in said


def test_images_are_those_that_the_dockerfiles_build() -> None:
    built = set(re.findall(r"-t (topicscale-[\w-]+):", "".join(path.read_text() for path in K8S.glob("images/*.Dockerfile"))))
    used = set()
    for overlay in OVERLAYS:
        for document in rendered(overlay):
            used |= {value for path, value in walk(document) if path and path[-1] == "image" and isinstance(value, str)}
    assert {image.partition(":")[0] for image in used} == built == {"topicscale-ray", "topicscale-spark", "topicscale-driver"}
    assert {image.partition(":")[2] for image in used} == {"0.1.0"}


def test_versions_are_those_of_the_environment() -> None:
    import pyspark
    import ray

    cluster = one("cpu", "RayJob")["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert one("cpu", "SparkConnect")["spec"]["sparkVersion"] == pyspark.__version__
    assert one("spark", "SparkApplication")["spec"]["sparkVersion"] == pyspark.__version__


def test_the_readme_s_own_overlay_renders(tmp_path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    block = next(part for part in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "# my/kustomization.yaml" in part)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "kustomization.yaml").write_text(block)
    (tmp_path / "my" / "job.yaml").write_text("input: {paths: [mine.csv]}\n")
    done = subprocess.run([*renderers()[0], tmp_path / "my"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    documents = list(yaml.safe_load_all(done.stdout))
    assert [errors(document) for document in documents] == [[]] * len(documents)
    images = {value for document in documents for path, value in walk(document) if path and path[-1] == "image"}
    assert images == {"example.com/team/topicscale-ray:0.1.0", "example.com/team/topicscale-spark:0.1.0"}
    (job,) = [document for document in documents if document["kind"] == "RayJob"]
    assert "--store s3://mine/topics" in job["spec"]["entrypoint"]
    assert job["spec"]["metadata"] == {"topicscale": "rayjob", "command": "run", "store": "s3://mine/topics"}
    (config,) = [document["data"]["job.yaml"] for document in documents if document["metadata"]["name"] == "topicscale-job"]
    assert "mine.csv" in config


def test_the_readme_s_commands_are_ten_and_name_files_that_exist() -> None:
    block = next(part for part in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "kind create cluster" in part)
    commands = block.strip().splitlines()
    assert len(commands) == 10
    for path in re.findall(r"k8s/[\w./-]+", block):
        assert (K8S.parent / path).exists(), path
    for overlay in OVERLAYS:
        assert f"| `{overlay}` |" in README
