"""Checks deploy/kubernetes: run by scripts/kubernetes-manifests.

Renders base and overlay by kustomize and the chart by Helm, and holds every object against the schemas of Kubernetes. What
schemas do not say is checked here: that names and selectors lead somewhere, that pods are restricted as the policy of that
name wants it, that a pod has the time to end, and that Helm makes what kustomize makes. Prints a line for each check, and
`skipped:` where a tool is missing; ends with 1 at the first that fails.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

FOLDER = Path("deploy/kubernetes")
# From the oldest that the chart admits. `image` volumes came with 1.31.
VERSIONS = {"base": ["1.29", "1.37"], "everything": ["1.31", "1.37"]}
# What is left to the primary after shutdown-timeout: SIGKILL for workers, and its own end.
AFTERMATH_SECONDS = 2

EVERYTHING = {
    "imageVolume": {"reference": "registry.example/app-image:1"},
    "registrySecret": "wasmcluster-registry",
    "redis": {"enabled": True},
    "podMonitor": {"enabled": True},
    "autoscaling": {"inFlightPerWorker": 64},
}
# Each must be refused.
WRONG_VALUES = [
    {"replica": 3},
    {"autoscaling": {"cpu": "many"}},
    {"service": {"type": "Ingress"}},
    {"resources": {"requests": {}, "limits": {"memory": "512Mi", "cpu": None}}},
    {"imageVolume": {"path": "/etc/app.wasm"}},
]


def fail(what):
    sys.exit(f"failed: {what}")


def check(condition, what):
    if not condition:
        fail(what)


def kustomize():
    """The command that builds a folder; none if there is none that knows components."""
    if program := shutil.which("kustomize"):
        return [program, "build"]
    if program := shutil.which("kubectl"):
        version = subprocess.run([program, "version", "--client"], capture_output=True, text=True).stdout
        minor = re.search(r"v1\.(\d+)\.", version)
        # Older ones have kustomize 2.
        if minor and int(minor[1]) >= 21:
            return [program, "kustomize"]
    return None


def built(command, folder):
    done = subprocess.run([*command, str(FOLDER / folder)], capture_output=True, text=True)
    check(done.returncode == 0, f"{folder}: {done.stderr}")
    return list(yaml.safe_load_all(done.stdout))


def rendered(chart, values):
    """The chart's objects as Helm makes them for a release with the chart's own name."""
    files = chart.render(values, name="wasmcluster", namespace="default")
    texts = (text for path, text in files.items() if path.endswith(".yaml"))
    return [it for text in texts for it in yaml.safe_load_all(text) if it]


def against_schemas(title, objects, versions):
    for version in versions:
        for it in objects:
            if it["apiVersion"].startswith("monitoring.coreos.com/"):
                continue
            try:
                kubernetes_validate.validate(it, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                fail(f"{title}: {it['kind']} in Kubernetes {version}: {error.message}")
    print(f"ok: {title}: {len(objects)} objects are what the schemas of Kubernetes {' and '.join(versions)} want")


def against_operator(title, objects):
    monitors = [it for it in objects if it["kind"] == "PodMonitor"]
    check(monitors, f"{title}: no PodMonitor")
    try:
        from cloudcoil.models.prometheus_operator.v1 import PodMonitor
    except ImportError as error:
        return print(f"skipped: {title}: the PodMonitor: {error}")
    for it in monitors:
        # What its model does not know would be missing.
        again = PodMonitor.model_validate(it).model_dump(mode="json", by_alias=True, exclude_unset=True)
        check(again["spec"] == it["spec"], f"{title}: {again['spec']} instead of {it['spec']}")
    print(f"ok: {title}: the PodMonitor is what its operator wants")


def templates(objects):
    """Those that make pods, with the pods' labels and specification."""
    makers = [it for it in objects if it["kind"] in ("Deployment", "StatefulSet")]
    return [(it, it["spec"]["template"]["metadata"]["labels"], it["spec"]["template"]["spec"]) for it in makers]


def selects(selector, labels):
    """An empty selector would be everybody's pods."""
    return bool(selector) and selector.items() <= labels.items()


