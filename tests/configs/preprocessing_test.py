"""Settings that contradict each other or make no sense are refused."""

import types

import pytest

from mpi_jax.configs import Preprocessing


@pytest.mark.parametrize(
    "settings",
    [
        {"min_frequency": 2.0, "max_frequency": 1.0},
        {"min_frequency": float("nan")},
        {"stop_bands": ((2.0, 1.0),)},
        {"snr_threshold": -1.0},
        {"snr_threshold": 1.0, "num_rows": 5},
        {"num_rows": -1},
        {"max_mixing_order": -1},
        {"channels": (-1,)},
        {"frames": (-1,)},
        {"plane": -1},
        {"shape": (2,)},
        {"shape": (0, 2)},
        {"field_of_view": (1.0, 1.0, 1.0)},
        {"shape": (2, 2), "field_of_view": (1.0, 1.0)},
        {"shape": (2, 2), "field_of_view": (1.0, 1.0, 0.0)},
        {"frame_average": 0},
        {"period_average": -1},
        {"periods": (2, 2)},
        {"background": "linear"},
        {"matrix_background": "external"},
        {"joint_background": 2, "background": "mean"},
        {"background_penalty": 0.5},
        {"background_penalty": -1.0, "joint_background": 1},
        {"channel_weights": (-1.0, 1.0)},
    ],
    ids=str,
)
def test_settings_that_contradict(settings):
    values = vars(Preprocessing()) | settings
    with pytest.raises(ValueError, match=r": expected .*, got"):
        # Not by the constructor, whose types are checked in tests only.
        Preprocessing.__post_init__(types.SimpleNamespace(**values))
    Preprocessing.__post_init__(types.SimpleNamespace(**vars(Preprocessing())))
