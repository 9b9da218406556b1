"""The demo: what it refuses at once, what it prints."""

import dataclasses

from mpi_jax import configs, results
from mpi_jax.cli import demo


def line(label, family, psnr):
    """A line of an evaluation."""

    def mean(value):
        return results.Statistics(mean=value)

    return results.Line(
        method=label, label=label, kind="classical", snr_db=40.0, family=family, num=6,
        psnr=mean(psnr), ssim=mean(0.9), dice=mean(0.8), seconds_per_image=0.0123,
    )  # fmt: skip


def test_weights_of_the_same_scanner_join():
    small = configs.get("small")
    assert demo._beside(small) == ["small32"]
    assert demo._beside(configs.get("small64")) == ["small64"]
    aliased = dataclasses.replace(small.scanner, oversample=1)
    for change in (
        dict(scanner=aliased),
        dict(data=dataclasses.replace(small.data, test_snr_db=20.0)),
    ):
        assert demo._beside(dataclasses.replace(small, **change)) == []
    assert demo._beside(configs.get("paper")) == []


def test_table_is_short_and_in_columns():
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

    row = line("x-space", "all", 17.5)
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
