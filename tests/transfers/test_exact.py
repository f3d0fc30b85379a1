"""What the command line writes against NumPy in float64 that has its own decomposition and makes its own decisions."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.reports import analysis_page
from tests import reference_float64
from tests.layers import generator, orthogonal

DENSE = ("--as", "diff", "--dtype", "fp32")
HARD = {"tau": 1.5, "q_dom": 0.3, "q_act": 0.6}


def layer(shape, seed, *, weight=None, rank=4, scale=1.0):
    """(W_s, W_t, B, A) in float32."""
    g = generator(seed)
    W = torch.randn(shape, generator=g) / shape[1] ** 0.5 if weight is None else weight
    size = float(W.norm()) or 1.0
    F, B, A = (torch.randn(s, generator=g) for s in (shape, (shape[0], rank), (rank, shape[1])))
    F, B = F * (0.1 * size / F.norm()), B * (0.1 * size / (B @ A).norm())
    return W * scale, W * scale + F * scale, B * scale**0.5, A * scale**0.5


def write(folder, layers):
    """Models and a LoRA of square, tall and wide layers; their files."""
    folder.mkdir(exist_ok=True)
    source, target, lora = {}, {}, {}
    for number, (W_s, W_t, B, A) in enumerate(layers):
        name = f"blocks.{number}.self_attn.q"
        source[f"{name}.weight"], target[f"{name}.weight"] = W_s.contiguous(), W_t.contiguous()
        lora[f"diffusion_model.{name}.lora_A.weight"] = A.contiguous()
        lora[f"diffusion_model.{name}.lora_B.weight"] = B.contiguous()
    for name, tensors in (("source", source), ("target", target), ("lora", lora)):
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def words(folder, output, *flags):
    source, target = folder / "source.safetensors", folder / "target.safetensors"
    pair = ["transfer", folder / "lora.safetensors", "--source", source, "--target", target]
    return [*pair, "-o", folder / output, *flags]


def written(folder, output, count):
    tensors = load_file(folder / output)
    return [tensors[f"diffusion_model.blocks.{n}.self_attn.q.diff"].double().numpy() for n in range(count)]


def apart(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.slow
def test_decisions_are_those_of_double_precision_cold_warm_and_without_a_cache(run, tmp_path):
    """Sixteen bits an entry carried some across their thresholds: one small layer in twenty was off by 1 %."""
    shapes = [(48, 48)] * 30 + [(72, 40)] * 4 + [(40, 72)] * 4 + [(1, 24), (24, 1), (200, 200)]
    layers = [layer(shape, seed) for seed, shape in enumerate(shapes)]
    folder = write(tmp_path / "pair", layers)
    flags = [word for name, value in HARD.items() for word in (f"--{name.replace('_', '-')}", value)]
    kept = ["--cache", tmp_path / "cache"]
    for output, more in (("none", ["--no-cache"]), ("cold", kept), ("warm", kept)):
        code, out, _ = run(*words(folder, f"{output}.safetensors", *DENSE, *flags, *more, "--json"))
        assert code == 0
    results = json.loads(out)["layers"]
    assert all(row["borderline"] == 0 for row in results) and sum(row["arbitrated"] for row in results) > 5000
    none, cold, warm = ((folder / f"{name}.safetensors").read_bytes() for name in ("none", "cold", "warm"))
    assert none == cold == warm
    wanted = [reference_float64.casa(*(x.numpy() for x in one), **HARD) for one in layers]
    errors = [apart(*pair) for pair in zip(written(folder, "warm.safetensors", len(layers)), wanted, strict=True)]
    assert max(errors) < 2e-6
    # other settings give other updates, so the agreement says something
    plain = reference_float64.casa(*(x.numpy() for x in layers[0]))
    assert apart(plain, wanted[0]) > 0.01


def weights():
    """Weights that have no full spectrum, and some at scales where squares leave single precision."""
    thin = torch.randn(24, 6, generator=generator(5)) @ torch.randn(6, 24, generator=generator(6))
    steep = (orthogonal(40, 1) * torch.logspace(0, -4.9, 40).double()) @ orthogonal(40, 2)
    rows = torch.randn(40, 24, generator=generator(7))
    rows[10:] = 0
    return {
        "zeros": (torch.zeros(24, 24), 1.0),
        "zeros, tall": (torch.zeros(40, 24), 1.0),
        "zeros, wide": (torch.zeros(24, 40), 1.0),
        "rank 1": (torch.ones(24, 24), 1.0),
        "rank 6": (thin, 1.0),
        "empty rows": (rows, 1.0),
        "steep": (steep.float(), 1.0),
        "tiny": (torch.randn(40, 40, generator=generator(8)), 1e-30),
        "small": (torch.randn(72, 40, generator=generator(9)), 1e-20),
        "large": (torch.randn(40, 40, generator=generator(10)), 1e18),
        "huge": (torch.randn(40, 72, generator=generator(11)), 1e20),
    }


@pytest.mark.parametrize("kind", weights())
def test_weights_without_a_full_spectrum_and_of_any_scale(run, tmp_path, kind):
    W, scale = weights()[kind]
    one = layer(tuple(W.shape), 3, weight=W, scale=scale)
    folder = write(tmp_path / "pair", [one])
    code, out, err = run(*words(folder, "out.safetensors", *DENSE, "--no-cache", "--json"))
    assert code == 0, err
    [row], [got] = json.loads(out)["layers"], written(folder, "out.safetensors", 1)
    want = reference_float64.casa(*(x.numpy() for x in one))
    assert apart(got, want) < 2e-5
    assert row["status"] == "transferred" and (row["k"] == 0) == kind.startswith("zeros")
    assert apart((one[2].double() @ one[3].double()).numpy(), want) > 0.01, "restoration did something"


@pytest.mark.parametrize("scale", [1e-30, 1e20])
@pytest.mark.parametrize("method", ["restore-only", "undo:1", "core"])
def test_truncation_holds_at_any_scale(run, tmp_path, scale, method):
    """The same layer at two scales has the same factors, up to the scale; their squares leave single precision."""
    found = []
    for size in (1.0, scale):
        folder = write(tmp_path / f"{size}", [layer((130, 130), 3, scale=size)])
        single = ["--tau", 1e30] if method == "restore-only" else []  # Eq. 4 has a scale of its own
        flags = ["--method", method, *single, "--rank", 2, "--dtype", "bf16", "--no-cache", "--json"]
        code, out, err = run(*words(folder, "out.safetensors", *flags))
        assert code == 0, err
        tensors = load_file(folder / "out.safetensors")
        B, A = (tensors[f"diffusion_model.blocks.0.self_attn.q.lora_{x}.weight"].double() for x in "BA")
        found.append((B @ A / size, json.loads(out)["layers"][0]))
    (one, plain), (other, scaled) = found
    assert float((one - other).norm() / one.norm()) < 0.02
    for fact in ("kept_energy", "kept_correction", "update", "drift"):
        assert scaled[fact] == (None if plain[fact] is None else pytest.approx(plain[fact], rel=0.02))


METHODS = ("casa", "undo-matched", "rollback", "core", "drift-orthogonal", "prolora", "lora-x", "direct-matched")


@pytest.mark.parametrize("role", ["source", "target", "both"])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_zeros_stops_no_method(run, tmp_path, method, role):
    """No spectrum, no leading directions: the LoRA stays, and the drift counts as weak."""
    W_s, W_t, B, A = layer((24, 24), 3)
    W_s, W_t = (W * (0 if role in (name, "both") else 1) for name, W in (("source", W_s), ("target", W_t)))
    folder = write(tmp_path / "pair", [(W_s, W_t, B, A), layer((24, 24), 4)])
    code, out, err = run(*words(folder, "out.safetensors", *DENSE, "--method", method, "--no-cache", "--json"))
    assert code == 0, err
    row, got = json.loads(out)["layers"][0], written(folder, "out.safetensors", 2)[0]
    direct, drift = (B.double() @ A.double()).numpy(), (W_t.double() - W_s.double()).numpy()
    assert np.isfinite(got).all() and row["status"] == "transferred"
    if method == "prolora" or (method == "lora-x" and role != "source"):
        assert apart(got, direct) < 1e-6
        assert "all zero" in row["reason"]
    if method == "casa" and role == "source":
        assert apart(got, direct - drift) < 1e-6
    if method == "rollback" and role == "source":
        assert apart(got, -drift) < 1e-6
    if method == "direct-matched":
        assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(row["amount"] * direct), rel=1e-6)
        assert row["amount"] > 0.5


def test_a_direction_that_is_only_rounding_is_arbitrated_by_nobody(tmp_path):
    """Two decompositions of one weight of rank 6 differ in what completes them; their updates may not."""
    from loraport.methods.casa import casa
    from loraport.methods.layer import Layer
    from loraport.spectral.basis import SingularBasis, decompose
    from loraport.spectral.low_rank import LowRank

    W_s, W_t, B, A = (
        x.double() for x in layer((24, 24), 3, weight=torch.randn(24, 6, generator=generator(5)) @ torch.eye(6, 24))
    )
    one = decompose(W_s)
    turn = orthogonal(18, 4)
    U, Vh = one.U.clone(), one.Vh.clone()
    U[:, 6:], Vh[6:] = U[:, 6:] @ turn, orthogonal(18, 9) @ Vh[6:]
    other = SingularBasis(U, one.S, Vh)
    assert one.rank == other.rank == 6
    first, second = (casa(Layer(LowRank(B, A), W_t - W_s, basis)).dense() for basis in (one, other))
    assert float((first - second).norm() / first.norm()) < 1e-9
    assert float((first - B @ A).norm() / first.norm()) > 0.1


def only_finite(text):
    """JSON as every reader takes it: a constant that is none fails."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.slow
