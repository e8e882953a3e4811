"""The files for Kubernetes and SkyPilot have the fields, and only the fields, of their schemas.

The schemas are written out here from the CustomResourceDefinition of Kubeflow's training operator 1.9, Kubernetes' API
(PodSpec, Container) and SkyPilot's reference of its YAML files. Each leaf is the type of its value.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron.neox_arguments import NeoXArgs
from tests.training.harness import ROOT

FOLDER = ROOT / "configs" / "launch"

ENV = {"name": str, "value": str, "valueFrom": {"secretKeyRef": {"name": str, "key": str, "optional": bool}}}
CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "env": [ENV],
    "resources": {
        "limits": {"nvidia.com/gpu": int, "memory": str, "cpu": int},
        "requests": {"memory": str, "cpu": int},
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
POD = {"terminationGracePeriodSeconds": int, "containers": [CONTAINER], "volumes": [VOLUME], "nodeSelector": dict}
REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"metadata": dict, "spec": POD}}
RUN_POLICY = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "cleanPodPolicy": str,
    "schedulingPolicy": dict,
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
PYTORCH_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "labels": dict},
    "spec": {
        "nprocPerNode": str,
        "runPolicy": RUN_POLICY,
        "pytorchReplicaSpecs": {"Master": REPLICAS, "Worker": REPLICAS},
    },
}
STORAGE = {"name": str, "source": str, "store": str, "mode": str, "persistent": bool}
SKYPILOT = {
    "name": str,
    "num_nodes": int,
    "workdir": str,
    "resources": {"accelerators": str, "use_spot": bool, "disk_size": int, "cloud": str, "image_id": str, "cpus": str},
    "file_mounts": {"/checkpoints": STORAGE},
    "envs": {"CONFIGS": str},
    "secrets": dict,
    "setup": str,
    "run": str,
}


def problems(value: Any, schema: Any, place: str) -> list[str]:
    """What in `value` the schema does not have, by its place."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{place}: expected fields"]
        unknown = [f"{place}.{key} is unknown" for key in value if key not in schema]
        known = [problems(value[key], schema[key], f"{place}.{key}") for key in value if key in schema]
        return [*unknown, *(problem for found in known for problem in found)]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{place}: expected a list"]
        return [problem for i, item in enumerate(value) for problem in problems(item, schema[0], f"{place}[{i}]")]
    return [] if type(value) is schema else [f"{place}: expected {schema.__name__}"]


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


@pytest.mark.parametrize("name, schema", [("kubernetes.yaml", PYTORCH_JOB), ("skypilot.yaml", SKYPILOT)])
def test_fields_are_those_of_the_schema(name, schema):
    assert problems(read(name), schema, name) == []


def test_a_wrong_field_would_be_noticed():
    job = read("kubernetes.yaml")
    job["spec"]["nprocPerNode"] = 8
    job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["argss"] = []
    found = problems(job, PYTORCH_JOB, "job")
    assert "job.spec.nprocPerNode: expected str" in found
    assert "job.spec.pytorchReplicaSpecs.Master.template.spec.containers[0].argss is unknown" in found


def test_what_the_operator_requires():
    """kind and version, a container named pytorch in both roles, a known restart policy, and known mounts."""
    job = read("kubernetes.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    roles = job["spec"]["pytorchReplicaSpecs"]
    assert roles["Master"]["replicas"] == 1
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] in ("None", "Running", "All")
    for role in roles.values():
        assert role["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = role["template"]["spec"]
        assert [container["name"] for container in pod["containers"]] == ["pytorch"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
        assert pod["terminationGracePeriodSeconds"] > 30  # torchrun kills its workers after 30 s
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])


def test_what_skypilot_requires():
    task = read("skypilot.yaml")
    storage = task["file_mounts"]["/checkpoints"]
    assert storage["store"] in ("s3", "gcs", "azure", "r2", "ibm", "oci") and storage["mode"] in ("MOUNT", "COPY")
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.parametrize("name", ["kubernetes.yaml", "skypilot.yaml"])
def test_their_configuration_is_valid(name):
    """The files exist here, and the options after them are keys."""
    if name == "kubernetes.yaml":
        pod = read(name)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        script, *arguments = pod["containers"][0]["args"]
    else:
        words = read(name)["run"].split()
        script, *rest = words[words.index("train.py") :]
        arguments = read(name)["envs"]["CONFIGS"].split() + rest[1:]
    assert script == "train.py" and all(Path(ROOT, file).exists() for file in arguments if file.endswith(".yml"))
    args = NeoXArgs.consume_neox_args(input_args=arguments)
    assert args.save == args.load == "/checkpoints"
