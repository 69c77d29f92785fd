"""Build offrl_wb: settings.ini holds the metadata, and the notebooks travel inside the wheel."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

EXTRAS = ("data", "deep", "mujoco", "teach", "dev")
extras = {name: settings[f"{name}_requirements"].split() for name in EXTRAS}
extras["all"] = extras["data"] + extras["deep"] + extras["mujoco"] + extras["teach"]


class build_py_with_notebooks(build_py):
    """Copy `nbs/` and `tutorials/` to `offrl_wb/_notebooks/` in the build folder.

    They lie outside the package, where `package_data` cannot reach them.
    """

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return  # a checkout reads its own nbs/ and tutorials/
        target = Path(self.build_lib) / "offrl_wb" / "_notebooks"
        shutil.rmtree(target, ignore_errors=True)
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "_proc")
        for folder in ("nbs", "tutorials"):
            shutil.copytree(HERE / folder, target / folder, ignore=unwanted)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {settings['audience']}",
        "Programming Language :: Python :: 3",
        "Framework :: Jupyter :: JupyterLab",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["offrl_wb", "offrl_wb.*"]),
    package_data={"offrl_wb": ["py.typed"]},
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split()},
    cmdclass={"build_py": build_py_with_notebooks},
    zip_safe=False,
)