def test_single_entries_by_an_infinite_tau(run, tmp_path):
    """Clusters of one: the ablation "single entry". JSON has no infinity, and says "inf"."""
    one = layer((48, 48), 3)
    folder = write(tmp_path / "pair", [one, layer((40, 24), 4)])
    code, out, err = run(*words(folder, "out.safetensors", *DENSE, "--tau", "inf", "--no-cache", "--json"))
    assert code == 0, err
    result = only_finite(out)
    assert result["settings"]["tau"] == "inf" and result["layers"][0]["clusters"] == result["layers"][0]["k"]
    [got, _] = written(folder, "out.safetensors", 2)
    assert apart(got, reference_float64.casa(*(x.numpy() for x in one), tau=np.inf)) < 2e-6
    with safe_open(folder / "out.safetensors", "pt") as file:
        assert only_finite(file.metadata()["loraport.settings"])["tau"] == "inf"
    pair = words(folder, "page")
    code, _, err = run("analyze", *pair[1:], "--tau", "inf", "--detail", 1, "--no-cache", "--sweep", "tau=1/inf")
    assert code == 0, err
    analysis = only_finite((folder / "page" / "analysis.json").read_text())
    assert {row["tau"] for row in analysis["sweeps"][0]["rows"]} == {1.0, "inf"}


