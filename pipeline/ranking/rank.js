// Ranks the answers of one set by keyboard, by clicks or by dragging, and sends what was said. What is not sent yet survives a reload.
"use strict";
(() => {
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const main = find("main[data-item]");

  async function post(path, body) {
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    if (!response.ok) throw new Error((await response.text()) || response.statusText);
    return response.json();
  }
  function tell(error) {
    const place = find("#problem");
    const text = error instanceof TypeError ? "The server does not answer. Your ranking is kept here; start `rlhf rank` again and reload." : error.message;
    if (place) place.textContent = text; else window.alert(text);
  }
  async function undo() {
    try { await post("/undo", {}); location.reload(); } catch (error) { tell(error); }
  }
  find("#undo").addEventListener("click", undo);
  if (!main) {
    document.addEventListener("keydown", (event) => { if (event.key === "u" && !event.ctrlKey && !event.metaKey) undo(); });
    return;
  }

  const order = main.dataset.order.split(",").map(Number);
  const key = `rank ${main.dataset.item} ${main.dataset.repeat}`;
  const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const kept = JSON.parse(sessionStorage.getItem(key) || "null");
  // levels: places as shown, best first; those in one level are ties.
  const draft = kept || { id: newId(), levels: [], flags: {}, grade: null, note: "", reason: "", seconds: 0 };
  let tie = false, grading = false, sending = false, since = document.hidden ? null : performance.now();

  const mayBePartial = main.dataset.partial === "1";
  const named = () => draft.levels.flat();
  const isWhole = () => named().length > 0 && (mayBePartial || named().length === order.length);
  function keep() { sessionStorage.setItem(key, JSON.stringify(draft)); }
  function take(place) {
    draft.levels = draft.levels.map((level) => level.filter((each) => each !== place)).filter((level) => level.length);
  }
  function put(place) {
    if (place >= order.length || named().includes(place)) return;
    if (tie && draft.levels.length) draft.levels.at(-1).push(place); else draft.levels.push([place]);
    tie = false;
    show();
  }
  function back() {
    if (!draft.levels.length) return;
    draft.levels.at(-1).pop();
    draft.levels = draft.levels.filter((level) => level.length);
    show();
  }
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
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.draggable = true;
    chip.textContent = place + 1;
    chip.dataset.place = place;
    const isPlaced = named().includes(place);
    chip.setAttribute("aria-label", isPlaced ? `Take answer ${place + 1} out of the ranking` : `Answer ${place + 1} is next best`);
    chip.addEventListener("click", () => { if (isPlaced) { take(place); show(); } else put(place); });
    return chip;
  }
  function makeGap(index) {
    const gap = document.createElement("li");
    gap.className = "gap";
    gap.dataset.gap = index;
    gap.setAttribute("aria-hidden", "true");
    return gap;
  }
  function show() {
    const rows = [];
    draft.levels.forEach((level, index) => {
      const row = document.createElement("li");
      row.dataset.level = index;
      row.append(`${1 + draft.levels.slice(0, index).flat().length}.`, ...level.map(makeChip), level.length > 1 ? "tie" : "");
      rows.push(makeGap(index), row);
    });
    find("#levels").replaceChildren(...rows, makeGap(draft.levels.length));
    const rest = order.map((_, place) => place).filter((place) => !named().includes(place));
    find("#rest").replaceChildren(...rest.map(makeChip));
    find("#rest-name").textContent = rest.length ? (draft.levels.length && mayBePartial ? "The rest is worse:" : "Not ranked yet:") : "All are ranked.";
    all(".answer").forEach((card) => card.classList.toggle("placed", named().includes(Number(card.dataset.place))));
    all(".put").forEach((button) => { button.disabled = named().includes(Number(button.dataset.place)); });
    find("#send").disabled = !isWhole();
    find("#tie").setAttribute("aria-pressed", String(tie));
    find("#tie").disabled = find("#back").disabled = !draft.levels.length;
    keep();
  }

  function seconds() { return draft.seconds + (since === null ? 0 : (performance.now() - since) / 1000); }
  async function send(outcome) {
    if (sending || (outcome === "ranked" && !isWhole())) return;
    sending = true;
    const { id, levels, flags, grade, note, reason } = draft;
    const said = { id, levels, flags, grade, note, reason, outcome, order, item: main.dataset.item };
    try {
      await post("/judge", { ...said, repeat: main.dataset.repeat === "1", seconds: Math.min(seconds(), 1e6) });
      sessionStorage.removeItem(key);
      location.reload();
    } catch (error) { sending = false; tell(error); }
  }

  function skip() {
    if (draft.reason.trim()) send("skipped");
    else { find("#reason").focus(); find("#problem").textContent = "Say why, then skip."; }
  }

  document.addEventListener("visibilitychange", () => {
    draft.seconds = seconds();
    since = document.hidden ? null : performance.now();
    keep();
  });
  addEventListener("pagehide", () => { if (!sending) { draft.seconds = seconds(); since = performance.now(); keep(); } });
  all(".put").forEach((button) => button.addEventListener("click", () => put(Number(button.dataset.place))));
  find("#tie").addEventListener("click", () => { tie = !tie; show(); });
  find("#back").addEventListener("click", back);
  find("#send").addEventListener("click", () => send("ranked"));
  find("#cannot").addEventListener("click", () => send("cannot say"));
  find("#skip").addEventListener("click", skip);
  all("#note, #reason").forEach((field) => {
    field.value = draft[field.id];
    field.addEventListener("input", () => { draft[field.id] = field.value; keep(); });
  });
  all("[name=grade]").forEach((radio) => {
    radio.checked = draft.grade === Number(radio.value);
    radio.addEventListener("change", () => { draft.grade = Number(radio.value); keep(); });
  });
  all("[name=flag]").forEach((box) => {
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
    const source = event.target.closest?.("[draggable]");
    if (source) event.dataTransfer.setData("text/plain", source.dataset.place);
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
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest("input:not([type=radio]):not([type=checkbox]), textarea");
    if (field) { if (event.key === "Escape") field.blur(); return; }
    if (event.key === "Enter" && event.target.closest("button, summary")) return;
    const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : null;
    if (digit !== null && grading) all("[name=grade]")[digit - 1]?.click();
    else if (digit !== null) put(digit - 1);
    const acts = { "=": () => { tie = !tie; show(); }, Backspace: back, Enter: () => send("ranked"), u: undo, c: () => send("cannot say"), s: skip };
    if (digit === null && acts[event.key]) { event.preventDefault(); acts[event.key](); }
    grading = event.key === "g";
  });
  show();
})();
