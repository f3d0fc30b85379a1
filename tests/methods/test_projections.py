"""The rules that project: against index loops, and what each promises, with its negation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.errors import SettingsError
from loraport.methods.core_undo import core
from loraport.methods.drift_orthogonal import drift_orthogonal
from loraport.methods.layer import Layer
from loraport.methods.lorax import lorax
from loraport.methods.prolora import prolora
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import PROLORA, DriftOrthogonalSettings, LoraxSettings, ProloraSettings
from loraport.spectral.basis import SingularBasis, decompose
from loraport.spectral.low_rank import LowRank
from loraport.spectral.projections import off_span, overlap
from tests import reference_projections as reference
from tests.layers import SHAPES, both_bases, generator, orthogonal, random_weights, relative

EXACT = 1e-9
CUTS = ["energy:0.99", "energy:0.8", "rank:7", "exact"]
VARIANTS = {
    "two blocks": ProloraSettings(phi_min=0.0),
    "subspace only": ProloraSettings(phi_min=0.0, null_space=False),
    "cross terms": ProloraSettings(phi_min=0.0, cross_terms=True),
}
RANKS = {"two blocks": 2, "subspace only": 1, "cross terms": 1}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
layers = st.tuples(st.sampled_from(list(SHAPES.values())), st.integers(0, 10_000))
a_few = settings(max_examples=20, deadline=None, derandomize=True)


def loops(name, *arrays, **options):
    """The reference's answer as a tensor."""
    return torch.from_numpy(getattr(reference, name)(*(x.numpy() for x in arrays), **options))


@pytest.mark.parametrize(
    ("shape", "variant", "cut", "dtype"),
    [
        # every two of shape, variant and cut meet
        *((shape, list(VARIANTS)[(i + j) % 3], cut, torch.float64)
          for i, shape in enumerate(SHAPES) for j, cut in enumerate(CUTS)),
        # in single precision only cuts outside of the spectrum's plateau are determined to five digits
        *zip(SHAPES, VARIANTS, ("energy:0.99", "rank:4", "exact"), [torch.float32] * 3, strict=True),
    ],
)  # fmt: skip
def test_prolora_agrees_with_index_loops(shape, variant, cut, dtype):
    W_s, W_t, lora = random_weights(SHAPES[shape], seed=3)
    wanted = replace(VARIANTS[variant], subspace=cut)
    options = {"subspace": cut, "null_space": wanted.null_space, "cross_terms": wanted.cross_terms}
    expected = loops("prolora", W_s, W_t, lora.dense(), **options)
    rounded = [x.to(dtype) for x in (W_s, W_t, lora.B, lora.A)]
    layer = both_bases(rounded[0], rounded[1], LowRank(rounded[2], rounded[3]))
    update = prolora(layer, wanted)
    assert update.is_low_rank and update.low_rank.rank == RANKS[variant] * lora.rank
    assert float((update.dense().double() - expected).norm()) < 1e-5 * float(lora.norm())
    assert update.facts["overlap"] == pytest.approx(reference.overlap(W_s.numpy(), W_t.numpy(), cut), abs=1e-5)


def test_the_variants_differ():
    layer = both_bases(*random_weights((40, 18), seed=3))
    found = [prolora(layer, replace(one, subspace="energy:0.8")).dense() for one in VARIANTS.values()]
    assert all(relative(found[i], found[j]) > 0.05 for i in range(3) for j in range(i))


@pytest.mark.parametrize("cut", CUTS)
@shapes
def test_lorax_agrees_with_index_loops(shape, cut):
    W_s, W_t, lora = random_weights(shape, seed=4)
    expected = loops("lorax", W_t, lora.dense(), subspace=cut)
    assert float((lorax(both_bases(W_s, W_t, lora), LoraxSettings(cut)).dense() - expected).norm()) < EXACT
    # the target's basis counts, not the source's
    assert cut == "exact" or relative(loops("lorax", W_s, lora.dense(), subspace=cut), expected) > 1e-3


