"""The pages build into a site, strictly, and the site needs no network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(config: Path, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "tools" / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_in_its_menu(site):
    menu = (site / "index.html").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        built = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / built).exists()
        assert f'href="{built}"' in menu


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* rel="(?:stylesheet|preload|icon)"[^>]* href="([^"]+)"'
    for page in site.rglob("*.html"):
        for found in re.findall(loaded, page.read_text()):
            assert not re.match(r"(https?:)?//", "".join(found)), f"{page.name} loads {found}"


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    (tmp_path / "tools").mkdir()
    config = shutil.copy(ROOT / "tools" / "mkdocs.yml", tmp_path / "tools")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    page = tmp_path / "docs" / "guards.md"
    for wrong in ("[gone](gone.md)", "[no such heading](start.md#no-such-heading)"):
        page.write_text((ROOT / "docs" / "guards.md").read_text() + f"\n{wrong}\n")
        done = build(Path(config), tmp_path / "site")
        assert done.returncode != 0 and "guards.md" in done.stderr
