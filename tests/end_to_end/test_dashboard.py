"""The dashboard in a real browser, beside a whole sandbox; skipped where there is no Chromium with its driver."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from operations.dashboard.application import Dashboard
from operations.dashboard.server import Server
from sandbox.cloud import WON_QUEUE, Cloud, CloudOptions
from sandbox.control.panel import ControlPanel
from sandbox.control.server import ControlServer
from sandbox.dataverse.schema import TABLES
from sandbox.faults import FaultPlan
from tests.end_to_end.conftest import PATIENCE, Namespace, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARROWS = 5
# The folder for screenshots, where a person wants them.
PICTURES = os.environ.get("DASHBOARD_PICTURES")
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="Chromium with its driver is not installed (Debian: apt-get install chromium chromium-driver)",
    ),
    # Links are not waited for when the dashboard ends.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Page:
    """The page as a person uses it, beside a sandbox with a function."""

    def __init__(self, driver: webdriver.Chrome, cloud: Cloud) -> None:
        self.driver = driver
        self.cloud = cloud
        self.namespace = Namespace(cloud.broker, cloud.operator_settings)

    def text(self, selector: str) -> str:
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).text)

    def count(self, selector: str) -> int:
        return len(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            self.driver.find_element(By.CSS_SELECTOR, selector).click()
            return True

        self.until(clicked, f"click {selector}")

    def confirm(self) -> None:
        self.click("#confirm[open] [value=yes]")

    def fill(self, selector: str, text: str) -> None:
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; an element that is being replaced is asked for again."""

        def happened() -> bool:
            try:
                return condition()
            except WebDriverException:
                return False

        wait_until(happened, lambda: f"not in time: {what}\n{self.text('main')}")

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element has a text in it."""
        self.until(lambda: text in self.text(selector), f"{selector} shows {text}")

    def has(self, selector: str, count: int) -> None:
        """Wait until there are so many elements."""
        self.until(lambda: self.count(selector) == count, f"there are {count} of {selector}")

    def picture(self, name: str) -> None:
        if PICTURES:
            self.driver.execute_script("window.scrollTo(0, 0)")
            self.driver.save_screenshot(f"{PICTURES}/{name}.png")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Cloud, str]]:
    """Run a sandbox with a function, and the dashboard of its operator; return it and the dashboard's address."""
    options = CloudOptions(ROOT, opportunities=20, faults=FaultPlan())
    with ExitStack() as stack:
        cloud = stack.enter_context(Cloud(options))
        control = stack.enter_context(ControlServer(stack.enter_context(ControlPanel(cloud))))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        environment = {
            **cloud.operator_settings,
            "SANDBOX_CONTROL": control.url,
            "SANDBOX_CONTROL_TOKEN": control.token,
        }
        # The libraries read where identities and trusted certificates are from the process's environment.
        for name, value in environment.items():
            patch.setenv(name, value)
        dashboard = Dashboard(environment)
        server = Server(dashboard)
        dashboard.start()
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield cloud, server.url
        server.stop()
        dashboard.stop()
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",  # the tests may run as root
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1100",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, running: tuple[Cloud, str]) -> Page:
    cloud, url = running
    driver.get(url)
    return Page(driver, cloud)


def test_win_break_watch_repair_retry(page: Page) -> None:
    """A person wins an opportunity, breaks a connection, sees it red, repairs it, and sees the invoice."""
    page.has("path.arrow.green", ARROWS)
    page.click("[data-sandbox=win]")
    page.shows("#sandbox", "1 won")
    page.shows("#flow", "0.2 a minute")
    page.fill("#break input[name=rule]", "dataverse refuse")
    page.click("#break button")
    page.has("path.arrow.red[data-connection=dataverse]", 1)
    page.click("[data-sandbox=win]")
    page.shows("#waiting", "DataverseUnreachable")
    page.picture("dashboard")
    page.click("[data-sandbox=repair]")
    page.has("path.arrow.green", ARROWS)
    page.shows("#waiting", "No message waits")
    page.fill("#audit-form input", "01012020")
    page.click("#audit-form button")
    page.shows("#audit", "none missing")


