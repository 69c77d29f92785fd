"""A report is a finished folder or no folder at all, and says how it came about."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from offrl_wb.app import reports
from offrl_wb.app.reports import (
    ReportFailed,
    finished,
    git_revision,
    kernel_environment,
    package_digest,
    put_in_place,
    request,
    run_report,
    sweep,
    working_folder,
)
from offrl_wb.core.errors import InputError
from offrl_wb.core.records import load_records
from tests.tiny import PLOTLY, cell, figure, prose, write

ROOT = Path(__file__).resolve().parents[1]
SHOW = f"""
from IPython.display import display
display({{"{PLOTLY}": {figure()!r}, "text/plain": "figure"}}, raw=True)
"""
PUBLISH = """
import os
from pathlib import Path
from offrl_wb.core.records import Records, publish, publish_provenance
import neighbour
records = Records("test", {"seed": seed})
records.add(metric="rows", value=Path(log).read_text().count("\\n"), seed=seed)
publish(records.frame())
publish_provenance({"log": {"rows": 3}})
print(os.getcwd() == os.environ["OFFRL_WB_RUN_DIR"], os.environ["OFFRL_WB_STATIC"], neighbour.WORD)
"""


def line_notebook(folder: Path) -> Path:
    (folder / "neighbour.py").write_text("WORD = 'near'")
    (folder / "log.csv").write_text("a\n1\n2\n")
    return write(
        folder / "01_line.ipynb",
        prose("# A line\n\n> It rises.\n\n$x^2$"),
        cell("seed: int = 0  # of it\nlog: str = 'log.csv'", "parameters"),
        cell(PUBLISH),
        cell("1 / 0", "raises-exception"),
        cell(SHOW),
    )


@pytest.fixture(scope="module", autouse=True)
def _library_as_it_is() -> Iterator[None]:
    """Identities of these tests do not change when a file of the library does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "package_digest", lambda: "as it is")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    line_notebook(folder)
    return folder


@pytest.fixture(scope="module")
def report(place: Path) -> Path:
    """A finished report, run where a user's kernel called python3 is a broken one."""
    kernel = place / "share" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    broken = {"argv": ["/bin/false"], "display_name": "shadow", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(broken))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(place / "share"))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
        patch.chdir(place)
        return run_report("01_line.ipynb", {"seed": "7"}, Path("o{u}t"), progress=False)


