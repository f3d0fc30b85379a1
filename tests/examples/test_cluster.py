"""The files for clusters are what they look like, and give `batch` only options that it has."""

import ast
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from loraport.cli import app

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir()) if path.is_file()}


def options_of_batch():
    command = typer.main.get_command(app).commands["batch"]
    return {name for option in command.params for name in option.opts}


@pytest.mark.parametrize("name", FILES)
def test_every_option_is_one_of_batch(name):
    text = FILES[name].replace("\\\n", " ")
    calls = re.findall(r"loraport batch (.*)", text) or re.findall(r'"batch".*|--shards? .*', text)
    assert calls
    given = {option for call in calls for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", call)}
    assert given - {"--shares"} <= options_of_batch(), name


def test_the_script_and_the_job_can_be_read():
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    job = yaml.safe_load(FILES["kubernetes.yaml"])
    assert job["kind"] == "Job" and job["spec"]["completionMode"] == "Indexed"
    script = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    assert f"$JOB_COMPLETION_INDEX/{job['spec']['completions']}" in script


def test_the_programs_compile_and_shares_differ_in_their_number():
    for name in FILES:
        if name.endswith(".py"):
            ast.parse(FILES[name])
    spec = importlib.util.spec_from_file_location("hugging_face_jobs", FOLDER / "hugging_face_jobs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    one, other = (module.command("you/loras", "s3://bucket/night", ("a", "b"), number, 4) for number in (0, 3))
    assert "--shard 0/4" in one and one.replace("--shard 0/4", "--shard 3/4") == other
