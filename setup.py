"""Settings are in setup.cfg; here, what has to be done while building: to write down the
commit that the package is built from, which an installed copy can't ask git for.
"""

import pathlib
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
FILE = pathlib.Path("mpi_jax", "commit.txt")  # runs.BUILT_FROM


def write_commit(folder):
    """folder/mpi_jax/commit.txt, where git tells; else what a source archive says stays."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    if not (HERE / ".git").exists():
        return
    try:
        said = subprocess.run(words, cwd=HERE, capture_output=True, text=True)
    except OSError:
        return
    if said.returncode == 0:
        path = pathlib.Path(folder) / FILE
        path.unlink(missing_ok=True)  # an archive's files are links to the checkout's
        path.write_text(said.stdout)


class Build(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # that one runs from the checkout, and asks git
            write_commit(self.build_lib)


class SourceArchive(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        write_commit(base_dir)


setup(cmdclass={"build_py": Build, "sdist": SourceArchive})