@shapes
def test_core_agrees_with_index_loops(shape):
    W_s, W_t, lora = random_weights(shape, seed=5)
    update = core(Layer(lora, W_t - W_s))
    expected = loops("core", lora.B, lora.A, W_t - W_s)
    assert relative(update.dense(), expected) < EXACT and relative(lora.dense(), expected) > 0.05
    pulled_back = torch.linalg.pinv(lora.B) @ (W_t - W_s) @ torch.linalg.pinv(lora.A) @ lora.A
    assert relative(lora.B @ (lora.A - pulled_back), expected) < EXACT, "B' = B and A' = A − B⁺·D_fft·P_A"
    taken = float((lora.dense() - expected).norm() / (W_t - W_s).norm())
    assert update.facts["amount"] == pytest.approx(taken) and 0 < taken < 1


@pytest.mark.parametrize("k", [1, 3, 16])
@shapes
def test_drift_orthogonal_agrees_with_index_loops(shape, k):
    W_s, W_t, lora = random_weights(shape, seed=6)
    update = drift_orthogonal(Layer(lora, W_t - W_s), DriftOrthogonalSettings(k))
    expected = loops("drift_orthogonal", W_t - W_s, lora.dense(), k=k)
    assert float((update.dense() - expected).norm()) < EXACT and update.facts["k"] == k
    U, _, Vh = torch.linalg.svd(W_t - W_s, full_matrices=False)
    assert (U[:, :k].mT @ update.dense()).norm() < EXACT and (update.dense() @ Vh[:k].mT).norm() < EXACT
    assert k == min(shape) or (U[:, k:].mT @ update.dense()).norm() > 0.1 * update.norm()


def test_drift_orthogonal_removes_only_what_the_drift_has():
    """A drift of rank 2 has two directions, however many are to be removed; without a drift nothing is."""
    W_s, _, lora = random_weights((40, 18), seed=7)
    thin = torch.linalg.qr(torch.randn(40, 2, generator=generator(1), dtype=torch.float64)).Q @ torch.randn(
        2, 18, generator=generator(2), dtype=torch.float64
    )
    assert drift_orthogonal(Layer(lora, thin)).facts["k"] == 2
    still = drift_orthogonal(Layer(lora, torch.zeros_like(W_s)))
    assert still.facts["k"] == 0 and torch.equal(still.dense(), lora.dense())


def test_drift_orthogonal_is_the_same_every_time_at_a_size_where_the_search_is_random():
    g = generator(8)
    drift = torch.randn(400, 300, generator=g) * torch.linspace(3, 0.1, 300) ** 2
    layer = Layer(LowRank(torch.randn(400, 4, generator=g), torch.randn(4, 300, generator=g)), drift)
    first, second = (drift_orthogonal(layer, DriftOrthogonalSettings(5)).dense() for _ in range(2))
    U, _, Vh = torch.linalg.svd(drift, full_matrices=False)
    exact = layer.lora.dense() - U[:, :5] @ (U[:, :5].mT @ layer.lora.dense())
    exact = exact - (exact @ Vh[:5].mT) @ Vh[:5]
    assert torch.equal(first, second) and relative(first, exact) < 2e-3  # the spectrum has hardly a gap there
    assert relative(drift_orthogonal(layer, DriftOrthogonalSettings(6)).dense(), exact) > 0.02


@a_few
@given(st.integers(0, 10_000))
def test_exact_cut_off_on_a_square_layer_of_full_rank_is_direct_reuse(seed):
    W_s, W_t, lora = random_weights((24, 24), seed)
    layer = both_bases(W_s, W_t, lora)
    for method in (prolora(layer, ProloraSettings("exact")), lorax(layer, LoraxSettings("exact"))):
        assert relative(method.dense(), lora.dense()) < EXACT
    assert relative(prolora(layer, ProloraSettings("rank:20", phi_min=0.0)).dense(), lora.dense()) > 1e-2
    # nor is it for a weight that lacks a rank, or that is not square
    U, S, Vh = torch.linalg.svd(W_s)
    lacking = both_bases(U[:, :-2] @ torch.diag(S[:-2]) @ Vh[:-2], W_t, lora)
    assert prolora(lacking, ProloraSettings("exact", phi_min=0.0)).facts["k"] == 22
    assert relative(prolora(lacking, ProloraSettings("exact", phi_min=0.0)).dense(), lora.dense()) > 1e-3
    tall = both_bases(*random_weights((40, 18), seed))
    assert relative(prolora(tall, ProloraSettings("exact", phi_min=0.0)).dense(), tall.lora.dense()) > 0.1


