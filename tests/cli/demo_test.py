"""The demo: what it refuses at once, what it prints."""

from mpi_jax import configs, pretrained
from mpi_jax.cli import demo


def test_weights_of_the_same_scanner_join():
    """In their sampling, which is older than that of the presets of today."""
    config, names = demo._beside(configs.get("small"))
    assert names == ["small32"] and config.scanner.oversample == 1
    stored = pretrained.load_weights(pretrained.shipped("small32"))[1]["config"]
    assert config.scanner == configs.from_dict(stored).scanner
    assert demo._beside(configs.get("paper")) == (configs.get("paper"), [])


def test_table_is_short_and_in_columns():
    def line(label, family, psnr):
        means = {"psnr": {"mean": psnr}, "ssim": {"mean": 0.9}, "dice": {"mean": 0.8}}
        return {"label": label, "family": family, "seconds_per_image": 0.0123, **means}

    lines = [line("x-space", "all", 17.5), line("x-space", "bars", 99.0)]
    lines += [line("Dual-task network", "all", 38.25)]
    assert demo._table(lines).splitlines() == [
        "method             PSNR [dB]       SSIM       Dice    s/image",
        "x-space                17.50     0.9000     0.8000      0.012",
        "Dual-task network      38.25     0.9000     0.8000      0.012",
    ]


def test_demo_prints_its_table_and_where_the_page_is(monkeypatch, tmp_path, capsys):
    """With stand-ins for the work."""
    from mpi_jax.cli.main import main

    means = {name: {"mean": 1.0} for name in ("psnr", "ssim", "dice")}
    row = {"label": "x-space", "family": "all", "seconds_per_image": 1.0, **means}
    monkeypatch.setattr("mpi_jax.train.run", lambda *_, **__: {})
    monkeypatch.setattr("mpi_jax.runs.unpack", lambda *_: None)
    monkeypatch.setattr("mpi_jax.evaluation.table.run", lambda *_, **__: [row])
    monkeypatch.setattr("mpi_jax.report.write", lambda folder: folder / "report.html")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--workdir", "here", "--config", "test"]) == 0
    said = capsys.readouterr().out
    assert "x-space" in said and said.endswith(
        f"Open {tmp_path / 'here/report.html'}\n"
    )
