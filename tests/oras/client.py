"""Pushes and pulls a component with another tool's library: see scripts/oras-client."""

import pathlib
import shutil
import sys
import tempfile

import oras.client
import oras.oci

COMPONENT = "application/wasm"
CONFIG = "application/vnd.wasm.config.v0+json"


def push(client, file, target):
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder, "config.json")
        config.write_text('{"architecture":"wasm","os":"wasip2"}')
        client.push(
            target=target,
            files=[f"{file}:{COMPONENT}"],
            manifest_config=f"{config}:{CONFIG}",
            disable_path_validation=True,
        )


def pull(client, target, file):
    manifest = client.get_manifest(client.get_container(target))
    assert manifest["config"]["mediaType"] == CONFIG, manifest
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == COMPONENT, layer
    with tempfile.TemporaryDirectory() as folder:
        found = client.download_blob(target, layer["digest"], str(pathlib.Path(folder, "component")))
        shutil.copy(found, file)


command, *arguments = sys.argv[1:]
{"push": push, "pull": pull}[command](oras.client.OrasClient(insecure=True), *arguments)