@pytest.mark.slow
@pytest.mark.parametrize("role", ["source", "target", "both"])
def test_an_analysis_leaves_out_what_has_no_spectrum(run, tmp_path, monkeypatch, role):
    if role != "both":  # what is drawn is the same layer in all three
        monkeypatch.setattr(analysis_page, "_draw", lambda *_: {})
    W_s, W_t, B, A = layer((24, 24), 3)
    W_s, W_t = (W * (0 if role in (name, "both") else 1) for name, W in (("source", W_s), ("target", W_t)))
    folder = write(tmp_path / "pair", [(W_s, W_t, B, A), layer((24, 24), 4)])
    pair = words(folder, "page")[1:]
    code, _, err = run("analyze", *pair, "--no-cache", "--sweep", "q_dom=0.3/0.5")
    assert code == 0, err
    analysis = only_finite((folder / "page" / "analysis.json").read_text())
    [[name, why]] = analysis["left_out"]
    assert name == "blocks.0.self_attn.q" and "all zero" in why and len(analysis["layers"]) == 1
    code, _, err = run("analyze", *pair, "--no-cache", "--layers", "blocks.0.", "-o", folder / "other")
    assert code == 2 and "no layer is left to look at" in err and "blocks.0.self_attn.q" in err


@pytest.mark.parametrize("role", ["source", "target", "both"])
@pytest.mark.parametrize("probe", ["keep-dominant", "over-activate"])
def test_a_probe_of_a_layer_of_zeros_is_finite(run, tmp_path, probe, role):
    W_s, W_t, B, A = layer((24, 24), 3)
    W_s, W_t = (W * (0 if role in (name, "both") else 1) for name, W in (("source", W_s), ("target", W_t)))
    folder = write(tmp_path / "pair", [(W_s, W_t, B, A), layer((24, 24), 4)])
    pair = ["--source", folder / "source.safetensors", "--target", folder / "target.safetensors"]
    code, _, err = run("probe", probe, *pair, "-o", folder / "probed.safetensors", "--no-cache")
    assert code == 0, err
    assert all(bool(X.isfinite().all()) for X in load_file(folder / "probed.safetensors").values())


