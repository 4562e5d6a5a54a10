"""The site of the documentation builds without a warning, its links lead somewhere, and it works without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import tnalgebra as tn
from tests.documents import ROOT

CONFIGURATION = ROOT / "docs" / "site" / "mkdocs.yml"

LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements for which a browser loads a file by itself, and the attribute that names it."""


class Page(HTMLParser):
    """What a page of the site points at, and the places in it that others may point at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attributes if value is not None}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            self.loads.add(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly, so that every warning is an error, in a folder outside of the checkout."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIGURATION), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its address within the site; the page for missing addresses is only for servers."""
    paths = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {address: Page(path) for address, path in paths.items() if address != "404.html"}


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for address, page in pages.items():
        for link in page.links | page.loads:
            parts = urlsplit(urljoin(address, link))
            if parts.scheme:
                continue
            target = unquote(parts.path) or address
            if not (site / target).is_file() or parts.fragment not in {"", *_places(pages, target)}:
                broken.append(f"{address}: {link}")
    assert not broken


def _places(pages: dict[str, Page], address: str) -> set[str]:
    return pages[address].places if address in pages else set()


@pytest.mark.slow
def test_the_site_loads_nothing_from_the_network(pages: dict[str, Page]) -> None:
    assert not [(address, load) for address, page in pages.items() for load in page.loads if urlsplit(load).netloc]


@pytest.mark.slow
def test_the_reference_has_every_public_name(pages: dict[str, Page]) -> None:
    targets = [urlsplit(link) for link in pages["reference/index.html"].links]
    entries = {target.fragment.split(".")[-1] or target.path.removesuffix(".html") for target in targets}
    assert {*tn.__all__} <= entries


@pytest.mark.slow
def test_the_search_finds_a_tensor_ring(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    addresses = {entry["location"].split("#")[0] for entry in index["docs"] if "tensor ring" in _words(entry)}
    assert {"notation.html", "reference/decompositions.html"} <= addresses


def _words(entry: dict[str, str]) -> str:
    return f"{entry['title']} {entry['text']}".lower()
