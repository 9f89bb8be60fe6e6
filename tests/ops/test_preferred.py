"""Which backend serves a size first on a GPU: the table that ships, one with entries, and damaged ones."""

import json

import pytest
import torch

from medsora_ops import __main__ as report
from medsora_ops import backends, preferred

X = torch.zeros(1, 2, 48, 64)
WEIGHT = torch.zeros(2, 48, 33)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A function that writes a table and puts it in place of the shipped one."""

    def put(content):
        path = tmp_path / "preferred.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setattr(preferred, "_SHIPPED", path)
        preferred.table.cache_clear()
        preferred._backend.cache_clear()

    yield put
    preferred.table.cache_clear()
    preferred._backend.cache_clear()


@pytest.fixture
def both(monkeypatch):
    """Both backends are here, and tell their names; an implementation is chosen by `select` as on a GPU."""
    monkeypatch.setattr(backends, "_table", dict(backends._table))
    for priority, name in ((10, "cuda"), (5, "triton")):
        backends.register("spectral_filter", name, print, print, devices=("cuda",), priority=priority)
    backends._ranked.cache_clear()
    yield lambda x=X, **wanted: backends.select("spectral_filter", "cuda", x, WEIGHT, **wanted).backend
    backends._ranked.cache_clear()


def entry(**changes):
    case = {"operator": "spectral_filter", "architecture": "interpreter", "size": 64, "dtype": "float32"}
    return case | {"backend": "triton", "measured": {"chip": "none"}} | changes


def of_entries(*entries, default="cuda"):
    return {"format": 1, "default": {"backend": default, "measured": None}, "entries": list(entries)}


def test_the_shipped_table_says_that_nothing_was_measured():
    found = preferred.table()
    assert found.default in backends.BACKENDS and found.default_measured is None and found.entries == {}
    assert found.told() == "cuda, not measured; measured otherwise: none"
    assert found.told() in report.summary(report.installation())


def test_an_entry_serves_its_size_type_and_chip_and_no_other(table, both):
    assert both() == "cuda"
    table(of_entries(entry()))
    assert both() == "triton" and both(X[..., :33]) == "triton"
    assert both(X[..., :32, :32]) == both(X.bfloat16()) == "cuda"
    assert both(backend="cuda") == "cuda"
    for other in (entry(architecture="sm_90"), entry(operator="gather")):
        table(of_entries(other))
        assert both() == "cuda"
    table(of_entries(entry(backend="cuda"), default="triton"))
    assert both() == "cuda" and both(X[..., :32, :32]) == "triton"


def test_what_is_preferred_but_cannot_serve_is_passed_over(table, both):
    backends.register(
        "spectral_filter", "triton", print, print, devices=("cuda",), priority=5, supports=lambda *a: "not this one"
    )
    table(of_entries(entry()))
    assert both() == "cuda"


@pytest.mark.parametrize(
    "content, named",
    [("{", "Expecting"), ({"format": 2}, "format 2"), ({"format": 1, "entries": []}, "default"),
     (of_entries({"operator": "gather"}), "architecture")],
)  # fmt: skip
def test_a_damaged_table_is_named(content, named, table):
    table(content)
    with pytest.raises(ValueError, match=rf"preferred.json: is no table of preferred backends \(.*{named}"):
        preferred.table()
