"""Results are shown to whoever knows the job's name, and nothing else of the page's folder is."""

import pytest

from loraport.app.work_folder import WorkFolder


@pytest.fixture
def seen(tmp_path):
    """What is answered to a path."""
    fastapi = pytest.importorskip("fastapi", reason="gradio's server is not installed: results were not served")
    from fastapi.testclient import TestClient

    from loraport.app.server import show_results

    folder = WorkFolder(tmp_path.resolve() / "work")
    folder.make()
    for name in ("report.html", "printed.json", "in/style.safetensors", "compared/index.html", "compared/clips/a.mp4"):
        (folder.jobs / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.jobs / "job" / name).write_text(name)
    (tmp_path / "report.html").write_text("secret")
    (folder.path / "report.html").write_text("secret")
    (folder.jobs / "job" / "compared" / "out.html").symlink_to(tmp_path / "report.html")
    app = fastapi.FastAPI()
    show_results(app, folder)
    return TestClient(app, base_url="http://127.0.0.1:7860").get


@pytest.mark.parametrize("path", ["report.html", "compared/index.html", "compared/clips/a.mp4"])
def test_pages_and_what_lies_beside_them_are_shown(seen, path):
    answer = seen(f"/results/job/{path}")
    assert (answer.status_code, answer.text) == (200, path)
    rule = answer.headers["content-security-policy"]
    assert rule.startswith("sandbox allow-scripts") and "default-src 'none'" in rule and "same-origin" not in rule
    assert "connect-src http://127.0.0.1:7860/results/" in rule
    assert answer.headers["access-control-allow-origin"] == "null"


@pytest.mark.parametrize(
    "path",
    [
        *("job/printed.json", "job/in/style.safetensors", "job/here", "job/", "other/report.html", "job/compared"),
        *("../report.html", "%2e%2e/report.html", "job/%2e%2e/%2e%2e/report.html", "job/..%2f..%2freport.html"),
        *("job/compared/out.html", "job//etc/passwd", "..%2f..%2freport.html/report.html"),
    ],
)
def test_nothing_else_is(seen, path):
    assert seen(f"/results/{path}").status_code == 404
