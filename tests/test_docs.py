"""The documents run: every Python block is executed, every command parses, every configuration builds its model."""

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch

from omnivae.cli.main import COMMANDS
from omnivae.cli.parsing import parse
from omnivae.cli.train import read_run
from omnivae.jobs.config import build_losses
from omnivae.recipes import RECIPES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)
    assert names or not blocks(path, "python")
    # The pictures of the guide are those that its code draws.
    for picture in re.findall(r"\.\./images/guide/([\w-]+\.png)", path.read_text()):
        assert (tmp_path / picture).is_file()
        assert (ROOT / "docs" / "images" / "guide" / picture).is_file()


def commands():
    for path in DOCUMENTS:
        for line in re.findall(r"`(omnivae [a-z-]+ [^`]+)`", path.read_text()):
            yield pytest.param(shlex.split(line)[1:], id=line[:60])
        for block in blocks(path, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("omnivae "):
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=line.strip()[:60])


def parser_of(command):
    module = importlib.import_module(COMMANDS[command][0])
    return module.PARSERS[command]() if hasattr(module, "PARSERS") else module.build_parser()


@pytest.mark.parametrize("argv", list(commands()))
def test_commands_parse(argv, monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    command, *arguments = argv
    assert command in COMMANDS
    if command != "train":
        assert parse(parser_of(command), arguments)
    elif "--config" in arguments or "--world" in arguments:
        assert read_run(arguments)[0].losses
    elif "--checkpoint" in arguments:
        # A model that brings its configuration, as the documentation says of it.
        folder = tmp_path / arguments[arguments.index("--checkpoint") + 1]
        RECIPES["conv_vae"](channels=(4,), image_size=8).save_pretrained(folder)
        (folder / "training.yaml").write_text("model: {recipe: conv_vae}\nlosses: {nll: {}, kl: {}}\n")
        assert read_run(arguments)[0].losses
    else:
        # Without a configuration the images themselves are looked at: any embedded ones will do here.
        place = arguments.index("--data.path") + 1
        assert read_run([*arguments[:place], "digits", *arguments[place + 1 :]])[0].losses


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configurations_build(path):
    text = path.read_text()
    assert len(text.splitlines()) < 60
    config, *_ = read_run(["--config", str(path), *[f"--losses.{n}.weight=0" for n in ("lpips", "vf", "gan", "dfc")]])
    assert build_losses(config.losses)
    arguments = dict(config.model)
    if "vocabulary" in inspect.signature(RECIPES[arguments["recipe"]]).parameters:
        arguments["vocabulary"] = ["a", "b"]  # what a corpus brings
    arguments.pop("maisi_checkpoint", None)  # weights that are not part of the project
    with torch.device("meta"):
        model = RECIPES[arguments.pop("recipe")](**arguments)
    assert model.num_parameters() > 0
