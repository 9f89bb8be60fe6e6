"""The backend table: who serves, what a request means, and what is said when it cannot be met."""

import logging
import threading

import pytest
import torch

from medsora_ops import (
    ScanPath,
    backend_report,
    backends,
    focal_frequency_loss,
    gather,
    merge,
    path_scan,
    spectral_filter,
    ssd_scan,
    use_backend,
)

PATH = ScanPath.temporal((2, 2, 2))
X = torch.randn(1, 8, 3)


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    """Whatever a test registers is gone after it."""
    monkeypatch.delenv("MEDSORA_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_table", dict(backends._table))
    monkeypatch.setattr(backends, "_announced", set())


def count_calls(name="cuda", **options):
    """Register a gather under `name` that counts its calls, with the meaning of the reference."""
    calls = []
    reference = backends._table["gather", "reference"].forward

    def forward(x, offsets, stride):
        calls.append(threading.get_ident())
        return reference(x, offsets, stride)

    backends.register("gather", name, forward, priority=99, **options)
    return calls


def test_the_highest_priority_that_can_serve_is_taken_and_named_once(caplog):
    calls = count_calls(supports=lambda x, offsets, stride: "odd widths only" if x.shape[2] % 2 == 0 else None)
    with caplog.at_level(logging.INFO, logger="medsora_ops"):
        gather(X, PATH)
        gather(X, PATH)
        assert len(calls) == 2
        gather(X[..., :2], PATH)
        assert len(calls) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("gather on cpu is served by cuda") == 1 and len(lines) == 2


def test_a_request_holds_within_its_block_and_in_its_gradient():
    calls = count_calls()
    x = X.clone().requires_grad_()
    with use_backend("reference"):
        y = gather(x, PATH)
        with use_backend("cuda"):
            gather(x, PATH)
        assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 1
    with use_backend("reference"), pytest.raises(KeyError), use_backend("cuda"):
        raise KeyError
    assert backends.requested() == ""


def test_a_gradient_keeps_the_backend_that_was_asked_for():
    asked = []
    for operator in ("gather", "merge"):
        forward = backends._table[operator, "reference"].forward

        def run(*arguments, operator=operator, forward=forward):
            asked.append(operator)
            return forward(*arguments)

        backends.register(operator, "cuda", run, priority=-1)
    x = X.clone().requires_grad_()
    with use_backend("cuda"):
        y = gather(x, PATH)
    y.sum().backward()
    assert asked == ["gather", "merge"]


def test_the_environment_asks_for_a_whole_process_and_a_block_overrules_it(monkeypatch):
    calls = count_calls()
    monkeypatch.setenv("MEDSORA_BACKEND", "reference")
    gather(X, PATH)
    assert not calls
    with use_backend("cuda"):
        gather(X, PATH)
    assert len(calls) == 1
    monkeypatch.setenv("MEDSORA_BACKEND", "fast")
    with pytest.raises(ValueError, match="backend: got 'fast', wants one of reference, native, triton, cuda"):
        gather(X, PATH)


def test_the_registered_operators_ask_too_when_compiled():
    calls = count_calls()
    compiled = torch.compile(lambda x: gather(x, PATH), fullgraph=True, backend="eager")
    compiled(X)
    assert len(calls) == 1
    with use_backend("reference"):
        compiled(X)
    assert len(calls) == 1


def test_the_log_says_why_a_better_one_does_not_serve(caplog):
    count_calls("triton", unavailable=lambda: "no compiler here", devices=("cpu",))
    count_calls("cuda", supports=lambda *arguments: "even widths only")
    backends.register("gather", "native", print, devices=("cuda",), priority=100)
    with caplog.at_level(logging.INFO, logger="medsora_ops"):
        gather(X, PATH)
    (record,) = caplog.records
    told, reasons = record.getMessage().removesuffix(")").split(" (")
    assert told == "gather on cpu is served by reference"
    assert sorted(reasons.split("; ")) == ["cuda: even widths only", "triton: no compiler here"]


def calls_of_every_operator():
    """For each operator some arguments and a call of it: its tensors in, one tensor out."""
    made = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=made, dtype=torch.float64, requires_grad=True)

    mixer = [normal(1, 8, 15), normal(10, 4), normal(10), normal(1), normal(1), normal(1), normal(4)]
    scan = [normal(2, 5, 2, 3), normal(2, 5, 2), normal(2), normal(2, 5, 1, 4), normal(2, 5, 1, 4)]
    return {
        "gather": ([normal(1, 8, 3)], lambda x: gather(x, PATH)),
        "merge": ([normal(1, 2, 4, 2, 3)], lambda y: merge(y, PATH)),
        "path_scan": (mixer, lambda *tensors: sum(path_scan(*tensors, (PATH, PATH), head_dim=4))),
        "ssd_scan": (scan, ssd_scan),
        "spectral_filter": ([normal(1, 2, 4, 5), normal(2, 4, 3)], spectral_filter),
        "focal_frequency_loss": ([normal(2, 1, 4, 5), normal(2, 1, 4, 5)], focal_frequency_loss),
    }


