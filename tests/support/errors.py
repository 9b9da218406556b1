"""Distances between signals."""

import numpy as np


def nrms(a, b):
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


def largest(got, expected):
    return float(np.max(np.abs(np.asarray(got) - expected)) / np.max(np.abs(expected)))
