"""The dashboard in a real browser, beside a whole sandbox; skipped where there is no Chromium with its driver."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

from operations.dashboard.application import Dashboard
from operations.dashboard.server import Server
from sandbox.cloud import FAILED_QUEUE, WON_QUEUE, Cloud, CloudOptions
from sandbox.control.panel import ControlPanel
from sandbox.control.server import ControlServer
from sandbox.dataverse.schema import TABLES
from sandbox.faults import FaultPlan
from sandbox.service_bus import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARROWS = 5
SECONDS = 110.0
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
    """The page as a person uses it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

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
        end = time.monotonic() + SECONDS
        while True:
            try:
                if condition():
                    return
            except WebDriverException:
                pass
            assert time.monotonic() < end, f"not within {SECONDS:g} s: {what}\n{self.text('main')}"
            time.sleep(0.1)

    def picture(self, name: str) -> None:
        if PICTURES:
            self.driver.execute_script("window.scrollTo(0, 0)")
            self.driver.save_screenshot(f"{PICTURES}/{name}.png")


class Running:
    """A sandbox with a function, and the dashboard of its operator."""

    def __init__(self, cloud: Cloud, server: Server) -> None:
        self.cloud = cloud
        self.url = server.url


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
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
        yield Running(cloud, server)
        server.stop()
        dashboard.stop()
        thread.join(SECONDS)


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
def page(driver: webdriver.Chrome, running: Running) -> Page:
    driver.get(running.url)
    return Page(driver)


def test_win_break_watch_repair_retry(page: Page) -> None:
    """A person wins an opportunity, breaks a connection, sees it red, repairs it, and sees the invoice."""
    page.until(lambda: page.count("path.arrow.green") == ARROWS, "all connections are green")
    page.click("[data-sandbox=win]")
    page.until(lambda: "1 won" in page.text("#sandbox"), "the opportunity is won")
    page.until(lambda: bool(re.search(r"0\.2 a minute", page.text("#flow"))), "the event is published")
    page.fill("#break input[name=rule]", "dataverse refuse")
    page.click("#break button")
    page.until(lambda: page.count("path.arrow.red[data-connection=dataverse]") == 1, "Dataverse is red")
    page.click("[data-sandbox=win]")
    page.until(lambda: "DataverseUnreachable" in page.text("#waiting"), "the retry and its reason are shown")
    page.picture("dashboard")
    page.click("[data-sandbox=repair]")
    page.until(lambda: page.count("path.arrow.green") == ARROWS, "all connections are green again")
    page.until(lambda: "No message waits" in page.text("#waiting"), "the retry was tried")
    page.fill("#audit-form input", "01012020")
    page.click("#audit-form button")
    page.until(lambda: "none missing" in page.text("#audit"), "the audit finds an invoice for each win")


def test_a_retry_is_made_now(page: Page, running: Running) -> None:
    body = f'{{"opportunityId": "{running.cloud.demo.opportunities[0]}"}}'.encode()
    due = running.cloud.broker_clock.now() + timedelta(hours=1)
    properties = {"InvoicingReason": "DataverseUnreachable", "InvoicingAttempt": 3}
    message = Message(body, application_properties=properties, scheduled_enqueue_time=due)
    running.cloud.broker.send(WON_QUEUE, message)
    page.until(lambda: "DataverseUnreachable" in page.text("#waiting"), "the retry and its reason are shown")
    page.click("#waiting [data-number]")
    page.confirm()
    page.until(lambda: "1 sent" in page.text("#jobs"), "the outcome is shown")
    page.until(
        lambda: (
            running.cloud.broker.counts(WON_QUEUE).scheduled == 0
            or "OpportunityStillOpen" in page.text("#waiting")
        ),
        "it is tried",
    )


