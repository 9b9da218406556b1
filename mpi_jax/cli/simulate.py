"""The verb simulate."""

from __future__ import annotations

from mpi_jax import configs
from mpi_jax.cli.arguments import _about, check_out
from mpi_jax.cli.progress import Progress


def simulate(options) -> None:
    import numpy as np

    from mpi_jax import _files, data, phantoms

    check_out(options.out, (".npz", ".mdf"))
    if options.out.suffix == ".mdf":
        _simulate_mdf(options)
        return
    for name in ("phantom", "calibration", "periods"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: expected --out FILE.mdf with it")
    config = configs.get(options.config)
    if options.split not in phantoms.SPLITS:
        raise ValueError(
            f"--split: expected one of {', '.join(phantoms.SPLITS)}; "
            f"got {options.split!r}"
        )
    if options.num < 1 or options.start < 0:
        raise ValueError(
            f"--num, --start: expected num >= 1 and start >= 0, "
            f"got {options.num} and {options.start}"
        )
    snr = config.data.test_snr_db if options.snr is None else options.snr
    if np.isnan(snr):
        raise ValueError("--snr: expected a number of dB or inf, got nan")
    with Progress() as tell:
        tell("build", 0, 1, {})
        forward = data.simulator(config)
        size, parts = min(options.num, 60), []
        for start in range(0, options.num, size):
            made = data.draw(forward, options.split, options.start + start, size, snr)
            parts.append([np.asarray(a) for a in made])
            tell("simulate", min(start + size, options.num), options.num, {})
    image, mask, voltage, family = (
        np.concatenate(a)[: options.num] for a in zip(*parts, strict=True)
    )
    arrays = {
        "voltage": voltage,
        "image": image,
        "mask": mask.astype(np.uint8),
        "family": np.array(phantoms.FAMILIES)[family],
        "pixel_size": np.asarray(forward.scanner.grid.pitch)[:2],
        "about": np.array(
            _about(config, split=options.split, start=options.start, snr_db=snr)
        ),
    }
    if options.system_matrix:
        arrays["system_matrix"] = np.asarray(forward.matrix)
        arrays["grid"] = np.array(forward.scanner.grid.shape)
    _files.save_npz(options.out, arrays)
    print(f"{options.out}: {options.num} voltages {voltage.shape[1:]} at {snr:g} dB")


def _simulate_mdf(options) -> None:
    """A measurement, and a calibration if asked for, in Open MPI Data's layout."""
    from mpi_jax import open_mpi, phantoms

    if options.phantom is None:
        raise ValueError(
            f"--phantom: expected one of {', '.join(phantoms.open_mpi.PHANTOMS)} for an .mdf file"
        )
    if options.system_matrix:
        raise ValueError("--system-matrix: expected --calibration FILE with .mdf files")
    if options.calibration is not None:
        if options.calibration.suffix != ".mdf" or options.calibration == options.out:
            raise ValueError(
                f"--calibration: expected another .mdf file, got {options.calibration}"
            )
        if not options.calibration.parent.is_dir():
            raise ValueError(
                f"--calibration: folder {options.calibration.parent} doesn't exist"
            )
    if options.periods is not None and options.periods < 1:
        raise ValueError(f"--periods: expected a number >= 1, got {options.periods}")
    noise = {} if options.snr is None else {"snr_db": options.snr}
    noise["seed"] = options.seed
    open_mpi.sequence_scanner(options.config, options.voxels)  # before the work
    with Progress() as tell:
        if options.calibration is not None:
            tell("calibration", 0, 1, {})
            open_mpi.write_calibration(
                options.calibration, options.config, voxels=options.voxels, **noise
            )
        tell("measurement", 0, 1, {})
        count = "frames" if options.config == "open_mpi_3d" else "periods"
        open_mpi.write_measurement(
            options.out,
            options.config,
            options.phantom,
            **noise,
            **{count: options.periods},
        )
    for path in (options.calibration, options.out):
        if path is not None:
            print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