def test_a_retry_is_made_now(page: Page) -> None:
    broker = page.cloud.broker
    page.namespace.schedule(page.cloud.demo.opportunities[0])
    page.shows("#waiting", "DataverseUnreachable")
    page.click("#waiting [data-number]")
    page.confirm()
    page.shows("#jobs", "1 sent")
    page.until(
        lambda: broker.counts(WON_QUEUE).scheduled == 0 or "OpportunityStillOpen" in page.text("#waiting"),
        "it is tried",
    )


def test_replay_a_failed_message_and_see_its_invoice(page: Page) -> None:
    with page.cloud.dataverse.session() as session:
        # An earlier test of this sandbox may have won some.
        still_open = session.transaction.rows(TABLES["opportunity"], "statecode = ?", (0,))
        opportunity = str(still_open[-1]["opportunityid"])
        name = "<img src=x onerror=alert(1)>"
        session.change(TABLES["opportunity"], opportunity, {"statecode": 1, "statuscode": 3, "name": name})
    page.namespace.park(opportunity, text="No price list.")
    page.click("details[data-reason=InvoiceRefused] summary")
    page.shows("#failed .rows", name)
    page.picture("dashboard-failed")
    page.click("#failed tbody input")
    page.click("#failed [data-do=replay][data-selected]")
    page.confirm()
    page.shows("#jobs", "1 published")
    page.shows("#failed", "No message has failed")
    page.fill("#search input", opportunity)
    page.click("#search button")
    page.shows("#found", "Invoiced once")
    for step in ("opportunity created", "claimed", "invoiced", "event published"):
        assert step in page.text("#found")
    assert page.count("#found img") == 0, "a name is never markup"
    log = page.driver.get_log("browser")  # type: ignore[no-untyped-call]
    assert [line for line in log if line["level"] == "SEVERE"] == []


def test_an_open_group_and_its_check_marks_stay(page: Page) -> None:
    """The page updates by itself without closing what is open or losing what is selected."""
    group = "details[data-reason=InvalidEvent]"
    page.namespace.park(1, 2, 3, reason="InvalidEvent")
    page.shows(f"{group} .count", "3")
    page.click(f"{group} summary")
    page.click(f"{group} tbody tr:nth-child(2) input")
    page.namespace.park(4, reason="InvalidEvent")
    page.has(f"{group}[open] tbody tr", 4)
    assert page.count(f"{group} tbody tr:nth-child(2) input:checked") == 1


def test_the_keyboard_suffices(page: Page) -> None:
    page.has("path.arrow", ARROWS)
    page.driver.switch_to.active_element.send_keys("/")
    assert page.driver.switch_to.active_element.get_attribute("id") == "text"
    page.driver.switch_to.active_element.send_keys("no such opportunity\n")
    page.shows("#found", "No opportunity matches")


def test_a_page_that_lost_its_dashboard_says_so(page: Page) -> None:
    page.has("path.arrow", ARROWS)
    page.driver.execute_cdp_cmd("Network.enable", {})
    network = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    page.shows("#lost", "is lost")
    network |= {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    page.until(lambda: page.text("#lost") == "", "the page goes on")


def test_dark_and_narrow(page: Page) -> None:
    plugin = "Plugin/Contoso.Invoicing.CreditChecks.LimitOfGroup"
    text = f"Dataverse responded 403 0x80048d06: Credit limit exceeded. (plug-in {plugin})"
    page.namespace.park(1, text=text)
    page.namespace.schedule(1, reason="InvoiceRefused", text=text)
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    page.has("path.arrow", ARROWS)
    page.click("details[data-reason=InvoiceRefused] summary")
    page.until(lambda: page.count("#failed tbody tr") > 0, "the failed message is shown")
    page.until(lambda: page.count("#waiting tbody tr") > 0, "the retry is shown")
    picture, heights, width, background = (
        page.driver.execute_script(f"return {value}")
        for value in (
            "document.querySelector('#flow svg').clientWidth",
            "[...document.querySelectorAll('tr')].map((row) => row.clientHeight)",
            "document.documentElement.scrollWidth",
            "getComputedStyle(document.body).backgroundColor",
        )
    )
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 400
    assert picture > 600, "the picture is legible"
    assert max(heights) < 300, "no text stands in a column of a few letters"
    assert background == "rgb(20, 23, 28)"