@pytest.mark.parametrize("operator", backends.OPERATORS)
def test_a_faster_implementation_joins_by_registration(operator):
    """It serves the call and its gradient, the latter also after the block that asked for it."""
    served = []

    def counted(name, run):
        def count(*arguments):
            served.append(name)
            return run(*arguments)

        return count

    for name in backends.OPERATORS:
        reference = backends._table[name, "reference"]
        backward = reference.backward and counted(f"{name} backward", reference.backward)
        backends.register(name, "triton", counted(name, reference.forward), backward, devices=("cpu",), priority=-1)
    tensors, call = calls_of_every_operator()[operator]
    with use_backend("reference"):
        wanted = torch.autograd.grad(call(*tensors).square().sum(), tensors)
    assert served == []
    with use_backend("triton"):
        loss = call(*tensors).square().sum()
    for one, other in zip(torch.autograd.grad(loss, tensors), wanted, strict=True):
        torch.testing.assert_close(one, other)
    gradient = {"gather": "merge", "merge": "gather"}.get(operator, f"{operator} backward")
    assert served == [operator, gradient]


@pytest.mark.parametrize("operator", backends.OPERATORS)
def test_the_reference_serves_every_device_that_torch_knows(operator):
    tensors, call = calls_of_every_operator()[operator]
    shape = call(*tensors).shape
    out = call(*(t.detach().to("meta") for t in tensors))
    assert out.device.type == "meta" and out.shape == shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("operator", backends.OPERATORS)
def test_cuda_equals_cpu(operator):
    tensors, call = calls_of_every_operator()[operator]
    results = []
    for device in ("cpu", "cuda"):
        out = call(*(t.to(device) for t in tensors))
        results.append([out.cpu(), *torch.autograd.grad(out.square().sum(), tensors)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_unknown_names_are_errors_at_once():
    with pytest.raises(ValueError, match="backend: got 'gpu', wants one of reference"), use_backend("gpu"):
        pass
    with pytest.raises(ValueError, match="backend: got 'gpu'"):
        backends.register("gather", "gpu", print)
    with pytest.raises(ValueError, match="operator: got 'scatter', wants one of gather"):
        backends.register("scatter", "native", print)
    with pytest.raises(ValueError, match="backward: got None, wants the gradient of ssd_scan"):
        backends.register("ssd_scan", "native", print)


def test_a_request_that_cannot_be_met_is_an_error_that_says_why():
    backends._table.pop(("path_scan", "triton"), None)
    inputs = [torch.ones(1, 8, 15), torch.ones(10, 4), torch.ones(10), *[torch.ones(1)] * 3, torch.ones(4)]
    with use_backend("triton"), pytest.raises(ValueError, match="'triton' cannot serve path_scan on cpu: .* yet"):
        path_scan(*inputs, PATH, head_dim=4)
    count_calls(devices=("cuda",))
    with use_backend("cuda"), pytest.raises(ValueError, match="cannot serve gather on cpu: runs on cuda only"):
        gather(X, PATH)
    count_calls(unavailable=lambda: "no GPU here")
    with use_backend("cuda"), pytest.raises(ValueError, match="no GPU here"):
        gather(X, PATH)
    count_calls(supports=lambda *arguments: "not this shape")
    with use_backend("cuda"), pytest.raises(ValueError, match="not this shape"):
        gather(X, PATH)


def test_the_report_says_for_every_operator_who_serves_and_why_not():
    rows = backend_report()
    assert {(r.operator, r.backend) for r in rows} == {(o, b) for o in backends.OPERATORS for b in backends.BACKENDS}
    for operator in backends.OPERATORS:
        own = [r for r in rows if r.operator == operator]
        assert next(r for r in own if r.backend == "reference").available
        for device in backends.DEVICES:
            assert sum(device in r.serves for r in own) == 1
    assert all(bool(r.reason) != r.available for r in rows)
    count_calls(unavailable=lambda: "no GPU here")
    row = next(r for r in backend_report() if (r.operator, r.backend) == ("gather", "cuda"))
    assert (row.available, row.reason, row.serves) == (False, "no GPU here", ())
