"""Pages in a real browser without a network: plots, tables, narrow screens and dark colours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.pages.run_folders import CUTS, retraining_rows, study_rows, write_rows
from tnalgebra.pages import write_explorer, write_report

selenium = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"),
]


class Browser:
    """A page in headless Chromium that reaches no network."""

    def __init__(self) -> None:
        options = selenium.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = selenium.Chrome(options=options, service=selenium.ChromeService(str(DRIVER)))

    def open(self, page: Path, *, width: int = 1400, colours: str = "light") -> None:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": colours}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: self.run(script))

    def dataset(self, title: str) -> Any:
        """The section of a data set, with its plots drawn."""
        found = self.run(
            "return [...document.querySelectorAll('[data-dataset]')].find((s) => s.firstElementChild.textContent === "
            "arguments[0])",
            title,
        )
        self.run("arguments[0].scrollIntoView({behavior: 'instant'})", found)
        return found

    def console(self) -> list[dict[str, Any]]:
        return list(self.driver.get_log("browser"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    rows = [each | {"rewrite": each["rewrite"].replace(CUTS[1], "<b>bold</b>")} for each in study_rows()]
    study, retraining = write_rows(folder / "study", rows), write_rows(folder / "retrain", retraining_rows())
    write_report([study, retraining], folder / "report.html")
    return folder / "report.html"


def text_of(browser: Browser, section: Any, selector: str) -> str:
    return str(browser.run("return arguments[0].querySelector(arguments[1]).textContent", section, selector))


def cells(browser: Browser, section: Any, number: int) -> list[str]:
    script = "return [...arguments[0].querySelectorAll('tbody tr')].map((row) => row.cells[arguments[1]].textContent)"
    return list(browser.run(script, section, number))


def test_a_point_is_hovered_and_all_plots_follow(browser: Browser, page: Path) -> None:
    from selenium.webdriver import ActionChains

    browser.open(page)
    section = browser.dataset("One layer at a time")
    browser.wait("return document.querySelectorAll('.js-plotly-plot .point').length > 0")
    plots = section.find_elements("css selector", ".js-plotly-plot")
    assert len(plots) == 4
    browser.run("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", plots[0])
    point = plots[0].find_elements("css selector", ".scatterlayer .trace:nth-child(2) .point")[3]
    ActionChains(browser.driver).move_to_element(point).perform()
    browser.wait("return document.querySelector('.hovertext')")
    label = text_of(browser, section, ".hovertext")
    for part in ("layer3", "<b>bold</b>", "keep 0.5", "change of top-1 (points): "):
        assert part in label
    browser.wait("return document.querySelectorAll('.readout strong').length > 0")
    assert text_of(browser, section, ".readout strong").startswith("layer3 · <b>bold</b> · keep 0.5")
    assert len(section.find_elements("css selector", "tr.cursor")) == 1
    browser.wait("return [...document.querySelectorAll('.js-plotly-plot')].some((plot) => plot.layout.shapes.length)")
    rings = "return [...arguments[0].querySelectorAll('.js-plotly-plot')].map((plot) => plot.data.at(-1).x)"
    assert browser.run(rings, section) == [["layer3"], ["layer3"], ["layer3"], ["<b>bold</b>"]]
    assert browser.console() == []


def test_tables_are_sorted_and_filtered_by_keyboard(browser: Browser, page: Path) -> None:
    from selenium.webdriver import Keys

    browser.open(page)
    section = browser.dataset("Several layers at once")
    before = cells(browser, section, 2)
    assert before == ["65.00", "40.00", "15.00", "77.50", "65.00", "52.50"]
    button = section.find_elements("css selector", "th button")[2]
    for way, expected in (("ascending", sorted(before)), ("descending", sorted(before, reverse=True))):
        button.send_keys(Keys.ENTER)
        assert cells(browser, section, 2) == expected
        assert section.find_elements("css selector", "th")[2].get_attribute("aria-sort") == way
    section.find_element("css selector", "input").send_keys("bold 0.25")
    assert cells(browser, section, 2) == ["52.50"]
    assert text_of(browser, section, "[role=status]") == "1 of 6 rows"
    browser.wait("return document.querySelectorAll('.js-plotly-plot').length > 0")
    section.find_element("css selector", ".plot").send_keys(Keys.ARROW_RIGHT)
    assert "<b>bold</b> · keep 0.25" in text_of(browser, section, ".readout")
    button = section.find_element("css selector", ".legend button")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "false"
    assert browser.console() == []


def test_a_menu_chooses_the_network_of_a_grid(browser: Browser, tmp_path: Path) -> None:
    rows = [{**each, "model": name} for name in ("first", "second") for each in study_rows()]
    write_report([write_rows(tmp_path / "grid", rows)], tmp_path / "report.html")
    browser.open(tmp_path / "report.html", width=390)
    menu = browser.driver.find_element("css selector", ".parts select")
    shown = "return [...document.querySelectorAll('.part')].map((part) => part.offsetParent !== null)"
    assert browser.run(shown) == [True, False]
    menu.send_keys("second")
    assert browser.run(shown) == [False, True]
    plot = browser.driver.find_elements("css selector", ".part:not([hidden]) .plot")[0]
    browser.run("arguments[0].scrollIntoView({behavior: 'instant'})", plot)
    browser.wait("return document.querySelectorAll('.part:not([hidden]) .js-plotly-plot .point').length > 0")
    width = "return document.querySelector('.part:not([hidden]) .js-plotly-plot').getBoundingClientRect().width"
    assert browser.run(width) > 300
    assert browser.run("return document.documentElement.scrollWidth") == 390
    menu.send_keys("first")
    assert browser.run(shown) == [True, False]
    assert browser.console() == []


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_narrow_screen_in_light_and_dark(browser: Browser, page: Path, colours: str) -> None:
    browser.open(page, width=390, colours=colours)
    browser.dataset("Epoch by epoch")
    browser.wait("return document.querySelectorAll('.js-plotly-plot .point').length > 0")
    assert browser.run("return document.documentElement.scrollWidth") == 390
    ink = browser.run("return document.querySelector('.js-plotly-plot').layout.font.color")
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    bright = sum(int(ink[place : place + 2], 16) for place in (1, 3, 5)) > 3 * 128
    assert bright == (colours == "dark")
    assert (paper == "rgb(255, 255, 255)") == (colours == "light")
    assert browser.console() == []


def test_it_is_small_and_prints(browser: Browser, page: Path) -> None:
    assert page.stat().st_size < 8e6
    browser.open(page)
    printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 50_000
    assert browser.console() == []


def test_the_explorer_follows_the_layer_and_the_rank(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 16, 10))
    write_explorer(model, tmp_path / "explorer.html", rewrites=["out | in kh kw", "tucker2"], shape=(2, 3, 8, 8))
    browser.open(tmp_path / "explorer.html")
    section = browser.dataset("Rewrites of the layer")
    browser.wait("return document.querySelectorAll('.js-plotly-plot .point').length > 0")
    menu = browser.driver.find_element("css selector", ".chooser select")
    assert menu.get_attribute("value") == "3"
    menu.send_keys("1")
    assert set(cells(browser, section, 0)) == {"out | in kh kw", "tucker2"}
    slider = browser.driver.find_element("css selector", ".chooser input")
    slider.send_keys(Keys.HOME)
    assert set(cells(browser, section, 1)) == {"r=1", "a=1 b=1"}
    slider.send_keys(Keys.ARROW_RIGHT)
    assert set(cells(browser, section, 1)) == {"r=2", "a=2 b=2"}
    assert browser.driver.find_element("css selector", ".chooser output").text == "2"
    spectra = browser.dataset("Spectra of the kernel")
    assert set(browser.run("return arguments[0].querySelector('.js-plotly-plot')?.data.at(-1).x ?? [2]", spectra)) == {
        2
    }
    layers = browser.dataset("Layers")
    layers.find_element("css selector", "summary").click()
    layers.find_elements("css selector", "tbody tr")[0].click()
    assert menu.get_attribute("value") == "0"
    code = [line for line in cells(browser, section, 2) if "tucker2" in line]
    assert code[0].endswith('model, report = tn.convert(model, {"0": ("tucker2", {"a": 2, "b": 2})})')
    assert browser.console() == []
