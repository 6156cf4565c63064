import numpy as np
import pytest

from unseen.errors import InputError
from unseen.studies.plan import Plan
from unseen.studies.store import CellResult, Store


def test_a_cell_is_there_whole_or_not_at_all(toy, tmp_path):
    cell, other = Plan.make(toy, ["erm"], unseen="a", seeds=2).cells
    record = {"role": "unseen", "domain": "a", "metric": "accuracy", "value": 0.5, "n": 3}
    result = CellResult(
        cell.key, [record], {"unseen/logits": np.arange(6.0).reshape(3, 2)}, {"steps": 3}, 1.5
    )
    path = tmp_path / "results.sqlite"
    with Store(path) as store:
        broken = CellResult(other.key, [{"role": "unseen"}])  # a record without its fields
        with pytest.raises(KeyError):
            store.add([(cell, result), (other, broken)])
        assert store.finished() == set()
        store.add([(cell, result)])
    with Store(path) as store:
        assert store.finished() == {cell.key}
        row = store.cells().iloc[0]
        assert (row.method, row.unseen, row.status, row.facts) == ("erm", ("a",), "done", {"steps": 3})
        assert store.metrics().iloc[0].to_dict() == {
            "cell": cell.key, "step": -1, "category": "", **record,
        }  # fmt: skip
        assert np.array_equal(store.array(cell.key, "unseen/logits"), np.arange(6.0).reshape(3, 2))
        with pytest.raises(InputError, match="is not in the results"):
            store.array(cell.key, "unseen/nothing")


def test_a_file_that_is_no_store_is_named(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_text("this is not a database, but it is long enough to be mistaken for one")
    with pytest.raises(InputError, match="results.sqlite.*cannot be used"):
        Store(path)