def leads_somewhere(title, objects):
    """Names and selectors of an object are those of others here."""
    pods = templates(objects)
    names = {(it["kind"], it["metadata"]["name"]) for it in objects}
    for it in objects:
        spec, what = it.get("spec", {}), f"{title}: {it['kind']} {it['metadata']['name']}"
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is None:
            continue
        selector = selector if it["kind"] == "Service" else selector.get("matchLabels")
        selected = [pod for _, labels, pod in pods if selects(selector, labels)]
        check(len(selected) == 1, f"{what} selects pods of {len(selected)} kinds: {selector}")
        ports = {port["name"] for container in selected[0]["containers"] for port in container["ports"]}
        wanted = [port["targetPort"] for port in spec.get("ports", [])]
        wanted += [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
        wanted += [endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])]
        check(ports.issuperset(wanted), f"{what} names ports {wanted}, and pods have {ports}")
        if it["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            check((target["kind"], target["name"]) in names, f"{what} scales {target}")
    for maker, _, pod in pods:
        what = f"{title}: {maker['metadata']['name']}"
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        claims = {claim["metadata"]["name"] for claim in maker["spec"].get("volumeClaimTemplates", [])}
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        check(mounts == volumes.keys() | claims, f"{what} mounts {mounts} and has {volumes.keys() | claims}")
        for volume in volumes.values():
            if "configMap" in volume:
                check(("ConfigMap", volume["configMap"]["name"]) in names, f"{what}: {volume}")
        if account := pod.get("serviceAccountName"):
            check(("ServiceAccount", account) in names, f"{what}: no account {account}")
    print(f"ok: {title}: names, ports and selectors lead to what is there")


def is_restricted(title, objects):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, Restricted; and a root that is read-only."""
    volumes_allowed = {"configMap", "emptyDir", "secret", "image", "persistentVolumeClaim", "projected", "ephemeral"}
    for maker, _, pod in templates(objects):
        what = f"{title}: {maker['metadata']['name']}"
        security = pod["securityContext"]
        check(security["runAsNonRoot"] is True and security["runAsUser"] > 0, f"{what} may be root")
        check(security["seccompProfile"]["type"] == "RuntimeDefault", f"{what} has no seccomp profile")
        check(pod["automountServiceAccountToken"] is False, f"{what} has a token")
        check(not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), f"{what} shares with its host")
        for volume in pod.get("volumes", []):
            check(volume.keys() - {"name"} <= volumes_allowed, f"{what}: {volume}")
        for container in pod["containers"]:
            security = container["securityContext"]
            check(security["allowPrivilegeEscalation"] is False, f"{what} may get privileges")
            check(security["readOnlyRootFilesystem"] is True, f"{what} may write to its root")
            check(security["capabilities"] == {"drop": ["ALL"]}, f"{what} has capabilities")
            check(not any("hostPort" in port for port in container["ports"]), f"{what} has ports of its host")
            check({"cpu", "memory"} <= container["resources"]["limits"].keys(), f"{what} has no limits")
    print(f"ok: {title}: pods are restricted")


def settings(objects):
    """wasmcluster.toml, without what is for people."""
    text = next(it["data"]["wasmcluster.toml"] for it in objects if it["kind"] == "ConfigMap")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def seconds(lines, key):
    return next(float(line.split('"')[1].removesuffix("s")) for line in lines if line.startswith(f"{key} ="))


def has_time_to_end(title, objects):
    lines = settings(objects)
    [pod] = [pod for maker, _, pod in templates(objects) if maker["kind"] == "Deployment"]
    delay, drain = seconds(lines, "shutdown-delay"), seconds(lines, "shutdown-timeout")
    needed, grace = delay + drain + AFTERMATH_SECONDS, pod["terminationGracePeriodSeconds"]
    check(needed < grace, f"{title}: a pod needs up to {needed} s to end, and has {grace}")
    check(drain > seconds(lines, "request-timeout"), f"{title}: requests may take longer than shutdown-timeout")
    probe = pod["containers"][0]["readinessProbe"]
    noticed = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    check(noticed < delay, f"{title}: that a pod is not ready is noticed after {noticed} s, and it serves for {delay}")
    print(f"ok: {title}: a pod needs up to {needed:.0f} s of {grace} to end")


def comparable(objects):
    """By kind and name, without what the two tools add for themselves."""
    text = yaml.safe_dump_all(sorted(objects, key=lambda it: (it["kind"], it["metadata"]["name"])))
    text = re.sub(r"wasmcluster-[0-9a-z]{10}\b", "wasmcluster", text)
    text = re.sub(r"^ *(app\.kubernetes\.io/(instance|version|managed-by)|helm\.sh/chart|checksum/config):.*\n", "", text, flags=re.M)
    found = list(yaml.safe_load_all(text))
    for it in found:
        it["metadata"].pop("labels", None)
        if it["kind"] == "ConfigMap":
            it["data"] = settings([it])
    return {(it["kind"], it["metadata"]["name"]): it for it in found}


def same(title, helm, kustomized):
    helm, kustomized = comparable(helm), comparable(kustomized)
    check(helm.keys() == kustomized.keys(), f"{title}: {helm.keys() ^ kustomized.keys()}")
    for name, it in helm.items():
        check(it == kustomized[name], f"{title}: {name}:\n{yaml.safe_dump(it)}---\n{yaml.safe_dump(kustomized[name])}")
    print(f"ok: {title}: Helm makes the same as kustomize")


def all_checks(title, objects, versions):
    against_schemas(title, objects, versions)
    leads_somewhere(title, objects)
    is_restricted(title, objects)
    has_time_to_end(title, objects)


def with_kustomize():
    command = kustomize()
    if not command:
        print("skipped: there is no kustomize, and no kubectl of 1.21 or later")
        return {}
    found = {"base": built(command, "base"), "everything": built(command, "overlays/everything")}
    for title, objects in found.items():
        all_checks(f"kustomize {title}", objects, VERSIONS[title])
    against_operator("kustomize everything", found["everything"])
    return found


def with_helm(kustomized):
    try:
        from helm_python import Chart
        from helm_python.chart import lint
        from helm_python.errors import HelmError
    except (ImportError, OSError) as error:
        print(f"skipped: the chart is not rendered: {error}")
        return {}
    path = FOLDER / "chart"
    report = lint(path, strict=True)
    # That a chart should have an icon.
    bad = [message for message in report["messages"] if message["severity"] >= 2]
    check(not bad and not report["errors"], f"helm lint: {report}")
    chart = Chart.load(path)
    found = {"base": rendered(chart, {}), "everything": rendered(chart, EVERYTHING)}
    for title, objects in found.items():
        all_checks(f"helm {title}", objects, VERSIONS[title])
        if title in kustomized:
            same(title, objects, kustomized[title])
    against_operator("helm everything", found["everything"])
    for values in WRONG_VALUES:
        try:
            chart.validate_schema(values)
        except HelmError:
            continue
        fail(f"the chart takes {values}")
    print(f"ok: the chart refuses {len(WRONG_VALUES)} wrong values")
    without = rendered(chart, {"autoscaling": {"enabled": False}, "networkPolicy": {"enabled": False}, "extraArgs": ["--workers=3"]})
    all_checks("helm without", without, VERSIONS["base"])
    check(not {"HorizontalPodAutoscaler", "NetworkPolicy"} & {it["kind"] for it in without}, "both are off")
    return {**found, "without": without}


def pods(found):
    """What the pods of wasmcluster run, for tests that run it."""
    for tool, variants in found.items():
        for variant, objects in variants.items():
            [pod] = [pod for maker, _, pod in templates(objects) if maker["kind"] == "Deployment"]
            config = next(it["data"]["wasmcluster.toml"] for it in objects if it["kind"] == "ConfigMap")
            yield {"what": f"{tool} {variant}", "config": config, "pod": pod}


def main(args):
    kustomized = with_kustomize()
    helm = with_helm(kustomized)
    if args[:1] == ["--pods"]:
        Path(args[1]).write_text(json.dumps(list(pods({"kustomize": kustomized, "helm": helm}))))


main(sys.argv[1:])
