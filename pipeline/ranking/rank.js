// Ranks the answers of one set. What is not sent yet is kept in this browser, for this annotator, set and order of answers.
"use strict";
(() => {
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const main = find("main[data-item]"), { annotator } = document.body.dataset, shownAt = performance.now();
  let sending = false, undoing = false;
  const keyOf = (item, repeat, order) => `rank ${annotator} ${item} ${repeat} ${order}`;
  const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

  async function post(path, body) {
    const said = JSON.stringify({ ...body, annotator }); // this tab's: another one may have made the browser somebody else's
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: said });
    if (!response.ok) throw new Error((await response.text()) || response.statusText);
    return response.json();
  }
  function tell(error) {
    const gone = "The server does not answer. Your ranking is kept here: try again, or open the link that `rlhf rank` prints once it runs again.";
    find("#problem").textContent = error instanceof TypeError ? gone : error.message;
  }
  // The second click of a double click lands on the next page, whose last one nobody meant; so would a key while something is on its way.
  const isSlip = (event) => sending || undoing || (event && performance.now() - shownAt < 300);
  async function undo(event) {
    if (isSlip(event)) return;
    undoing = true;
    try {
      const { item, repeat, order, draft } = await post("/undo", {});
      if (item) localStorage.setItem(keyOf(item, Number(repeat), order), JSON.stringify({ ...draft, id: newId(), seconds: 0 }));
      location.reload();
    } catch (error) { undoing = false; tell(error); }
  }
  // With the Caps Lock key a letter is the same key.
  const keyOfEvent = ({ key }) => (key.length === 1 ? key.toLowerCase() : key);
  find("#undo").addEventListener("click", undo);
  find("#problem").textContent = sessionStorage.getItem("told") || "";
  sessionStorage.removeItem("told");
  if (!main) {
    document.addEventListener("keydown", (event) => { if (keyOfEvent(event) === "u" && !event.ctrlKey && !event.metaKey && !event.repeat) undo(); });
    return;
  }

  const order = main.dataset.order.split(",").map(Number), mayBePartial = main.dataset.partial === "1";
  const key = keyOf(main.dataset.item, main.dataset.repeat, order);
  // levels: places as shown, best first; those in one level are ties.
  const draft = JSON.parse(localStorage.getItem(key) || "null") || { id: newId(), levels: [], flags: {}, grade: null, note: "", reason: "", seconds: 0 };
  const flags = all("[name=flag]"), radios = all("[name=grade]"), selects = all("select.grade"), grades = draft.grades ||= {};
  draft.flags = Object.fromEntries(Object.entries(draft.flags).filter(([flag]) => flags.some((box) => box.value === flag)));
  if (!radios.length) draft.grade = null;
  if (!selects.length) draft.grades = {};
  let tie = false, awaits = "", since = document.hidden ? null : performance.now();

  const named = () => draft.levels.flat(), isWhole = () => named().length > 0 && (mayBePartial || named().length === order.length);
  function keep() { localStorage.setItem(key, JSON.stringify(draft)); }
  function take(place) { draft.levels = draft.levels.map((level) => level.filter((each) => each !== place)).filter((level) => level.length); }
  function put(place) {
    if (place >= order.length || named().includes(place)) return;
    if (tie && draft.levels.length) draft.levels.at(-1).push(place); else draft.levels.push([place]);
    tie = false;
    show();
  }
  function back() { if (draft.levels.length) { take(draft.levels.at(-1).at(-1)); show(); } }
  // Where a dragged answer goes: into a level (a tie), between two (a level of its own), or to the rest.
  function drop(place, target) {
    const { level, gap } = target.dataset, levels = draft.levels.map((each) => [...each]);
    if (level !== undefined) levels[level].push(null);
    if (gap !== undefined) levels.splice(gap, 0, [null]);
    const settle = (each) => each.filter((other) => other !== place).map((other) => other ?? place);
    draft.levels = levels.map(settle).filter((each) => each.length);
    show();
  }

  function makeChip(place) {
    const chip = document.createElement("button"), isPlaced = named().includes(place);
    Object.assign(chip, { type: "button", className: "chip", draggable: true, textContent: place + 1 });
    chip.dataset.place = place;
    chip.setAttribute("aria-label", isPlaced ? `Take answer ${place + 1} out of the ranking` : `Answer ${place + 1} is next best`);
    chip.addEventListener("click", () => { if (isPlaced) { take(place); show(); } else put(place); });
    return chip;
  }
  function makeGap(index) {
    const gap = Object.assign(document.createElement("li"), { className: "gap", ariaHidden: "true" });
    return Object.assign(gap.dataset, { gap: index }) && gap;
  }
  // What a key did, for who cannot see it.
  function announce() {
    const told = draft.levels.map((level) => level.map((place) => place + 1).join(" = ")).join(", then ") || "nothing";
    find("#said").textContent = `Ranked: ${told}${tie ? "; the next ties" : ""}${draft.grade ? `; grade ${draft.grade}` : ""}`;
  }
  function show() {
    const rows = [], focused = document.activeElement?.matches(".chip") ? document.activeElement.dataset.place : null;
    const rankOf = (index) => 1 + draft.levels.slice(0, index).flat().length;
    draft.levels.forEach((level, index) => {
      const row = document.createElement("li");
      row.dataset.level = index;
      row.append(`${rankOf(index)}.`, ...level.map(makeChip), level.length > 1 ? "tie" : "");
      rows.push(makeGap(index), row);
    });
    find("#levels").replaceChildren(...rows, makeGap(draft.levels.length));
    const rest = order.map((_, place) => place).filter((place) => !named().includes(place));
    find("#rest").replaceChildren(...rest.map(makeChip));
    find("#rest-name").textContent = rest.length ? (draft.levels.length && mayBePartial ? "The rest is worse:" : "Not ranked yet:") : "All are ranked.";
    all(".answer").forEach((card) => {
      const index = draft.levels.findIndex((level) => level.includes(Number(card.dataset.place)));
      card.classList.toggle("placed", index >= 0);
      card.querySelector(".rank-now").textContent = index < 0 ? "" : `rank ${rankOf(index)}`;
      card.querySelector(".put").disabled = index >= 0;
    });
    announce();
    find("#send").disabled = !isWhole();
    find("#tie").setAttribute("aria-pressed", String(tie));
    find("#tie").disabled = find("#back").disabled = !draft.levels.length;
    if (focused !== null) find(`.chip[data-place="${focused}"]`).focus();
    keep();
  }

  function seconds() { return draft.seconds + (since === null ? 0 : (performance.now() - since) / 1000); }
  async function send(outcome, event) {
    if (isSlip(event) || (outcome === "ranked" && !isWhole())) return;
    sending = true;
    try {
      const said = { ...draft, outcome, order, item: main.dataset.item };
      const { written } = await post("/judge", { ...said, repeat: main.dataset.repeat === "1", seconds: Math.min(seconds(), 1e6) });
      const stands = "You had judged the last set already, in another tab or before the connection broke: that stands. Undo brings it back.";
      if (!written) sessionStorage.setItem("told", stands);
      localStorage.removeItem(key);
      location.reload();
    } catch (error) { sending = false; tell(error); }
  }
  function skip(event) {
    if (draft.reason.trim()) send("skipped", event);
    else { find("#reason").focus(); find("#problem").textContent = "Say why, then skip."; }
  }

  document.addEventListener("visibilitychange", () => {
    draft.seconds = seconds();
    since = document.hidden ? null : performance.now();
    if (!sending) keep();
  });
  addEventListener("pagehide", () => { if (!sending) { draft.seconds = seconds(); since = performance.now(); keep(); } });
  all(".put").forEach((button) => button.addEventListener("click", (event) => { if (event.detail) button.blur(); put(Number(button.dataset.place)); }));
  find("#tie").addEventListener("click", () => { tie = !tie; show(); });
  find("#back").addEventListener("click", back);
  [["#send", "ranked"], ["#cannot", "cannot say"]].forEach(([at, outcome]) => find(at).addEventListener("click", (event) => send(outcome, event)));
  find("#skip").addEventListener("click", skip);
  find("#reason").addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.isComposing && !event.repeat) skip(); });
  all("#note, #reason").forEach((field) => {
    field.value = draft[field.id];
    field.addEventListener("input", () => { draft[field.id] = field.value; keep(); });
  });
  radios.forEach((radio) => {
    radio.checked = draft.grade === Number(radio.value);
    radio.addEventListener("click", () => { // again takes it away
      radio.checked = draft.grade !== Number(radio.value);
      draft.grade = radio.checked ? Number(radio.value) : null;
      announce();
      keep();
    });
  });
  selects.forEach((select) => {
    select.value = grades[select.dataset.place] || "";
    select.addEventListener("change", () => { grades[select.dataset.place] = Number(select.value) || null; keep(); });
  });
  flags.forEach((box) => {
    const place = Number(box.dataset.place);
    box.checked = (draft.flags[box.value] || []).includes(place);
    box.addEventListener("change", () => {
      const others = (draft.flags[box.value] || []).filter((each) => each !== place);
      draft.flags[box.value] = box.checked ? [...others, place] : others;
      keep();
    });
  });
  all(".answer .text").forEach((text) => {
    const button = text.parentElement.querySelector(".unfold");
    if (text.scrollHeight <= text.clientHeight + 8) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      const open = text.classList.toggle("open");
      button.textContent = open ? "Fold" : "Show all";
      button.setAttribute("aria-expanded", String(open));
    });
  });

  document.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/plain", event.target.closest?.("[draggable]")?.dataset.place ?? "");
  });
  const targetOf = (event) => event.target.closest?.("#levels li, .rest");
  document.addEventListener("dragover", (event) => {
    all(".over").forEach((each) => each.classList.remove("over"));
    const target = targetOf(event);
    if (target) { event.preventDefault(); target.classList.add("over"); }
  });
  document.addEventListener("drop", (event) => {
    const target = targetOf(event), place = Number(event.dataTransfer.getData("text/plain") || NaN);
    if (target && place in order) { event.preventDefault(); drop(place, target); }
  });

  document.addEventListener("keydown", (event) => {
    // A key that is held down would judge the next sets too, unread.
    if (event.ctrlKey || event.metaKey || event.altKey || (event.repeat && event.key !== "Backspace")) return;
    const field = event.target.closest("input:not([type=radio]):not([type=checkbox]), textarea, select");
    if (field) { if (event.key === "Escape") field.blur(); return; }
    if (event.key === "Enter" && event.target.closest("button, summary, a")) return;
    const pressed = keyOfEvent(event), digit = /^[1-9]$/.test(pressed) ? Number(pressed) : null;
    const graded = awaits.startsWith("g") && selects[awaits.slice(1) - 1];
    if (digit !== null && graded) { if (digit <= 7) { graded.value = digit; graded.dispatchEvent(new Event("change")); } }
    else if (digit !== null && awaits === "g") radios[digit - 1]?.click();
    else if (digit !== null && awaits === "f") find(`[name=flag][data-place="${digit - 1}"]`)?.focus();
    else if (digit !== null && awaits !== "g") put(digit - 1);
    const acts = { "=": () => { tie = !tie; show(); }, Backspace: back, Enter: () => send("ranked"), u: undo, c: () => send("cannot say"), s: skip };
    if (digit === null && acts[pressed]) { event.preventDefault(); acts[pressed](); }
    awaits = "gf".includes(pressed) ? pressed : awaits === "g" && digit && selects.length ? `g${digit}` : "";
  });
  show();
})();