def test_the_context_of_an_entry_has_a_setting(run, tmp_path):
    """At real scales the 1e-8 of Eq. 11 decides: entries of 1e-4 multiply to as much."""
    one = layer((48, 48), 3, scale=0.002)
    folder = write(tmp_path / "pair", [one])
    found = {}
    for eps in (1e-8, 0.0):
        flags = ["--eps-context", eps, "--eps", 1e-7, "--no-cache", "--json", "--overwrite"]
        code, out, err = run(*words(folder, "out.safetensors", *DENSE, *flags))
        assert code == 0, err
        assert json.loads(out)["settings"]["eps_context"] == eps
        [found[eps]] = written(folder, "out.safetensors", 1)
        want = reference_float64.casa(*(x.numpy() for x in one), eps=1e-7, eps_context=eps)
        assert apart(found[eps], want) < 2e-6
    assert apart(found[0.0], found[1e-8]) > 0.005


@pytest.mark.slow
@pytest.mark.parametrize("method", ["direct", "casa", "prolora", "core"])
@pytest.mark.parametrize("small", ["B", "A"])
def test_half_precision_keeps_small_factors(run, tmp_path, method, small):
    """A scale folded into one factor takes it below what fp16 holds: 35 % lost at 2e-7, all of it at 2e-8."""
    W_s, W_t, B, A = layer((48, 48), 3)
    by = 2e-7 / float((B if small == "B" else A).abs().max())
    B, A = (B * by, A / by) if small == "B" else (B / by, A * by)
    folder = write(tmp_path / "pair", [(W_s, W_t, B, A), (W_s.clone(), W_t.clone(), B.clone(), A.clone())])
    kept = ["--exclude", "blocks.1.", "--method", method, "--no-cache", "--json"]
    for dtype, most in (("fp16", 1e-3), ("bf16", 5e-3)):
        flags = ["--dtype", dtype, *kept]
        code, out, err = run(*words(folder, f"{dtype}.safetensors", *flags))
        assert code in (0, 3), err
        rows = json.loads(out)["layers"]
        assert all(0 < row["rounding"] < most for row in rows)
        tensors = load_file(folder / f"{dtype}.safetensors")
        for number, want in ((1, B.double() @ A.double()), (0, None)):
            left, right = (tensors[f"diffusion_model.blocks.{number}.self_attn.q.lora_{x}.weight"] for x in "BA")
            assert left.abs().max() > 0 and right.abs().max() > 0
            if want is not None:
                lost = float((left.double() @ right.double() - want).norm() / want.norm())
                assert lost == pytest.approx(rows[number]["rounding"], rel=0.01)


@pytest.mark.slow
def test_what_half_precision_cannot_hold_is_said(run, tmp_path):
    """A whole update of 1e-8 is in nobody's reach as dense values; as factors it is."""
    W_s, W_t, B, A = layer((48, 48), 3)
    folder = write(tmp_path / "pair", [(W_s, W_t, B * 1e-4, A * 1e-3)])
    flags = ["--method", "direct", "--dtype", "fp16", "--no-cache", "--json"]
    code, out, _ = run(*words(folder, "dense.safetensors", "--as", "diff", *flags))
    [row] = json.loads(out)["layers"]
    assert code == 3 and row["rounding"] > 0.5 and "bf16 or fp32 keeps it" in "".join(json.loads(out)["warnings"])
    code, out, _ = run(*words(folder, "factors.safetensors", *flags))
    assert code == 0 and json.loads(out)["layers"][0]["rounding"] < 1e-3 and "keeps it" not in out
    nothing = write(tmp_path / "nothing", [(W_s, W_t, B * 1e-12, A * 1e-9)])
    code, out, _ = run(*words(nothing, "zeros.safetensors", *flags))
    assert code == 3 and json.loads(out)["layers"][0]["rounding"] == 1, "a layer of zeros is a loss"


def test_factors_that_fit_are_left_as_they_are():
    from loraport.files.adapters.casting import balanced, rounding_loss
    from loraport.spectral.low_rank import LowRank

    B, A = torch.randn(6, 2, generator=generator(1)), torch.randn(2, 5, generator=generator(2))
    low = LowRank(0.01 * B, A)
    assert balanced(low, torch.float16) is low and 0 < rounding_loss(low, torch.float16) < 1e-3
    tiny = LowRank(1e-8 * B, A)
    assert balanced(tiny, torch.bfloat16) is tiny and balanced(tiny, torch.float16) is not tiny
    assert torch.equal(balanced(tiny, torch.float16).dense(), tiny.dense()), "powers of two change no product"
    assert (
        rounding_loss(tiny, torch.float16) > 0.5 and rounding_loss(balanced(tiny, torch.float16), torch.float16) < 1e-3
    )
    padded = balanced(tiny.padded(4), torch.float16)
    assert torch.equal(padded.dense(), tiny.dense()) and rounding_loss(padded.scaled(0.0), torch.float16) is None
