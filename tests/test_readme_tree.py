"""The README's tree is the real one: every listed place exists, every module is listed, every line says what it is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed(text: str) -> dict[str, str]:
    """Path -> annotation of the first tree in a page; the indentation makes the folders."""
    block = re.search(r"^```\n(src/loraport/\n.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert block is not None, "the README has no tree"
    places, folders = {}, []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, meaning = line.strip().partition(" ")
        del folders[depth:]
        path = "".join(folders) + name
        places[path] = meaning.strip()
        if name.endswith("/"):
            folders.append(name)
    return places


def faults(text: str) -> list[str]:
    """Where the tree of a page and the real one differ."""
    places = listed(text)
    real = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "loraport").rglob("*.py")}
    real = {path for path in real if not path.endswith("/__init__.py")} | {"src/loraport/__init__.py"}
    real |= {f"{folder}/" for folder in ("tests", "benchmarks", "docs", "examples") if (ROOT / folder).is_dir()}
    real |= {f"{path.rpartition('/')[0]}/" for path in real if path.endswith(".py")}
    return (
        [f"{place} is listed but not there" for place in places if not (ROOT / place).exists()]
        + [f"{place} is there but not listed" for place in sorted(real - set(places))]
        + [f"{place} has no word of what it is" for place in places if not places[place] and place != "src/loraport/"]
    )


def test_the_tree_of_the_readme_is_the_real_one():
    assert faults((ROOT / "README.md").read_text(encoding="utf-8")) == []


def test_a_wrong_tree_is_seen():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any("svd.py is there" in fault for fault in faults(re.sub(r"\n    svd\.py .*", "", readme)))
    assert any("swd.py is listed" in fault for fault in faults(readme.replace("svd.py", "swd.py")))
    assert any("svd.py has no word" in fault for fault in faults(re.sub(r"(\n    svd\.py).*", r"\1", readme)))
