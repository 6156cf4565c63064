import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from unseen import extrapolation
from unseen.errors import InputError
from unseen.extrapolation import ChatEndpoint, generators, read_manifest, rejections
from unseen.extrapolation.command import extrapolate
from unseen.networks import dual_encoder
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


def test_images_that_fit_their_prompts_are_kept(run, tmp_path, monkeypatch):
    drawn = []

    def pipeline(*, prompt, generator, **_):
        drawn.extend(prompt)
        levels = [int(torch.randint(1, 256, (), generator=g)) for g in generator]
        return SimpleNamespace(images=[Image.new("RGB", (8, 8), (level, 0, 255 - level)) for level in levels])

    class Reddest:
        def encode_image(self, images):
            return images.float().mean((2, 3))

        def encode_text(self, texts):
            return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(texts), 3)

    answer = [{"domain": "dusk", "prompts": {"hen": ["a hen", "two hens"], "cow": ["a cow", "two cows"]}}]
    monkeypatch.setattr(generators, "_load_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(dual_encoder, "dual_encoder", lambda name: Reddest())
    monkeypatch.setattr(ChatEndpoint, "__call__", lambda self, question: json.dumps(answer))
    run(
        "farms", "--classes", "hen,cow", "--endpoint", "http://localhost:1/v1", "--model", "m", "--prompts", 2,
        "--diffusion", "stub", "--image-size", 8, "--encoder", "open_clip:a/b", "--keep", 0.25, "--domains", 1,
        "--per-cell", 4, "--out", tmp_path / "out",
    )  # fmt: skip
    assert set(drawn) == {"a hen", "two hens", "a cow", "two cows"}
    assert rejections(tmp_path / "out").share.tolist() == [0.75, 0.75]
    assert "open_clip:a/b" in read_manifest(tmp_path / "out")["request"]["filter"]["scorer"]
    images = open_shift(tmp_path / "out" / "images").take(torch.arange(8)).float().mean((2, 3))
    assert (images[:, 0] > images[:, 2]).float().mean() > 0.8  # by chance half of them are redder than blue


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--text", "{cls}"), "--endpoint, --proposals"),
        (("--endpoint", "http://localhost:1/v1", "--text", "{cls}"), "--model"),
        (("--endpoint", "localhost", "--model", "m", "--text", "{cls}"), "no web address"),
        (("--endpoint", "http://localhost:1/v1", "--model", "m"), "--diffusion, --text"),
        (("--proposals", "nowhere.json", "--text", "{cls}"), "cannot be read"),
        (
            (
                "--endpoint",
                "http://localhost:1/v1",
                "--model",
                "m",
                "--text",
                "{cls}",
                "--encoder",
                "open_clip:a/b",
            ),
            "--encoder: is given with --text",
        ),
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