@a_few
@given(layers)
def test_on_equal_models_all_four_blocks_are_the_identity(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    equal = both_bases(W_s, W_s.clone(), lora)
    cut = {"subspace": "energy:0.9", "phi_min": 0.0}
    assert relative(prolora(equal, ProloraSettings(**cut, cross_terms=True)).dense(), lora.dense()) < EXACT
    assert relative(prolora(equal, ProloraSettings(**cut)).dense(), lora.dense()) > 0.05
    assert (
        relative(prolora(both_bases(W_s, W_t, lora), ProloraSettings(**cut, cross_terms=True)).dense(), lora.dense())
        > 1e-3
    )


@a_few
@given(layers, st.sampled_from(CUTS))
def test_projections_never_grow_an_update_and_do_nothing_twice(drawn, cut):
    shape, seed = drawn
    layer = both_bases(*random_weights(shape, seed))
    recipes = [lambda one, s=s: prolora(one, replace(s, subspace=cut)) for s in VARIANTS.values()]
    recipes += [lambda one: lorax(one, LoraxSettings(cut)), drift_orthogonal]
    for recipe in recipes:
        assert recipe(layer).norm() <= layer.lora.norm() * (1 + EXACT)
    # core undo takes something of the drift, so it may grow
    assert core(replace(layer, drift=-10 * layer.lora.dense())).norm() > layer.lora.norm()
    equal = replace(layer, target=layer.basis)
    for recipe, where in [(recipes[0], equal), (recipes[1], equal), (recipes[3], layer), (recipes[4], layer)]:
        once = recipe(where)
        assert float((recipe(replace(where, lora=once.low_rank)).dense() - once.dense()).norm()) < EXACT


def test_between_different_models_prolora_is_no_projection():
    """Two oblique subspaces: the second time shrinks again."""
    layer = both_bases(*random_weights((40, 18), 1))
    wanted = ProloraSettings("rank:6", phi_min=0.0)
    once = prolora(layer, wanted)
    assert prolora(replace(layer, lora=once.low_rank), wanted).norm() < 0.999 * once.norm()


@a_few
@given(layers)
def test_signs_and_rotations_inside_the_kept_span_change_nothing(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    layer = both_bases(W_s, W_t, lora)
    n, k = min(shape), 8
    turn = torch.block_diag(orthogonal(k, seed), orthogonal(n - k, seed + 1))  # as if singular values were equal
    signs = torch.where(torch.rand(n, generator=generator(seed)) < 0.5, -1.0, 1.0).double()
    signs[0] = -1
    for frame in (torch.diag(signs), turn):
        other = SingularBasis(layer.basis.U @ frame, layer.basis.S, frame.mT @ layer.basis.Vh)
        for wanted in VARIANTS.values():
            cut = replace(wanted, subspace=f"rank:{k}")
            moved = prolora(replace(layer, basis=other), cut).dense()
            assert relative(moved, prolora(layer, cut).dense()) < EXACT
        flipped = replace(
            layer, target=SingularBasis(layer.target.U @ frame, layer.target.S, frame.mT @ layer.target.Vh)
        )
        cut = LoraxSettings(f"rank:{k}")
        assert relative(lorax(flipped, cut).dense(), lorax(layer, cut).dense()) < EXACT
    # a change of basis, which some take ProLoRA for, depends on the signs
    arrays = [x.numpy() for x in (W_s, W_t, lora.dense())]
    U, V = (layer.basis.U * signs).numpy(), layer.basis.Vh.mT.numpy()
    changed, expected = reference.basis_change(*arrays, U, V), reference.basis_change(*arrays)
    assert relative(torch.from_numpy(changed), torch.from_numpy(expected)) > 0.1


@pytest.mark.parametrize("name", ["direct", "prolora", "lora-x", "drift-orthogonal", "casa", "core", "undo"])
@shapes
def test_doubling_the_lora_doubles_what_linear_methods_give(name, shape):
    layer = both_bases(*random_weights(shape, 9))
    recipe = find_recipe(name)
    change = relative(recipe(replace(layer, lora=layer.lora.scaled(2.0))).dense(), 2 * recipe(layer).dense())
    assert change < EXACT if name in ("direct", "prolora", "lora-x", "drift-orthogonal") else change > 1e-2


@pytest.mark.parametrize("k", [24, 60, 100])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_random_update_on_equal_models_shrinks_as_expected(variant, k):
    g, (out, inn) = generator(10), (200, 120)
    W = torch.randn(out, inn, generator=g, dtype=torch.float64)
    a, b = k / out, k / inn
    expected = {
        "two blocks": (a * b + (1 - a) * (1 - b)) ** 0.5,
        "subspace only": (a * b) ** 0.5,
        "cross terms": 1.0,
    }
    basis, kept, whole = decompose(W), 0.0, 0.0
    for _ in range(8):
        lora = LowRank(
            torch.randn(out, 32, generator=g, dtype=torch.float64),
            torch.randn(32, inn, generator=g, dtype=torch.float64),
        )
        update = prolora(Layer(lora, W, basis, basis), replace(VARIANTS[variant], subspace=f"rank:{k}"))
        kept, whole = kept + update.norm() ** 2, whole + lora.norm() ** 2
    assert (kept / whole) ** 0.5 == pytest.approx(expected[variant], rel=0.02)


@a_few
@given(layers)
def test_core_takes_nothing_off_the_loras_own_subspaces_and_never_raises_the_rank(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    drift = W_t - W_s
    taken = lora.dense() - core(Layer(lora, drift)).dense()
    left, right = torch.linalg.qr(lora.B).Q, torch.linalg.qr(lora.A.mT).Q
    assert off_span(taken, left).norm() < EXACT and off_span(taken.mT, right).norm() < EXACT
    assert (left.mT @ (drift - taken) @ right).norm() < EXACT, "inside of them all of the drift is taken"
    # a drift that avoids either subspace costs nothing
    for elsewhere in (off_span(drift, left), off_span(drift.mT, right).mT):
        assert relative(core(Layer(lora, elsewhere)).dense(), lora.dense()) < EXACT
    assert torch.equal(core(Layer(lora, torch.zeros_like(drift))).dense(), lora.dense())
    assert torch.linalg.matrix_rank(core(Layer(lora, drift)).dense()) <= lora.rank < torch.linalg.matrix_rank(drift)


@shapes
def test_core_of_a_lora_that_lacks_a_rank(shape):
    """Zero padding, repeated columns and a zero LoRA: the same update as of the factors without them."""
    W_s, W_t, lora = random_weights(shape, 11)
    drift = W_t - W_s
    expected = core(Layer(lora, drift)).dense()
    half = lora.B / 2
    twice = LowRank(torch.cat([half, half], dim=1), torch.cat([lora.A, lora.A]))
    for same in (lora.padded(9), twice):
        assert relative(core(Layer(same, drift)).dense(), expected) < EXACT
    nothing = core(Layer(lora.scaled(0.0), drift))
    assert nothing.norm() == 0 and torch.isfinite(nothing.low_rank.A).all()


def test_core_survives_rounding_where_the_loras_columns_are_nearly_parallel():
    g = generator(17)
    B = orthogonal(64, 1)[:, :8] @ torch.diag(torch.logspace(0, -3, 8, dtype=torch.float64)) @ orthogonal(8, 2)
    lora, drift = LowRank(B, orthogonal(64, 3)[:8]), 0.05 * torch.randn(64, 64, generator=g, dtype=torch.float64)
    update = core(Layer(lora, drift)).low_rank
    P_A = lora.A.mT @ lora.A
    naive = LowRank(B, lora.A - torch.linalg.pinv(B) @ drift @ P_A)
    assert relative(naive.dense(), update.dense()) < EXACT

    def rounded(low):
        return low.B.bfloat16().double() @ low.A.bfloat16().double()

    assert relative(rounded(update), update.dense()) < 5e-3 < 1e-2 < relative(rounded(naive), update.dense())


def test_a_layer_below_the_filter_gets_no_adapter_and_a_reason():
    W_s, _, lora = random_weights((24, 24), 12)
    _, other, _ = random_weights((24, 24), 13)
    layer = both_bases(W_s, other, lora)
    refused = prolora(layer, ProloraSettings("rank:6"))
    assert refused.low_rank.rank == 0 and not refused.dense().any()
    assert "less than phi_min 0.8" in refused.reason and "--phi-min 0 keeps every layer" in refused.reason
    assert refused.facts["overlap_random"] == 6 / 24 and refused.facts["overlap"] < 0.6
    kept = prolora(layer, ProloraSettings("rank:6", phi_min=0.0))
    assert kept.reason is None and kept.low_rank.rank == 8
    # full bases share everything, whatever the weights: the filter is blind
    assert prolora(layer, ProloraSettings("exact", phi_min=0.999)).reason is None
    # the matched control has no adapter where the method has none
    matched = find_recipe("direct-matched:prolora", ProloraSettings("rank:6"))(layer)
    assert matched.reason == refused.reason and matched.low_rank.rank == 0


def test_overlap_of_subspaces():
    X = orthogonal(300, 14)
    assert overlap(X[:, :40], X[:, :40] @ orthogonal(40, 1)) == pytest.approx(1)
    assert overlap(X[:, :40], X[:, 40:80]) == pytest.approx(0)
    assert overlap(X[:, :40], X[:, :80]) == pytest.approx(0.5), "half of the larger one is missing"
    assert overlap(X[:, :60], orthogonal(300, 15)[:, :60]) == pytest.approx(60 / 300, rel=0.1)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "direct-matched"])
def test_direct_matched_has_the_size_of_the_method_that_it_names(name):
    layer = both_bases(*random_weights((40, 18), 16))
    matched = find_recipe(f"direct-matched:{name}")(layer)
    assert matched.norm() == pytest.approx(find_recipe(name)(layer).norm())
    assert matched.norm() == pytest.approx(abs(matched.facts["amount"]) * layer.lora.norm())
    if name != "direct":
        assert relative(matched.dense(), find_recipe(name)(layer).dense()) > 1e-3


def test_settings_that_contradict_or_mean_nothing_are_refused():
    for rule in ("energy", "energy:0", "energy:1.2", "rank:0", "rank:2.5", "rank:", "exact:1", "all", "energy:nan", ""):
        with pytest.raises(SettingsError, match="is none of: energy:x"):
            ProloraSettings(rule)
        with pytest.raises(SettingsError, match="is none of: energy:x"):
            LoraxSettings(rule)
    with pytest.raises(SettingsError, match=r"phi_min is 1\.5"):
        ProloraSettings(phi_min=1.5)
    with pytest.raises(SettingsError, match="leave out --cross-terms or --no-null-space"):
        ProloraSettings(null_space=False, cross_terms=True)
    layer = both_bases(*random_weights((8, 8), 2))
    for broken in (replace(layer, basis=None), replace(layer, target=None)):
        with pytest.raises(SettingsError, match="bases of both weights"):
            prolora(broken, PROLORA)
    with pytest.raises(SettingsError, match="basis of the target"):
        lorax(replace(layer, target=None))


def test_reference_is_not_the_fast_code():
    with open(reference.__file__) as file:
        assert "loraport" not in file.read()
