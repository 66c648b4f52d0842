"use strict";
// Polls for the parts of the page that changed, and replaces only those: what a person has opened, selected or focused
// stays as it is.
(() => {
  const prefix = document.body.dataset.prefix;
  const POLL_MS = 1500;
  const known = {};
  const byId = (id) => document.getElementById(id);

  async function fetchText(path) {
    const response = await fetch(`${prefix}/${path}`);
    if (!response.ok) throw new Error(await response.text());
    return response.text();
  }

  async function post(path, body) {
    const response = await fetch(`${prefix}/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const content = await response.json();
    if (!response.ok) throw new Error(content.error);
    return content;
  }

  // --- updates ---

  async function poll() {
    try {
      const changed = JSON.parse(await fetchText(`state?known=${encodeURIComponent(JSON.stringify(known))}`));
      for (const [id, part] of Object.entries(changed)) {
        replace(byId(id), part.html);
        known[id] = part.tag;
      }
      byId("lost").hidden = true;
    } catch {
      byId("lost").hidden = false;
    }
    setTimeout(poll, POLL_MS);
  }

  function replace(element, html) {
    const typing = document.activeElement;
    // A part in which somebody types waits for the next change.
    if (element.contains(typing) && typing.matches("input:not([type=checkbox])")) return;
    const kept = remember(element);
    element.innerHTML = html;
    restore(element, kept);
  }

  function remember(element) {
    const open = new Map();
    for (const details of element.querySelectorAll("details[open]")) open.set(nameOf(details), details.querySelector(".rows"));
    const focused = element.contains(document.activeElement) ? pathOf(document.activeElement, element) : null;
    return { open, focused };
  }

  function restore(element, kept) {
    for (const details of element.querySelectorAll("details")) {
      if (!kept.open.has(nameOf(details))) continue;
      const rows = kept.open.get(nameOf(details));
      // The rows that were loaded stay, with their check marks; they are read again below.
      if (rows) {
        rows.dataset.version = details.querySelector(".rows").dataset.version;
        details.querySelector(".rows").replaceWith(rows);
      }
      details.open = true;
      if (rows) refresh(rows);
    }
    if (kept.focused) element.querySelector(kept.focused)?.focus({ preventScroll: true });
  }

  const nameOf = (details) => details.dataset.reason ?? details.querySelector("summary").textContent;

  function pathOf(node, root) {
    const steps = [];
    for (let each = node; each !== root; each = each.parentElement) {
      steps.unshift(`:nth-child(${[...each.parentElement.children].indexOf(each) + 1})`);
    }
    return `:scope > ${steps.join(" > ")}`;
  }

  async function refresh(rows) {
    const shown = rows.querySelectorAll("tbody tr").length;
    const marked = new Set([...rows.querySelectorAll("tbody input:checked")].map((box) => box.value));
    const html = await fetchText(rows.dataset.load).catch(() => null);
    // Somebody who has loaded more rows keeps them until the group is opened again.
    if (html === null || shown > 100) return;
    rows.innerHTML = html;
    for (const box of rows.querySelectorAll("tbody input")) box.checked = marked.has(box.value);
  }

  // --- actions ---

  function ask(question) {
    byId("question").textContent = question;
    const dialog = byId("confirm");
    dialog.returnValue = "no";
    dialog.showModal();
    return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
  }

  function say(text) {
    byId("detail-content").textContent = text;
    byId("detail").showModal();
  }

  const VERBS = { replay: "Replay", discard: "Discard for good", retry: "Retry now", send: "Send an event for" };

  async function act(button) {
    const { do: action, reason, number } = button.dataset;
    let selection, count;
    if ("selected" in button.dataset) {
      const ids = [...button.closest("details").querySelectorAll("tbody input:checked")].map((box) => box.value);
      [selection, count] = [{ ids }, ids.length];
      if (!count) return say("No message is selected.");
    } else if (number) {
      [selection, count] = [{ numbers: [Number(number)] }, 1];
    } else {
      [selection, count] = [reason === undefined ? { everything: true } : { reason }, Number(button.dataset.count)];
    }
    const what = action === "send" ? "win" : "message";
    const noun = count === 1 ? `1 ${what}` : `${count.toLocaleString("en")} ${what}s`;
    if (await ask(`${VERBS[action]} ${noun}?`)) await post(`do/${action}`, selection);
  }

  async function find(text) {
    const section = byId("found");
    section.hidden = false;
    section.innerHTML = "<p class=empty>Reading …</p>";
    section.innerHTML = await fetchText(`opportunity?text=${encodeURIComponent(text)}`);
    section.scrollIntoView({ block: "nearest" });
  }

  const clicks = {
    "[data-do]": act,
    "[data-find]": (button) => find(button.dataset.find),
    "[data-message]": async (button) => {
      byId("detail-content").innerHTML = await fetchText(`message/${encodeURIComponent(button.dataset.message)}`);
      byId("detail").showModal();
    },
    "[data-more]": async (button) => {
      const rows = document.createElement("template");
      rows.innerHTML = await fetchText(button.dataset.more);
      const next = rows.content.querySelector(".more");
      button.parentElement.querySelector("tbody").append(...rows.content.querySelectorAll("tr"));
      button.replaceWith(...(next ? [next] : []));
    },
    "[data-all]": (box) => {
      for (const each of box.closest("table").querySelectorAll("tbody input")) each.checked = box.checked;
    },
    "[data-close]": (button) => { byId(button.dataset.close).hidden = true; },
    "[data-sandbox]": async (button) => {
      await post(`sandbox/${button.dataset.sandbox}`, JSON.parse(button.dataset.values));
    },
  };

  const forms = {
    search: (fields) => find(fields.text),
    "audit-form": (fields) => post("do/audit", fields),
    break: (fields) => post("sandbox/break", { rule: fields.rule, seconds: Number(fields.seconds) }),
    "win-one": (fields) => post("sandbox/win", { search: fields.search }),
  };

  const reported = (promise) => promise?.catch?.((error) => say(error.message));

  document.addEventListener("click", (event) => {
    for (const [selector, handler] of Object.entries(clicks)) {
      const target = event.target.closest(selector);
      if (target) return reported(handler(target));
    }
  });
  document.addEventListener("submit", (event) => {
    const handler = forms[event.target.id];
    if (!handler) return;
    event.preventDefault();
    reported(handler(Object.fromEntries(new FormData(event.target))));
  });
  document.addEventListener("toggle", (event) => {
    const rows = event.target.querySelector?.(":scope > .rows");
    if (rows && event.target.open && !rows.childElementCount) reported(refresh(rows));
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input")) {
      event.preventDefault();
      byId("text").focus();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      byId("found").hidden = true;
    }
  });
  poll();
})();