def told(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_report_is_a_folder_with_everything(report: Path, place: Path) -> None:
    assert report.parent == place / "o{u}t"
    assert report.name.startswith("line-")
    assert len(report.name) == len("line-") + 12
    names = sorted(p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file())
    assert [n for n in names if not n.startswith("figures/")] == [
        "line.html",
        "line.ipynb",
        "records.parquet",
        "run.json",
    ]
    assert "figures/01-a-rising-line-from-one-to.json" in names
    assert list(place.joinpath("o{u}t").iterdir()) == [report], "no leftovers"


def test_run_json_says_how_the_result_came_about(report: Path, place: Path) -> None:
    story = told(report)
    log = str((place / "log.csv").resolve())
    assert story["parameters"] == {"seed": 7, "log": log}
    assert story["defaults"]["seed"] == 0
    assert story["seeds"] == {"seed": 7}
    assert story["dataset"] == {"log": {"rows": 3}}
    assert story["files"]["log"]["path"] == log
    assert (story["exit_state"], story["error"], story["format"]) == ("finished", None, 1)
    assert {"python", "numpy", "polars", "offrl_wb"} <= story["versions"].keys()
    assert story["numeric"]["float"] == "float64"
    assert 0 < story["wall_time_seconds"] < 120
    assert report.name.endswith(story["hash"])
    assert story["figures"]["count"] == 1
    assert story["figures"]["png"] == "made" or "not made" in story["figures"]["png"]


def test_the_executed_notebook_holds_results_and_no_machinery(report: Path) -> None:
    executed = nbformat.read(report / "line.ipynb", 4)
    nbformat.validate(executed)
    outputs = [o for c in executed.cells for o in c.get("outputs", [])]
    assert outputs[0].text == "True 1 near\n"
    assert outputs[1].ename == "ZeroDivisionError", "a cell that may raise is no failure"
    assert PLOTLY in outputs[2].data
    assert "papermill" not in json.dumps(executed)
    assert "widgets" not in executed.metadata


def test_published_records_are_in_the_report(report: Path) -> None:
    frame = load_records(report / "records.parquet")
    assert frame.select("metric", "value", "seed").rows() == [("rows", 3.0, 7)]


def test_the_page_has_the_equation_and_the_figure(report: Path) -> None:
    page = (report / "line.html").read_text()
    assert "<math" in page
    assert page.count("</figcaption>") == 1
    assert '7 <b class="set">set</b>' in page


def test_asking_again_finds_the_finished_run_and_force_runs_it_again(
    report: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = told(report)["started"], (report / "line.ipynb").stat().st_mtime_ns
    assert run_report("01_line.ipynb", {"seed": "7"}, report.parent) == report
    assert (told(report)["started"], (report / "line.ipynb").stat().st_mtime_ns) == before
    monkeypatch.setattr(reports, "save_figures", lambda *_: {"count": 1, "png": "not made: test"})
    assert run_report("01_line.ipynb", {"seed": "7"}, report.parent, force=True) == report
    assert (report / "line.ipynb").stat().st_mtime_ns > before[1]
    assert list(report.parent.iterdir()) == [report]


def identity(path: Path, **parameters: str) -> str:
    return request(str(path), parameters, Path("out")).identity


def test_the_identity_is_of_everything_that_decides_the_result(tmp_path: Path) -> None:
    path = line_notebook(tmp_path)
    seen = [identity(path), identity(path, seed="1")]
    assert identity(path, seed="0") == seen[0], "a default and the same value given are one"
    (tmp_path / "log.csv").write_text("a\n1\n3\n")
    seen.append(identity(path))
    (tmp_path / "neighbour.py").write_text("WORD = 'far'")
    seen.append(identity(path))
    path.write_text(path.read_text().replace("It rises.", "It falls."))
    seen.append(identity(path))
    path.write_text(path.read_text().replace("seed: int = 0", "seed: float = 0.0"))
    seen.append(identity(path))
    assert len(set(seen)) == len(seen)
    outputs = json.loads(path.read_text())
    outputs["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    path.write_text(json.dumps(outputs))
    assert identity(path) == seen[-1], "outputs decide nothing"


def test_the_identity_follows_every_file_of_a_folder_that_a_parameter_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ipynb", cell("data: str = 'logs/'", "parameters"))
    (tmp_path / "logs" / "deep").mkdir(parents=True)
    first = identity(path)
    (tmp_path / "logs" / "deep" / "a.csv").write_text("1")
    second = identity(path)
    (tmp_path / "logs" / "deep" / "a.csv").rename(tmp_path / "logs" / "a.csv")
    assert len({first, second, identity(path)}) == 3


def test_the_library_itself_is_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "offrl_wb"
    shutil.copytree(ROOT / "offrl_wb" / "core", copy / "core")
    monkeypatch.setattr(reports, "package_folder", lambda: copy)
    before = package_digest()
    assert before == package_digest()
    (copy / "core" / "errors.py").write_text("changed = True")
    assert package_digest() != before


def test_a_failing_cell_keeps_the_partial_notebook_and_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.ipynb",
        cell("x = 1"),
        prose("## The hard part"),
        cell("# a comment\n{}['key']"),
        cell("x = 2"),
    )
    with pytest.raises(ReportFailed) as caught:
        run_report(str(path), {}, tmp_path / "out", progress=False)
    (failed,) = (tmp_path / "out").iterdir()
    assert failed.name.endswith(".failed")
    message = str(caught.value)
    expected = "bad: cell In[2] (`{}['key']`, under “The hard part”) failed: KeyError: 'key'"
    assert message == f"{expected}; the partial notebook is in {failed}"
    partial = nbformat.read(failed / "bad.ipynb", 4)
    assert [c.execution_count for c in partial.cells if c.cell_type == "code"] == [1, 2, None]
    assert "KeyError" in (failed / "bad.html").read_text()
    assert (told(failed)["exit_state"], finished(failed)) == ("failed", False)


def test_a_dead_kernel_is_a_failure_of_the_cell_that_killed_it(tmp_path: Path) -> None:
    path = write(tmp_path / "dead.ipynb", cell("x = 1"), cell("import os; os._exit(9)"), cell("y"))
    with pytest.raises(
        ReportFailed, match=r"`import os; os\._exit\(9\)`\) failed: DeadKernelError"
    ):
        run_report(str(path), {}, tmp_path / "out", progress=False)


def test_an_input_error_in_a_cell_is_the_users_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "picky.ipynb",
        cell("from offrl_wb.core.errors import InputError\nclass Bad(InputError): pass"),
        cell("raise Bad('column reward, row 3: not a number')"),
    )
    with pytest.raises(InputError) as caught:
        run_report(str(path), {}, tmp_path / "new" / "out", progress=False)
    assert str(caught.value) == "column reward, row 3: not a number"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picky.ipynb"]


RUN = "from pathlib import Path; from offrl_wb.app.reports import run_report; import sys; "
RUN += "run_report(sys.argv[1], {}, Path(sys.argv[2]), progress=False)"


def test_a_killed_run_is_never_taken_for_finished_and_is_swept_away(tmp_path: Path) -> None:
    flag = tmp_path / "begun"
    code = f"from pathlib import Path; import time; Path({str(flag)!r}).touch(); time.sleep(60)"
    path = write(tmp_path / "long.ipynb", cell(code))
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", RUN, str(path), str(out)], env=environment)
    until = time.monotonic() + 60
    while not flag.exists() and time.monotonic() < until:
        time.sleep(0.05)
    (work,) = out.iterdir()
    assert work.name.startswith(".long-"), "a run in progress is hidden"
    assert sweep(out) == [], "and locked, as long as it lives"
    run.send_signal(signal.SIGKILL)
    run.wait()
    (left,) = out.iterdir()
    assert not finished(request(str(path), {}, out).folder)
    assert sweep(out) == [left]
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("output", ["file", "file/inner"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(
    tmp_path: Path, output: str
) -> None:
    path = write(tmp_path / "x.ipynb", cell("1"))
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match="cannot write to"):
        run_report(str(path), {}, tmp_path / output)


def test_checks_come_before_the_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ipynb", cell("scale: str = 'quick'", "parameters"))
    for parameters, scale in (({"sclae": "x"}, None), ({}, "huge"), ({"scale": "quick"}, "paper")):
        with pytest.raises(InputError):
            run_report(str(path), parameters, tmp_path / "out", scale)
    with pytest.raises(InputError, match="has no parameter 'scale'"):
        run_report(str(write(tmp_path / "y.ipynb", cell("1"))), {}, tmp_path / "out", "quick")
    assert not (tmp_path / "out").exists()


def test_of_two_runs_at_once_the_first_to_finish_stays(tmp_path: Path) -> None:
    final = tmp_path / "out" / "x-0123456789ab"
    done = json.dumps({"exit_state": "finished", "format": reports.FORMAT})
    with working_folder(final) as first, working_folder(final) as second:
        for work, who in ((first, "first"), (second, "second")):
            (work / "run.json").write_text(done)
            (work / "who").write_text(who)
            put_in_place(work, final, keep_finished=True)
    assert (final / "who").read_text() == "first"
    assert list(final.parent.iterdir()) == [final]


def test_a_folder_that_is_not_a_finished_run_is_replaced(tmp_path: Path) -> None:
    final = tmp_path / "x-0123456789ab"
    final.mkdir()
    (final / "run.json").write_text("{")
    with working_folder(final) as work:
        (work / "new").touch()
        put_in_place(work, final, keep_finished=True)
    assert [p.name for p in final.iterdir()] == ["new"]


def test_an_installed_library_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(reports, "package_folder", lambda: tmp_path / "offrl_wb")
    assert git_revision() == {"git_revision": None, "git_modified": None}
    (tmp_path / "settings.ini").touch()
    assert git_revision()["git_revision"] is None, "a .git that git cannot read"


def test_the_kernel_finds_the_users_modules_last(tmp_path: Path) -> None:
    paths = kernel_environment(tmp_path, Path("/beside"))["PYTHONPATH"].split(os.pathsep)
    assert paths[-1] == "/beside"


def test_a_figure_without_a_browser_is_told_and_not_fatal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import plotly.graph_objects as go

    def no_browser(*_: object, **__: object) -> bytes:
        raise RuntimeError("no Chrome\nanywhere")

    monkeypatch.setattr(go.Figure, "to_image", no_browser)
    for name in ("start_sync_server", "stop_sync_server"):
        monkeypatch.setattr(f"kaleido.{name}", lambda **_: None)
    output = nbformat.v4.new_output("display_data", data={PLOTLY: figure()})
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    told_of = reports.save_figures(document, tmp_path / "figures")
    assert told_of == {"count": 1, "png": "not made: RuntimeError: no Chrome anywhere"}
    assert [p.suffix for p in (tmp_path / "figures").iterdir()] == [".json"]
