import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from unseen import extrapolation
from unseen.errors import InputError
from unseen.extrapolation.command import extrapolate
from unseen.shifts import open_shift


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(extrapolate)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_a_list_and_templates_give_data_that_opens(run, tmp_path):
    listed = tmp_path / "domains.json"
    prompts = {"good": ["fine", "splendid"], "bad": ["poor", "awful"]}
    listed.write_text(json.dumps(["harbour", {"name": "attic", "prompts": prompts}]))
    arguments = ("reviews", "--classes", "good, bad", "--proposals", listed, "--out", tmp_path / "out")
    options = (
        "--domains",
        2,
        "--per-cell",
        2,
        "--text",
        "{prompt}: {domain}",
        "--template",
        "{cls} at the {domain}",
    )
    said = run(*arguments, *options)
    assert said.exit_code == 0 and "8 examples of 2 classes in 2 domains" in said.output
    shift = open_shift(tmp_path / "out" / "data.npz")
    assert shift.kind == "text" and shift.domains == ("attic", "harbour")
    assert "good at the harbour: harbour" in shift.inputs
    with pytest.raises(InputError, match="names the unseen domain 'attic'"):
        run(*arguments, *options, "--unseen", "attic")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--text", "{cls}"), "--endpoint, --proposals"),
        (("--endpoint", "http://localhost:1/v1", "--text", "{cls}"), "--model"),
        (("--endpoint", "localhost", "--model", "m", "--text", "{cls}"), "no web address"),
        (("--endpoint", "http://localhost:1/v1", "--model", "m"), "--diffusion, --text"),
        (("--proposals", "nowhere.json", "--text", "{cls}"), "cannot be read"),
    ],
)
def test_what_is_missing_is_named(run, tmp_path, options, problem):
    with pytest.raises(InputError, match=problem):
        run("reviews", "--classes", "good,bad", "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "7", '[{"nme": "attic"}]'])
def test_proposals_that_cannot_be_read(run, tmp_path, text):
    listed = tmp_path / "domains.json"
    listed.write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        run("reviews", "--classes", "a,b", "--proposals", listed, "--text", "{cls}", "--out", tmp_path)


def test_the_command_is_imported_without_torch():
    code = "import sys, unseen.extrapolation.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    for name in extrapolation.__all__:
        assert getattr(extrapolation, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        extrapolation.nonsense  # noqa: B018
