"""The files for containers: they parse, name what exists, and start a command that the program understands."""

import json
import re
from pathlib import Path

import yaml

from omnivae.cli.train import read_run

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy"


def instructions():
    """The Dockerfile as pairs of instruction and rest, continued lines joined."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def job():
    (document,) = yaml.safe_load_all((FOLDER / "training-job.yaml").read_text())
    return document


def test_the_image_copies_what_exists_and_does_not_run_as_root():
    found = instructions()
    assert found[0][0] == "FROM"
    for name, rest in found:
        if name == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
    users = [rest for name, rest in found if name == "USER"]
    assert users
    assert users[-1] != "root"
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["omnivae"]


def test_the_image_installs_extras_that_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (command,) = (rest for name, rest in instructions() if name == "RUN" and "pip install" in rest)
    named = re.search(r"\.\[([a-z,]+)\]", command)[1].split(",")
    assert set(named) <= set(extras)


def test_the_job_trains_the_configuration_that_its_environment_names():
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (ROOT / environment["CONFIG_PATH"]).is_file()
    # Kubernetes puts the values of variables into arguments.
    arguments = [re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], argument) for argument in container["args"]]
    assert arguments[0] == "train"
    for config in (environment["CONFIG_PATH"], "configs/video_maisi.yaml"):
        given = [config if argument == environment["CONFIG_PATH"] else argument for argument in arguments[1:]]
        given[given.index("--config") + 1] = str(ROOT / config)
        assert read_run(given)[0].losses


def test_the_job_mounts_what_it_names_and_may_continue():
    spec = job()["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["RUN_PATH"].startswith(mounts["runs"])
    assert container["args"][container["args"].index("--data.path") + 1] == mounts["data"]
    assert spec["restartPolicy"] == "OnFailure"
    assert spec["terminationGracePeriodSeconds"] >= 60
