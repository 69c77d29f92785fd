"""Reading, splitting and thinning of bandit logs, and every way a log can be refused."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from offrl_wb.core.errors import InputError
from offrl_wb.core.random import stream
from offrl_wb.data import bandit_logs
from offrl_wb.data.bandit_logs import (
    LOG_SCHEMA,
    OTHER_CONTEXTS,
    BanditLog,
    align,
    bandit_dataset,
    bandit_log,
    best_and_other,
    context_quota,
    exact_binomial_interval,
    largest_size,
    log_counts,
    reached_concentrability,
    read_bandit_log,
    split,
    take,
    thin,
)
from offrl_wb.data.dataset import Dataset

TABLE = {
    "context": ["north", "north", "south", "south", "south", "north"],
    "action": ["a", "b", "a", "b", "a", "a"],
    "reward": [0.0, 1.0, 0.5, 1.0, 0.0, 1.0],
    "propensity": [0.5, 0.5, 0.25, 0.75, 0.25, 0.5],
}


def write(folder: Path, suffix: str = ".csv", **columns: list) -> Path:
    """A log file with the columns of TABLE, some replaced; None leaves a column out."""
    table = {name: values for name, values in {**TABLE, **columns}.items() if values is not None}
    frame = pl.DataFrame(table, strict=False)
    path = folder / f"log{suffix}"
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)
    return path


def message(path: Path | str, **arguments) -> str:
    with pytest.raises(InputError) as caught:
        read_bandit_log(path, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def make_log(context, action, reward=None, actions=None) -> BanditLog:
    context, action = np.asarray(context), np.asarray(action)
    contexts, actions = context.max() + 1, actions or action.max() + 1
    rows = {
        "context": context,
        "action": action,
        "reward": np.zeros(len(context)) if reward is None else np.asarray(reward, dtype=float),
        "propensity": np.full(len(context), 1 / actions),
    }
    labels = tuple(f"c{i}" for i in range(contexts)), tuple(f"a{i}" for i in range(actions))
    return BanditLog(pl.DataFrame(rows, schema=LOG_SCHEMA), *labels, "design", {"source": "test"})


@st.composite
def logs(draw) -> BanditLog:
    contexts, actions = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    size = draw(st.integers(20, 300))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    weights = generator.dirichlet(np.full(contexts * actions, 2.0))
    cell = generator.choice(contexts * actions, size=size, p=weights)
    cell[: contexts * actions] = np.arange(contexts * actions)[:size]
    reward = generator.random(size)
    return make_log(cell // actions, cell % actions, reward, actions)


# --- good logs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_with_the_default_columns_reads_as_it_stands(tmp_path, suffix):
    log = read_bandit_log(write(tmp_path, suffix))
    assert log.context_labels == ("north", "south")
    assert log.action_labels == ("a", "b")
    assert log.column("context").tolist() == [0, 0, 1, 1, 1, 0]
    assert log.column("action").tolist() == [0, 1, 0, 1, 0, 0]
    assert log.column("reward").tolist() == TABLE["reward"]
    assert log.column("propensity").tolist() == TABLE["propensity"]
    assert log.propensity_source == "design"
    assert len(log.provenance["sha256"]) == 64


def test_columns_are_named_by_the_user_and_contexts_may_be_several(tmp_path):
    frame = pl.DataFrame(TABLE).rename({"action": "arm", "reward": "paid", "propensity": "p"})
    frame.with_columns(sex=pl.Series(["f", "m"] * 3)).write_csv(tmp_path / "x.csv")
    log = read_bandit_log(
        str(tmp_path / "x.csv"), context="context, sex", action="arm", reward="paid", propensity="p"
    )
    assert log.context_labels[0] == "context=north, sex=f"
    assert log.shape == (4, 2)
    assert log.propensity_source == "design"


def test_absent_propensities_are_estimated_per_context_and_labelled(tmp_path):
    log = read_bandit_log(write(tmp_path, propensity=None))
    assert log.propensity_source == "estimated"
    assert np.allclose(log.column("propensity"), [2 / 3, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_recorded_propensities_can_be_set_aside(tmp_path):
    log = read_bandit_log(write(tmp_path), propensity="none")
    assert log.propensity_source == "estimated"


def test_integers_booleans_and_whole_floats_are_labels_in_numerical_order(tmp_path):
    path = write(tmp_path, ".parquet", action=[10.0, 2.0, 10.0, 2.0, 10.0, 2.0])
    assert read_bandit_log(path).action_labels == ("2", "10")
    path = write(tmp_path, ".parquet", context=[10, 9, 10, 9, 100, 9])
    assert read_bandit_log(path).context_labels == ("9", "10", "100")
    path = write(tmp_path, ".parquet", action=[True, False] * 3, reward=[True, False] * 3)
    log = read_bandit_log(path)
    assert log.action_labels == ("false", "true")
    assert log.column("reward").tolist() == [1, 0] * 3


def test_fractional_action_labels_are_kept_apart(tmp_path):
    path = write(tmp_path, ".parquet", action=[0.5, 1.5, 0.5, 1.5, 0.5, 1.5])
    assert read_bandit_log(path).action_labels == ("0.5", "1.5")


def test_a_measured_context_is_banded_by_quantiles(tmp_path):
    rows = 200
    columns = dict(
        context=np.linspace(0, 1, rows).tolist(),
        action=["a", "b"] * (rows // 2),
        reward=[0, 1] * (rows // 2),
        propensity=[0.5] * rows,
    )
    for suffix in (".csv", ".parquet"):
        log = read_bandit_log(write(tmp_path, suffix, **columns), bands=5)
        assert np.bincount(log.column("context")).tolist() == [40] * 5
        assert log.context_labels[0] == "context band 1: below 0.2"
        assert len(log.provenance["banded at"]["context"]) == 4
    one = read_bandit_log(write(tmp_path, **columns), bands=1)
    assert one.context_labels == ("context band 1: all",)


def test_a_heap_at_the_minimum_leaves_no_empty_band(tmp_path):
    columns = dict(
        context=[0.0] * 150 + list(range(1, 51)),
        action=["a", "b"] * 100,
        reward=[0] * 200,
        propensity=[0.5] * 200,
    )
    log = read_bandit_log(write(tmp_path, **columns))
    assert (np.bincount(log.column("context"), minlength=log.shape[0]) > 0).all()


def test_rare_contexts_are_pooled_on_request_only(tmp_path):
    columns = dict(
        context=["big"] * 20 + ["small"] * 2 + ["tiny"],
        action=["a", "b"] * 11 + ["a"],
        reward=[0] * 23,
        propensity=[0.5] * 23,
    )
    assert read_bandit_log(write(tmp_path, **columns)).shape[0] == 3
    log = read_bandit_log(write(tmp_path, **columns), smallest_context=3)
    assert set(log.context_labels) == {"big", OTHER_CONTEXTS}
    assert log.provenance["pooled contexts"] == ["tiny", "small"]
    assert read_bandit_log(write(tmp_path, **columns), smallest_context=100).shape[0] == 1


def test_rewards_are_rescaled_from_a_given_range(tmp_path):
    path = write(tmp_path, reward=[1, 5, 3, 1, 5, 3])
    for given_range in ((1, 5), "1,5"):
        log = read_bandit_log(path, reward_range=given_range)
        assert log.column("reward").tolist() == [0, 1, 0.5, 0, 1, 0.5]
    assert read_bandit_log(write(tmp_path), reward_range="none").column("reward")[2] == 0.5


def test_listed_actions_may_go_unlogged(tmp_path):
    log = read_bandit_log(write(tmp_path), actions=["b", "c", "a"])
    assert log.action_labels == ("b", "c", "a")
    assert log_counts(log)[0][:, 1].tolist() == [0, 0]


def test_tab_separated_and_semicolon_mistakes(tmp_path):
    path = tmp_path / "log.tsv"
    pl.DataFrame(TABLE).write_csv(path, separator="\t")
    assert len(read_bandit_log(path)) == 6
    path = tmp_path / "semicolon.csv"
    pl.DataFrame(TABLE).write_csv(path, separator=";")
    assert "context;action;reward;propensity" in message(path)


def twelve_rows(**columns) -> dict[str, list]:
    return {name: values * 2 for name, values in TABLE.items()} | columns


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_clusters_are_read_where_they_are_named_and_only_there(tmp_path, suffix):
    village = [f"v{i % 11}" for i in range(12)]
    path = write(tmp_path, suffix, **twelve_rows(village=village))
    plain = read_bandit_log(path)
    assert not plain.has_clusters
    log = read_bandit_log(path, cluster="village")
    assert log.has_clusters
    codes = log.column("cluster")
    assert codes[0] == codes[11]
    assert len(set(codes.tolist())) == 11
    assert log.rows.drop("cluster").equals(plain.rows)
    assert log.content_hash != plain.content_hash


def test_clusters_stay_with_their_rows_through_every_operation():
    generator = np.random.default_rng(0)
    log = make_log(generator.integers(2, size=200), generator.integers(3, size=200))
    marked = log.rows.with_columns(
        cluster=pl.Series(np.arange(200) % 40), reward=pl.Series(np.arange(200) % 40 / 40)
    )
    log = BanditLog(marked, log.context_labels, log.action_labels, "design", {})
    parts = (
        *split(log, (0.5, 0.5), stream(0, "split")),
        *align(log, log),
        thin(log, 0.5, [0, 0], 60, stream(0, "thin")),
    )
    for part in parts:
        assert part.has_clusters
        assert np.allclose(part.column("reward") * 40, part.column("cluster"))


# --- bad logs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("column", ["context", "action", "reward"])
def test_a_missing_column_is_named_with_those_found(tmp_path, suffix, column):
    text = message(write(tmp_path, suffix, **{column: None}))
    assert f"no column '{column}'" in text
    assert "propensity" in text
    assert f"log{suffix}" in text
    assert f"log_{column}=" in text


def test_a_named_propensity_that_is_missing_is_refused_rather_than_estimated(tmp_path):
    text = message(write(tmp_path), propensity="prob")
    assert "no column 'prob' for the propensity" in text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("column", "value", "row", "said"),
    [
        ("propensity", 0.0, 3, "0.0"),
        ("propensity", -0.1, 5, "-0.1"),
        ("propensity", 1.01, 1, "1.01"),
        ("propensity", float("nan"), 2, "nan"),
        ("propensity", float("inf"), 2, "inf"),
        ("propensity", None, 6, "empty"),
        ("reward", float("nan"), 4, "nan"),
        ("reward", None, 4, "empty"),
        ("reward", 1.5, 2, "1.5"),
        ("reward", -0.5, 6, "-0.5"),
        ("context", None, 3, "empty"),
        ("action", None, 5, "empty"),
    ],
)
def test_a_bad_value_is_reported_with_file_column_and_row(
    tmp_path, suffix, column, value, row, said
):
    values = list(TABLE[column])
    values[row - 1] = value
    path = write(tmp_path, suffix, **{column: values})
    text = message(path)
    assert f"log{suffix}" in text
    assert f"column '{column}', row {row}: " in text
    assert said.lower() in text.split(f"row {row}: ")[1].lower()


def test_clusters_that_are_absent_empty_or_too_few_are_refused(tmp_path):
    village = [f"v{i}" for i in range(12)]
    path = write(tmp_path, **twelve_rows(village=village))
    assert "no column 'vilage' for the cluster" in message(path, cluster="vilage")
    assert "log_cluster=" in message(path, cluster="vilage")
    path = write(tmp_path, **twelve_rows(village=[*village[:6], None, *village[7:]]))
    assert "column 'village', row 7: empty" in message(path, cluster="village")
    path = write(tmp_path, **twelve_rows(village=["v1", "v2"] * 6))
    assert "holds 2 clusters" in message(path, cluster="village")
    good = make_log([0, 1], [0, 1])
    rows = good.rows.with_columns(cluster=pl.Series([0, -1]))
    with pytest.raises(InputError, match="row 2"):
        BanditLog(rows, good.context_labels, good.action_labels, "design", {})


def test_only_the_first_of_several_bad_rows_is_named(tmp_path):
    text = message(write(tmp_path, propensity=[0.5, 0, 0, 0.5, 0, 0.5]))
    assert "row 2: " in text
    assert "(3 such rows)" in text


def test_words_among_the_numbers_are_quoted(tmp_path):
    text = message(write(tmp_path, reward=["0", "1", "yes", "1", "no", "0"]))
    assert "column 'reward', row 3: 'yes' is not a finite number" in text


def test_nan_among_float_contexts_is_refused(tmp_path):
    path = write(tmp_path, ".parquet", context=[1.5, 2.5, float("nan"), 1.5, 2.5, 1.5])
    assert "column 'context', row 3: nan" in message(path)
    path = write(tmp_path, context=["x", "x", "NaN", "y", "y", "y"])
    assert "column 'context', row 3" in message(path)


def test_unsuitable_column_types_are_refused(tmp_path):
    lists = write(tmp_path, ".parquet", action=[["a"]] * 6)
    assert "column 'action' holds List" in message(lists)
    dates = pl.DataFrame(TABLE).with_columns(reward=pl.date(2020, 1, 1))
    dates.write_parquet(tmp_path / "dates.parquet")
    assert "column 'reward' holds Date" in message(tmp_path / "dates.parquet")


def test_an_unknown_action_is_named_with_the_known_ones(tmp_path):
    text = message(write(tmp_path), actions=["a", "c"])
    assert "column 'action', row 2: 'b' is an unknown action; known are a, c" in text


def test_a_single_action_is_nothing_to_choose_from(tmp_path):
    assert "holds only the action 'a'" in message(write(tmp_path, action=["a"] * 6))


def test_actions_that_never_repeat_are_refused(tmp_path):
    rows = 120
    path = write(
        tmp_path,
        context=["x"] * rows,
        action=[i / 7 for i in range(rows)],
        reward=[0] * rows,
        propensity=None,
    )
    assert "120 different actions in 120 rows" in message(path)


@pytest.mark.parametrize(
    "bad", ["5,1", "1", "a,b", "1,2,3", (1, 1), (0, float("inf")), 7], ids=repr
)
def test_an_impossible_reward_range_is_refused(tmp_path, bad):
    assert "reward_range" in message(write(tmp_path), reward_range=bad)


def test_rewards_outside_the_given_range_are_refused(tmp_path):
    text = message(write(tmp_path, reward=[1, 5, 6, 1, 5, 3]), reward_range=(1, 5))
    assert "row 3: '6' is outside the reward range [1, 5]" in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("heading.csv", b"context,action,reward\n", "0 data rows"),
        ("one.csv", b"context,action,reward\na,b,1\n", "1 data rows"),
        ("ragged.csv", b"context,action,reward\na,b,1\na,b,1,7\n", "not a readable table"),
        ("latin.csv", "context,action,reward\né,b,1\na,b,0\n".encode("latin1"), "not a readable"),
        ("empty.parquet", b"", "not a readable table"),
        ("text.parquet", b"context,action\n1,2\n", "not a readable table"),
        ("cut.parquet", b"PAR1\x00\x00\x00\x00\x00\x00\x00\x00", "not a readable table"),
        ("log.xlsx", b"PK", "read by its ending"),
    ],
)
def test_files_that_are_no_table_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    text = message(tmp_path / name)
    assert said in text
    assert name in text


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in message(tmp_path / "nowhere.csv")
    assert "no such file" in message("thornton")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bandit_logs.pl, "read_csv", denied)
    assert "Permission denied" in message(path)


def test_impossible_settings_are_refused(tmp_path):
    assert "bands=0" in message(write(tmp_path), bands=0)
    assert "smallest_context=-1" in message(write(tmp_path), smallest_context=-1)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=120))
def test_any_bytes_give_a_log_or_one_line(tmp_path, data):
    path = tmp_path / "fuzz.csv"
    path.write_bytes(b"context,action,reward,propensity\n" + data)
    try:
        log = read_bandit_log(path)
    except InputError as problem:
        assert "\n" not in str(problem)  # noqa: PT017
        assert "fuzz.csv" in str(problem)  # noqa: PT017
    else:
        assert len(log) >= 2


CELL = st.sampled_from(["a", "b", "1", "0", "0.5", "2", "", "nan", "-1", "1e-3", "x y", '"'])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(CELL, CELL, CELL, CELL), min_size=2, max_size=8))
def test_any_cells_give_a_valid_log_or_name_a_row_that_is_bad(tmp_path, rows):
    path = tmp_path / "fuzz.csv"
    columns = dict(zip(TABLE, map(list, zip(*rows, strict=True)), strict=True))
    pl.DataFrame(columns).write_csv(path)
    try:
        log = read_bandit_log(path)
    except InputError as problem:
        if ", row " in str(problem):
            column = str(problem).split("column '")[1].split("'")[0]
            row = int(str(problem).split(", row ")[1].split(":")[0])
            good = {"context": {"a", "b"}, "action": {"a", "b"}, "reward": {"0", "1"}}
            assert columns[column][row - 1] not in good.get(column, {"1", "0.5"})
    else:
        assert len(log) == len(rows)
        assert log.column("reward").tolist() == [float(row[2]) for row in rows]


def test_a_log_of_values_out_of_range_cannot_be_made():
    good = make_log([0, 1], [0, 1])
    for name, value in (("reward", 2.0), ("propensity", 0.0), ("propensity", float("nan"))):
        rows = good.rows.with_columns(pl.Series(name, [0.5, value]))
        with pytest.raises(InputError, match="row 2"):
            BanditLog(rows, good.context_labels, good.action_labels, "design", {})
    with pytest.raises(InputError, match="row 2"):
        BanditLog(good.rows, ("only one",), good.action_labels, "design", {})
    with pytest.raises(InputError, match="design or estimated"):
        BanditLog(good.rows, good.context_labels, good.action_labels, "guessed", {})
    with pytest.raises(InputError, match="has columns"):
        BanditLog(good.rows.drop("reward"), good.context_labels, good.action_labels, "design", {})


# --- the Open Bandit Dataset's format ------------------------------------------------------------


def obd_folder(parent: Path, items=(0, 1, 2), shown=(0, 2, 1, 2)) -> Path:
    folder = parent / "obd" / "random" / "demo"
    folder.mkdir(parents=True)
    pl.DataFrame({"": range(len(items)), "item_id": items}).write_csv(folder / "item_context.csv")
    rows = len(shown)
    table = {
        "": range(rows),
        "timestamp": ["2019-11-24 00:00:00+00:00"] * rows,
        "item_id": shown,
        "position": [1] * rows,
        "click": [0, 1] * (rows // 2),
        "propensity_score": [1 / 3] * rows,
        "user_feature_0": ["aa", "bb"] * (rows // 2),
        "user_feature_1": ["cc"] * rows,
    }
    pl.DataFrame(table).write_csv(folder / "demo.csv")
    return folder


def test_a_folder_in_the_open_bandit_format_reads(tmp_path):
    log = read_bandit_log(obd_folder(tmp_path))
    assert log.action_labels == ("0", "1", "2")
    assert log.context_labels == ("cc",)
    assert log.column("reward").tolist() == [0, 1, 0, 1]
    assert np.allclose(log.column("propensity"), 1 / 3)
    assert log.propensity_source == "design"
    assert log.provenance["folder"] == "random/demo"


def test_the_context_features_of_an_open_bandit_folder_can_be_chosen(tmp_path):
    log = read_bandit_log(obd_folder(tmp_path), context="user_feature_0,user_feature_1")
    assert log.shape[0] == 2
    assert "no column 'user_feature_9'" in message(
        tmp_path / "obd/random/demo", context="user_feature_9"
    )


def test_a_local_folder_comes_before_an_installed_obp(tmp_path, monkeypatch):
    obd_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(read_bandit_log("obd/random/demo")) == 4


def test_an_item_that_is_not_in_the_list_is_unknown(tmp_path):
    text = message(obd_folder(tmp_path, items=(0, 1)))
    assert "demo.csv: column 'item_id', row 2: '2' is an unknown action; known are 0, 1" in text


def test_an_incomplete_open_bandit_folder_is_refused(tmp_path):
    assert "needs item_context.csv" in message(tmp_path)
    folder = obd_folder(tmp_path)
    (folder / "item_context.csv").unlink()
    assert "needs item_context.csv" in message(folder)


@pytest.mark.parametrize("name", ["obd/greedy/men", "obd/random/children", "obd/random"])
def test_names_that_no_campaign_has_are_refused(name):
    assert "obd/POLICY/CAMPAIGN" in message(name)


def test_an_absent_obp_is_reported(monkeypatch):
    monkeypatch.setattr(bandit_logs.importlib.util, "find_spec", lambda name: None)
    assert "obp is not installed" in message("obd/random/men")


def test_an_installed_obp_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "obp"
    data = package / "dataset" / "obd" / "bts" / "women"
    data.parent.mkdir(parents=True)
    obd_folder(tmp_path).rename(data)
    (data / "demo.csv").rename(data / "women.csv")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(read_bandit_log("obd/bts/women")) == 4


@pytest.mark.skipif(importlib.util.find_spec("obp") is None, reason="obp is not installed")
@pytest.mark.parametrize("campaign", ["men", "women", "all"])
def test_the_open_bandit_sample_reads(campaign):
    uniform = read_bandit_log(f"obd/random/{campaign}")
    sampled = read_bandit_log(f"obd/bts/{campaign}")
    assert len(uniform) == len(sampled) == 10_000
    assert uniform.action_labels == sampled.action_labels
    assert np.isclose(1 / uniform.column("propensity"), uniform.shape[1]).all()


# --- the field experiment ------------------------------------------------------------------------

HAS_CAUSALDATA = importlib.util.find_spec("causaldata") is not None
needs_causaldata = pytest.mark.skipif(
    not HAS_CAUSALDATA, reason="causaldata is not installed: pip install 'offrl_wb[data]'"
)


@needs_causaldata
def test_thorntons_experiment_reads_with_everybody_accounted_for():
    log = read_bandit_log("thornton_hiv")
    dropped = [value for name, value in log.provenance.items() if name.startswith("dropped")]
    assert len(log) + sum(dropped) == log.provenance["rows in the file"] == 4820
    assert log.shape == (9, 4)
    assert len(np.unique(log.column("cluster"))) == 119
    assert log.propensity_source == "estimated"


@needs_causaldata
def test_thorntons_results_agree_with_the_published_ones():
    number, reward_sums = log_counts(read_bandit_log("thornton_hiv"))
    fetched = reward_sums.sum(axis=0) / number.sum(axis=0)
    assert fetched[0] == pytest.approx(0.34, abs=0.005)  # 34 % without a voucher
    assert reward_sums[:, 1:].sum() / number[:, 1:].sum() == pytest.approx(0.79, abs=0.005)
    assert number.min() >= 30


@needs_causaldata
def test_estimated_propensities_of_the_experiment_sum_to_one_in_each_context():
    rows = read_bandit_log("thornton_hiv").rows.unique(["context", "action"])
    sums = rows.group_by("context").agg(pl.col("propensity").sum())["propensity"].to_numpy()
    assert np.allclose(sums, 1)


def test_an_absent_causaldata_is_reported(monkeypatch):
    monkeypatch.setattr(bandit_logs.importlib.util, "find_spec", lambda name: None)
    text = message("thornton_hiv")
    assert "causaldata" in text
    assert "pip install" in text


def test_the_experiment_has_its_own_columns():
    assert "leave the column names" in message("thornton_hiv", context="age")


# --- counts, splits, alignment -------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(log=logs())
def test_counts_equal_a_loop_over_the_rows(log):
    number, sums = np.zeros(log.shape, dtype=int), np.zeros(log.shape)
    for context, action, reward, _ in log.rows.iter_rows():
        number[context, action] += 1
        sums[context, action] += reward
    assert (log_counts(log)[0] == number).all()
    assert np.allclose(log_counts(log)[1], sums)


@settings(max_examples=80, deadline=None)
@given(
    log=logs(),
    cuts=st.lists(st.floats(0.1, 0.5), min_size=1, max_size=3),
    stratified=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_splits_are_disjoint_and_of_the_wanted_size(log, cuts, stratified, seed):
    assume(sum(cuts) <= 1)
    tagged = log.rows.with_columns(reward=pl.Series(np.arange(len(log)) / len(log)))
    log = BanditLog(tagged, log.context_labels, log.action_labels, "design", {})
    try:
        parts = split(log, cuts, stream(seed, "split"), stratified)
    except InputError as problem:
        assert "is empty" in str(problem)  # noqa: PT017
        return
    seen = np.concatenate([part.column("reward") for part in parts])
    assert len(np.unique(seen)) == len(seen)
    cells = log_counts(log)[0] if stratified else np.array(len(log))
    for part, fraction in zip(parts, cuts, strict=True):
        got = log_counts(part)[0] if stratified else np.array(len(part))
        assert (np.abs(got - fraction * cells) < 1 + 1e-9).all()


def test_fractions_that_use_everything_lose_no_row():
    log = make_log(np.arange(997) % 3, np.arange(997) % 7)
    parts = split(log, (0.25, 0.4, 0.35), stream(0, "all"))
    assert sum(map(len, parts)) == 997


def test_the_same_stream_gives_the_same_split():
    log = make_log(np.arange(100) % 3, np.arange(100) % 2)
    first, again = (split(log, (0.5, 0.3), stream(3, "x")) for _ in range(2))
    assert [p.content_hash for p in first] == [p.content_hash for p in again]
    assert first[0].provenance["parent"] == log.content_hash


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (0.5, 0.0), (-0.1, 0.5)])
def test_impossible_fractions_are_refused(fractions):
    log = make_log([0, 1, 0, 1], [0, 1, 1, 0])
    with pytest.raises(InputError, match="fractions"):
        split(log, fractions, stream(0, "x"))


def test_an_empty_part_is_refused():
    with pytest.raises(InputError, match="is empty"):
        split(make_log([0, 1], [0, 1]), (0.001, 0.9), stream(0, "x"), stratified=False)


def test_taking_rows_keeps_them_and_their_order():
    log = make_log([0, 1, 0, 1], [0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4])
    part = take(log, np.array([3, 0]), {"operation": "by hand"})
    assert part.column("reward").tolist() == [0.4, 0.1]
    assert part.provenance["of"] == {"source": "test"}


@settings(max_examples=30, deadline=None)
@given(log=logs(), seed=st.integers(0, 100))
def test_aligned_logs_mean_the_same_rows(log, seed):
    generator = np.random.default_rng(seed)
    order = generator.permutation(log.shape[1])
    renamed = log.rows.with_columns(action=pl.Series(np.argsort(order)[log.column("action")]))
    labels = tuple(log.action_labels[i] for i in order)
    other = BanditLog(renamed, log.context_labels, labels, "design", {})
    first, second = align(log, other)
    assert first.rows.equals(second.rows)
    assert first.action_labels == second.action_labels


# --- thinning ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    log=logs(),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_thinning_to_the_largest_size_reaches_every_share_to_one_row(log, shares, seed):
    best = np.random.default_rng(seed).integers(log.shape[1], size=log.shape[0])
    try:
        size = largest_size(log, best, shares)
    except InputError as problem:
        assert "no size reaches the shares" in str(problem)  # noqa: PT017
        return
    quota = context_quota(log, size)
    for share in shares:
        part = thin(log, share, best, size, stream(seed, "thin"))
        chosen, other = best_and_other(part, best)
        assert len(part) == size
        assert (chosen + other == quota).all()
        assert (np.abs(chosen - share * quota) <= 0.5 + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    log=logs(), shares=st.lists(st.floats(0, 1), min_size=1, max_size=3), seed=st.integers(0, 99)
)
def test_no_larger_size_reaches_every_share(log, shares, seed):
    best = np.random.default_rng(seed).integers(log.shape[1], size=log.shape[0])
    chosen, other = best_and_other(log, best)

    def possible(size: int) -> bool:
        quota = context_quota(log, size)
        expert = [np.rint(share * quota) for share in shares]
        return ((quota > 0) | (chosen + other == 0)).all() and all(
            (e <= chosen).all() and (quota - e <= other).all() for e in expert
        )

    largest = max((size for size in range(1, len(log) + 1) if possible(size)), default=0)
    if largest == 0:
        with pytest.raises(InputError):
            largest_size(log, best, shares)
    else:
        assert largest_size(log, best, shares) == largest


@settings(max_examples=80, deadline=None)
@given(log=logs(), share=st.floats(0, 1), part=st.floats(0, 1), seed=st.integers(0, 1000))
def test_thinning_beyond_what_is_available_keeps_the_size_and_comes_closest(log, share, part, seed):
    best = np.random.default_rng(seed).integers(log.shape[1], size=log.shape[0])
    size = max(1, int(part * len(log)))
    thinned = thin(log, share, best, size, stream(seed, "thin"))
    chosen, other = best_and_other(thinned, best)
    quota, (had, had_other) = context_quota(log, size), best_and_other(log, best)
    assert (chosen + other == quota).all()
    possible = np.clip(np.rint(share * quota), quota - had_other, np.minimum(had, quota))
    assert (chosen == possible).all()


def test_thinning_draws_rows_of_the_log_without_repeats():
    generator = np.random.default_rng(0)
    log = make_log(
        generator.integers(3, size=400), generator.integers(3, size=400), np.arange(400) / 400
    )
    rows = thin(log, 0.5, [0, 1, 2], 150, stream(0, "thin"))
    assert len(np.unique(rows.column("reward"))) == 150
    original = {row[2]: row[:2] for row in log.rows.iter_rows()}
    assert all(original[row[2]] == row[:2] for row in rows.rows.iter_rows())


def test_thinning_keeps_every_row_of_a_kind_equally_often():
    log = make_log([0] * 40, [0] * 20 + [1] * 20, np.arange(40) / 40)
    kept = np.zeros(40)
    for seed in range(600):
        thinned = thin(log, 0.5, [0], 10, stream(seed, "fair"))
        kept[(thinned.column("reward") * 40).round().astype(int)] += 1
    expected, noise = 150, np.sqrt(600 * 0.25 * 0.75)
    assert np.abs(kept - expected).max() < 4.5 * noise


def test_a_thinned_log_has_propensities_of_its_own():
    log = make_log([0] * 40, [0] * 20 + [1] * 20)
    thinned = thin(log, 0.8, [0], 20, stream(0, "thin"))
    assert thinned.propensity_source == "estimated"
    assert sorted(set(thinned.column("propensity").round(9))) == [0.2, 0.8]


@pytest.mark.parametrize(("share", "size"), [(-0.1, 5), (1.1, 5), (0.5, 0), (0.5, 41)])
def test_impossible_thinnings_are_refused(share, size):
    log = make_log([0] * 40, [0] * 20 + [1] * 20)
    with pytest.raises(InputError, match="share"):
        thin(log, share, [0], size, stream(0, "thin"))


@pytest.mark.parametrize("shares", [[], [1.2], [-0.1, 0.5]])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(InputError, match="shares"):
        largest_size(make_log([0, 0, 0], [0, 1, 1]), [0], shares)


def test_scarce_contexts_may_be_left_uncovered():
    context = [0] * 90 + [1] * 10
    action = [0] * 45 + [1] * 45 + [1] * 10  # context 1 never saw action 0
    log = make_log(context, action)
    with pytest.raises(InputError, match="'c1' has 0 rows of its best action"):
        largest_size(log, [0, 0], [0.9])
    size = largest_size(log, [0, 0], [0.9], covered=0.9)
    assert 45 <= size <= 57
    chosen, other = best_and_other(thin(log, 0.9, [0, 0], size, stream(0, "x")), [0, 0])
    assert abs(chosen[0] - 0.9 * (chosen[0] + other[0])) <= 0.5
    assert chosen[1] == 0


# --- concentrability -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(log=logs(), seed=st.integers(0, 99))
def test_the_estimate_is_the_definition_and_inside_its_interval(log, seed):
    best = np.random.default_rng(seed).integers(log.shape[1], size=log.shape[0])
    number = log_counts(log)[0]
    rho, mu = number.sum(axis=1) / len(log), number / len(log)
    expected = max(rho[s] / mu[s, best[s]] if mu[s, best[s]] else np.inf for s in range(len(rho)))
    reached = reached_concentrability(log, best)
    assert np.isclose(reached.estimate, expected) or reached.estimate == expected == np.inf
    assert 1 <= reached.low <= reached.estimate <= reached.high


def test_another_context_distribution_is_weighed_in():
    log = make_log([0] * 50 + [1] * 50, ([0] * 25 + [1] * 25) * 2)
    assert reached_concentrability(log, [0, 0]).estimate == 2
    assert reached_concentrability(log, [0, 0], np.array([1.0, 0.0])).estimate == 4
    never_met = reached_concentrability(log, [0, 0], np.array([0.5, 0.5]))
    assert never_met.estimate == 2


def test_a_context_that_was_never_logged_has_infinite_concentrability():
    log = make_log([0] * 4, [0, 1, 0, 1])
    wider = BanditLog(log.rows, ("c0", "c1"), log.action_labels, "design", {})
    assert reached_concentrability(wider, [0, 0]).estimate == 2
    assert reached_concentrability(wider, [0, 0], np.array([0.5, 0.5])).estimate == np.inf


def test_the_interval_covers_the_truth_at_its_level():
    generator = stream(0, "coverage")
    share = np.array([0.3, 0.5, 0.9])
    missed = 0
    for _ in range(300):
        context = generator.integers(3, size=120)
        action = (generator.random(120) > share[context]).astype(int)
        log = make_log(np.append(context, [0, 1, 2]), np.append(action, [1, 1, 1]))
        rho = np.bincount(context, minlength=3) / 120
        reached = reached_concentrability(log, [0, 0, 0], rho)
        missed += (
            not reached.low
            <= (rho / np.bincount(log.column("context")) * 123 / share).max()
            <= reached.high
        )
    assert missed <= 15


def test_the_exact_interval_agrees_with_scipys():
    from scipy.stats import binomtest

    for successes, rows in ((0, 10), (3, 10), (10, 10), (46, 10_000)):
        ours = exact_binomial_interval(successes, rows)
        theirs = binomtest(successes, rows).proportion_ci(0.95, "exact")
        assert np.allclose([ours.low, ours.high], [theirs.low, theirs.high])
    nothing = exact_binomial_interval(0, 0)
    assert np.isnan(nothing.estimate)
    assert (nothing.low, nothing.high) == (0, 1)


def test_a_log_comes_back_from_a_dataset_as_it_was(tmp_path):
    log = read_bandit_log(write(tmp_path))
    log = replace(log, rows=log.rows.with_columns(cluster=pl.Series([0, 0, 1, 1, 2, 2])))
    dataset = bandit_dataset(log)
    assert dataset.episode_count == len(dataset) == len(log)
    assert dataset.transitions["terminated"].all()
    assert dataset.transitions["behaviour_prob"].to_list() == TABLE["propensity"]
    assert dataset.episodes["cluster"].to_list() == log.column("cluster").tolist()
    assert (dataset.spec.observation_space.n, dataset.spec.action_space.n) == log.shape
    back = bandit_log(dataset, log.context_labels, log.action_labels)
    assert back.content_hash == log.content_hash
    assert (back.context_labels, back.action_labels) == (log.context_labels, log.action_labels)


def test_the_provenance_of_a_logs_dataset_names_the_log():
    log = make_log([0, 1, 0], [1, 0, 0])
    provenance = bandit_dataset(log).provenance
    assert provenance.operation == "offrl_wb.data.bandit_logs.bandit_dataset"
    assert provenance.outcome["propensity_source"] == log.propensity_source
    assert provenance.outcome["action_labels"] == log.action_labels
    again = bandit_dataset(make_log([0, 1, 0], [1, 0, 0]))
    assert provenance.hash == again.provenance.hash


def test_a_dataset_without_propensities_becomes_a_log_with_estimated_ones():
    data = Dataset.from_arrays(
        np.array([0, 0, 0, 1]), np.array([1, 1, 0, 0]), np.zeros(4), np.ones(4, bool)
    )
    log = bandit_log(data)
    assert log.propensity_source == "estimated"
    assert log.column("propensity") == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1])
    assert log.context_labels == ("0", "1")


def test_datasets_that_are_no_bandit_logs_are_refused():
    ends = np.array([False, True, True])
    long = Dataset.from_arrays(np.array([0, 1, 0]), np.array([0, 1, 0]), np.zeros(3), ends)
    with pytest.raises(InputError, match="episode 0 has 2 steps"):
        bandit_log(long)
    vectors = Dataset.from_arrays(np.zeros((2, 3)), np.array([0, 1]), np.zeros(2), np.ones(2, bool))
    with pytest.raises(InputError, match="obs is Box"):
        bandit_log(vectors)
    rich = Dataset.from_arrays(np.array([0]), np.array([0]), np.array([7.0]), np.ones(1, bool))
    with pytest.raises(InputError, match="row 1 of the log is out of range"):
        bandit_log(rich)
