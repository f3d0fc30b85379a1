"""Progress: every feature reports to the same protocol, up to the whole of its work."""

import inspect
from pathlib import Path

import pytest

from loraport.analysis.inputs import AnalyzeConfig
from loraport.analysis.probe_model import ProbeConfig, probe
from loraport.analysis.probes import KeepDominant
from loraport.analysis.run import analyze
from loraport.console import Terminal
from loraport.errors import SettingsError
from loraport.merging import merge
from loraport.progress import NO_PROGRESS, NoProgress, Progress
from loraport.store.bases import BasisCache
from loraport.transfers.passes import LabelledProgress, Pass, transfer_passes
from loraport.transfers.run import TRANSFERRING, transfer, transfer_many
from tests.progress import Reports
from tests.transfers.models import make_family


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("kind", [NoProgress, Terminal, LabelledProgress, Reports])
def test_whoever_listens_hears_the_same_words(kind):
    for name, member in vars(Progress).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            wanted, given = inspect.signature(member).parameters, inspect.signature(getattr(kind, name)).parameters
            assert list(given) == list(wanted) and [one.default for one in given.values()] == [
                one.default for one in wanted.values()
            ]


def _analysis(family, reports):
    config = AnalyzeConfig(family.lora, family.source, family.target, str(family.folder / "seen"), sample=2)
    analyze(config, progress=reports)


def _probe(family, reports):
    probe(ProbeConfig(family.source, family.target, str(family.folder / "probed"), KeepDominant()),
          progress=reports)  # fmt: skip


FEATURES = {
    "transfer": lambda family, reports: transfer(family.config("a.safetensors"), progress=reports),
    "analysis": _analysis,
    "probe": _probe,
    "merge": lambda family, reports: merge(family.source, [family.lora], str(family.folder / "m.safetensors"),
                                           progress=reports),
    "cache": lambda family, reports: BasisCache(family.config().cache).verify(reports),
}  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_reports_up_to_the_whole(feature, family):
    if feature == "cache":
        transfer(family.config("filled.safetensors"))
    reports = Reports()
    FEATURES[feature](family, reports)
    assert reports.advanced
    for text in {text for text, *_ in reports.advanced}:
        done = [(amount, total) for name, amount, total, _ in reports.advanced if name == text]
        assert done == sorted(done) and done[-1][0] == done[-1][1] and len({total for _, total in done}) == 1


def test_layers_of_an_earlier_start_are_reported_as_such(family):
    config = family.config("again.safetensors")
    with pytest.raises(KeyboardInterrupt):
        transfer(config, progress=Reports(TRANSFERRING, stop_at=6))  # the first report is of the beginning
    reports = Reports()
    transfer(config, progress=reports)
    (_, before, total, earlier), *later = reports.advanced
    assert 0 < before < total and not any("earlier" in part for *_, part in later)
    lines = earlier.splitlines()
    # five were reported before the stop; the layer in work on its thread may have been finished too
    assert len(lines) in (5, 6, 7) and len(lines) + len(later) == 20
    assert all(line.endswith("in an earlier start") for line in lines)


def test_outputs_and_passes_are_named_where_there_are_several(family):
    reports = Reports()
    configs = [family.config(f"{name}.safetensors", method=name) for name in ("direct", "casa")]
    transfer_many(configs, progress=reports)
    assert {part.partition(": ")[0] for *_, part in reports.advanced if part} == {
        "direct.safetensors",
        "casa.safetensors",
    }
    passes = [Pass((family.config(f"{name}.safetensors"),), name, (f"this is {name}",)) for name in ("high", "low")]
    reports = Reports()
    transfer_passes(passes, progress=reports)
    assert {text for text, *_ in reports.advanced} == {"high: transferring", "low: transferring"}
    assert reports.notes[:2] == ["this is high", "this is low"]


def test_nothing_is_heard_of_no_progress(capsys):
    NO_PROGRESS.step("one", 0, 2)
    NO_PROGRESS.advance("two", 1, 2)
    NO_PROGRESS.note("three")
    assert capsys.readouterr() == ("", "")


class Shares:
    """Hears of shares alone, as a bar of one's own would."""

    def __init__(self):
        self.texts = set()

    def advance(self, text, done, total, part=""):
        self.texts.add(text)


def test_an_observer_needs_only_the_methods_that_it_cares_about(family):
    heard = Shares()
    transfer(family.config("shares.safetensors"), progress=heard)
    merge(Path(family.source), Path(family.lora), family.folder / "shares-merged.safetensors", progress=heard)
    _analysis(family, heard)
    assert {TRANSFERRING, "merging"} < heard.texts
    for run in (lambda: transfer(family.config("none.safetensors"), progress=print), lambda: _analysis(family, 3)):
        with pytest.raises(SettingsError, match="without any of the methods step, advance, note"):
            run()