def test_replay_a_failed_message_and_see_its_invoice(page: Page, running: Running) -> None:
    with running.cloud.dataverse.session() as session:
        # An earlier test of this sandbox may have won some.
        is_open = {
            row["opportunityid"]: row["statecode"] == 0
            for row in session.transaction.rows(TABLES["opportunity"])
        }
        opportunity = next(each for each in reversed(running.cloud.demo.opportunities) if is_open[each])
        name = "<img src=x onerror=alert(1)>"
        session.change(TABLES["opportunity"], opportunity, {"statecode": 1, "statuscode": 3, "name": name})
    properties = {"DeadLetterReason": "InvoiceRefused", "DeadLetterErrorDescription": "No price list."}
    body = f'{{"opportunityId": "{opportunity}"}}'.encode()
    message = Message(body, content_type="application/json", application_properties=properties)
    running.cloud.broker.send(FAILED_QUEUE, message)
    page.until(lambda: page.count("[data-reason=InvoiceRefused]") > 0, "the reason is shown")
    page.click("details[data-reason=InvoiceRefused] summary")
    page.until(lambda: name in page.text("#failed .rows"), "the row shows the name as text")
    page.picture("dashboard-failed")
    page.click("#failed tbody input")
    page.click("#failed [data-do=replay][data-selected]")
    page.confirm()
    page.until(lambda: "1 published" in page.text("#jobs"), "the replay's outcome is shown")
    page.until(lambda: "No message has failed" in page.text("#failed"), "the message has left the queue")
    page.fill("#search input", opportunity)
    page.click("#search button")
    page.until(lambda: "Invoiced once" in page.text("#found"), "the verdict")
    for step in ("opportunity created", "claimed", "invoiced", "event published"):
        assert step in page.text("#found")
    assert page.count("#found img") == 0, "a name is never markup"
    assert [
        line
        for line in page.driver.get_log("browser")  # type: ignore[no-untyped-call]
        if line["level"] == "SEVERE"
    ] == []


def test_an_open_group_and_its_check_marks_stay(page: Page, running: Running) -> None:
    """The page updates by itself without closing what is open or losing what is selected."""
    for number in range(3):
        properties = {"DeadLetterReason": "InvalidEvent", "DeadLetterErrorDescription": f"Number {number}."}
        running.cloud.broker.send(FAILED_QUEUE, Message(b"?", application_properties=properties))
    page.until(lambda: page.text("[data-reason=InvalidEvent] .count") == "3", "three messages")
    page.click("details[data-reason=InvalidEvent] summary")
    page.click("details[data-reason=InvalidEvent] tbody tr:nth-child(2) input")
    properties = {"DeadLetterReason": "InvalidEvent", "DeadLetterErrorDescription": "Another one."}
    running.cloud.broker.send(FAILED_QUEUE, Message(b"?", application_properties=properties))
    page.until(
        lambda: page.count("details[data-reason=InvalidEvent][open] tbody tr") == 4, "the fourth one comes"
    )
    assert page.count("details[data-reason=InvalidEvent] tbody tr:nth-child(2) input:checked") == 1


def test_the_keyboard_suffices(page: Page) -> None:
    page.until(lambda: page.count("path.arrow") == ARROWS, "the page is there")
    page.driver.switch_to.active_element.send_keys("/")
    assert page.driver.switch_to.active_element.get_attribute("id") == "text"
    page.driver.switch_to.active_element.send_keys("no such opportunity\n")
    page.until(lambda: "No opportunity matches" in page.text("#found"), "a sentence")


def test_a_page_that_lost_its_dashboard_says_so(page: Page, driver: webdriver.Chrome) -> None:
    page.until(lambda: page.count("path.arrow") == ARROWS, "the page is there")
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.until(lambda: "is lost" in page.text("#lost"), "the page says so")
    online = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", online)
    page.until(lambda: page.text("#lost") == "", "the page goes on")


def test_dark_and_narrow(page: Page, driver: webdriver.Chrome, running: Running) -> None:
    plugin = "Plugin/Contoso.Invoicing.CreditChecks.LimitOfGroup"
    text = f"Dataverse responded 403 0x80048d06: Credit limit exceeded. (plug-in {plugin})"
    properties = {"DeadLetterReason": "InvoiceRefused", "DeadLetterErrorDescription": text}
    running.cloud.broker.send(FAILED_QUEUE, Message(b"?", application_properties=properties))
    due = running.cloud.broker_clock.now() + timedelta(hours=1)
    retry = {"InvoicingReason": "InvoiceRefused", "InvoicingDescription": text}
    running.cloud.broker.send(
        WON_QUEUE, Message(b"?", application_properties=retry, scheduled_enqueue_time=due)
    )
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    page.until(lambda: page.count("path.arrow") == ARROWS, "the page is there")
    page.click("details[data-reason=InvoiceRefused] summary")
    page.until(lambda: page.count("#failed tbody tr") > 0, "the failed message is shown")
    page.until(lambda: page.count("#waiting tbody tr") > 0, "the retry is shown")
    picture = driver.execute_script("return document.querySelector('#flow svg').clientWidth")
    heights = driver.execute_script(
        "return [...document.querySelectorAll('tr')].map((row) => row.clientHeight)"
    )
    width = driver.execute_script("return document.documentElement.scrollWidth")
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 400
    assert picture > 600, "the picture is legible"
    assert max(heights) < 300, "no text stands in a column of a few letters"
    assert background == "rgb(20, 23, 28)"
