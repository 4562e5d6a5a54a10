"""The pictures of a report and of an explorer, as a browser shows them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1240, 900
PARTS = {"report": ".answer", "explorer": ".chooser"}
"""Picture -> where in the page it begins."""


def picture_pages(report: Path, explorer: Path, folder: Path) -> None:
    """Write report.png and explorer.png: a part of each page, on a wide screen."""
    from selenium import webdriver
    from selenium.webdriver.support.wait import WebDriverWait

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
        )
        for (name, selector), page in zip(PARTS.items(), (report, explorer), strict=True):
            driver.get(page.resolve().as_uri())
            part = driver.find_element("css selector", selector)
            driver.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", part)
            WebDriverWait(driver, 20).until(lambda _: driver.find_elements("css selector", ".js-plotly-plot .point"))
            picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
            few = picture.quantize(256, kmeans=2, dither=Image.Dither.NONE)
            few.save(folder / f"{name}.png", optimize=True)
    finally:
        driver.quit()
