"""The table of configs."""

import itertools

from mpi_jax import configs
from mpi_jax.cli.main import main


def test_every_config_has_a_line(capsys):
    assert main(["configs"]) == 0
    head, rule, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "name" and set(rule) == {"-", " "}
    assert [line.split()[0] for line in lines] == list(configs.CONFIGS)
    start = [head.index(word) for word in ("name", "what", "image size", "network")]
    for line, (name, what) in zip(lines, configs.CONFIGS.items(), strict=True):
        config = configs.get(name)
        size = f"{config.scanner.pixels} x {config.scanner.pixels}"
        cells = [line[a:b].strip() for a, b in itertools.pairwise([*start, None])]
        assert cells == [name, what, size, config.generator]
