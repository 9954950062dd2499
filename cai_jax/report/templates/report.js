"use strict";
// The record browser. Every text reaches the page through textContent: nothing that a model wrote is parsed as markup.
(function () {
  const PAGE = 20;
  const source = document.getElementById("records-data");
  const list = document.getElementById("cards");
  if (!source || !list) return;

  function el(tag, css, text) {
    const node = document.createElement(tag);
    if (css) node.className = css;
    if (text !== undefined && text !== null) node.textContent = text;
    return node;
  }
  function add(parent, ...children) {
    for (const child of children) if (child) parent.appendChild(child);
    return parent;
  }
  function num(value, sign) {
    if (value === null || value === undefined) return "–";
    const shown = Math.abs(value).toFixed(2);
    if (Number(shown) === 0) return "0.00";
    return (value < 0 ? "−" : sign ? "+" : "") + shown;
  }
  // The same expression as diff.py: a word with the white space before it.
  const TOKEN = /[ \t\n]*[^ \t\n]+|[ \t\n]+$/g;
  const tokens = (text) => text.match(TOKEN) || [];

  function changed(before, after, ops) {
    const said = el("p", "said"), a = tokens(before), b = tokens(after);
    let i = 0, j = 0;
    for (let k = 0; k < ops.length; k += 3) {
      const [kept, cut, added] = ops.slice(k, k + 3);
      if (kept) said.appendChild(document.createTextNode(b.slice(j, j + kept).join("")));
      i += kept; j += kept;
      if (cut) said.appendChild(el("del", "", a.slice(i, i + cut).join("")));
      if (added) said.appendChild(el("ins", "", b.slice(j, j + added).join("")));
      i += cut; j += added;
    }
    return said;
  }
  function turn(kind, who, text, extra) {
    const head = add(el("div", "who"), el("b", "", who));
    for (const item of extra || []) if (item) head.appendChild(typeof item === "string" ? el("span", "num", item) : item);
    const said = text instanceof Node ? text : text ? el("p", "said", text) : el("p", "said none", "(empty)");
    return add(el("div", "turn " + kind), head, said);
  }
  const score = (value) => (value === null || value === undefined ? null : "PM " + num(value));

  function principle(data, name) {
    const text = data.principles[name];
    if (!text) return el("p", "why", "Principle: " + name);
    return add(el("details", "why"), el("summary", "", "Principle: " + name), el("div", "", text));
  }
  // One answer after another: its words with what changed since `before`, and how the score moved.
  function rewritten(who, before, after, ops, was, now) {
    const moved = now !== null && was !== null ? num(now - was, true) : null;
    const same = after === before, kept = ops.some((count, k) => k % 3 === 0 && count > 0);
    return turn("assistant", who, kept && !same ? changed(before, after, ops) : after,
      [score(now), moved ? "(" + moved + ")" : null, same ? "unchanged" : kept ? null : "written anew"]);
  }
  // What one prompt's answers became: initial, revised, and those of the models trained on that, side by side.
  function journey(card) {
    const found = (card.rev || [])[0], end = found && found.r[found.r.length - 1];
    if (!end) return null;
    const mine = (list) => (list || []).filter((one) => one.g === found.g);
    const side = add(el("div", "side"), turn("assistant", "Initial response", found.i, [score(found.s)]),
      rewritten(found.r.length > 1 ? "Revision " + found.r.length : "Revision", found.i, end.v, found.w, found.s, end.s));
    const said = mine(card.ans).filter((one) => one.t > 0 && !one.e), drawn = mine(card.cmp)[0], rolls = mine(card.roll);
    for (const one of said) add(side, turn("assistant", one.m, one.r, [score(one.s)]));
    const has = (name) => said.some((one) => one.m === name);
    if (drawn && drawn.b && drawn.a.length && !has(drawn.b)) add(side, turn("assistant", drawn.b, drawn.a[0], ["one of its answers"]));
    const last = rolls.filter((one) => one.m === (rolls[0] || {}).m).pop();
    if (last && !has(last.m)) add(side, turn("assistant", last.m, last.r, [score(last.s), last.u === null ? null : "update " + last.u]));
    return side.children.length > 2 ? side : null;
  }
  function revision(data, found) {
    const box = add(el("div"), turn("assistant", "Initial response", found.i, [score(found.s)]));
    let before = found.i, last = found.s;
    found.r.forEach(function (round, number) {
      const after = rewritten("Revision " + (number + 1), before, round.v, round.o, last, round.s);
      add(box, principle(data, round.n));
      add(box, round.c === null ? after : add(el("div", "side"), turn("critique", "Critique " + (number + 1), round.c), after));
      before = round.v; last = round.s;
    });
    return box;
  }
  function answers(data, found) {
    const side = el("div", "side");
    for (const one of found) {
      const name = (data.runs.length > 1 ? data.runs[one.g] + " · " : "") + one.m;
      const kinds = { evasive: "evasive refusal", engaged: "engaged refusal", empty: "empty" };
      add(side, turn("assistant", name, one.r, [score(one.s), one.w === null ? null : one.w + " tokens",
        one.z ? "cut at the limit" : null, kinds[one.f] || null]));
    }
    return side;
  }
  function comparison(data, found) {
    const box = el("div"), side = el("div", "side");
    found.a.forEach((text, i) => add(side, turn("assistant", "Response " + (i + 1), text)));
    add(box, side);
    for (const label of found.l) {
      const line = el("div", "who"), pair = label.pair.map((i) => i + 1);
      add(line, el("b", "", label.g));
      if (label.p !== null) {
        const bar = el("span", "choice"), fill = el("i");
        fill.style.width = Math.round(100 * label.p) + "%";
        bar.setAttribute("role", "img");
        bar.setAttribute("aria-label", "p of response " + pair[0] + " is " + num(label.p));
        add(bar, fill);
        add(line, el("span", "num", "response " + pair[0] + " better: p = " + num(label.p)), bar);
        if (label.ab !== undefined && label.ba !== undefined) {
          add(line, el("span", "num", "as (A) " + num(label.ab) + ", as (B) " + num(label.ba)));
          if (label.ab > 0.5 !== label.ba > 0.5) add(line, el("span", "down", "flipped with the order"));
        }
      }
      add(box, line);
      if (label.n) add(box, principle(data, label.n));
      for (const chain of label.ch) add(box, turn("critique", "Chain of thought", chain));
    }
    return box;
  }
  function rollouts(found) {
    const side = el("div", "side");
    const several = new Set(found.map((one) => one.m)).size > 1;
    for (const one of found) add(side, turn("assistant", (several ? one.m : "Rollout") + (one.u === null ? "" : ", update " + one.u), one.r,
      [one.s === null ? null : "reward " + num(one.s), one.kl === null ? null : "KL " + num(one.kl)]));
    return side;
  }
  function body(data, card) {
    const box = el("div", "body");
    const who = { human: "Human", assistant: "Assistant", system: "System" };
    for (const [role, text] of card.d) add(box, turn(role === "human" ? "human" : "assistant", who[role] || role, text));
    const way = journey(card);
    if (way) add(box, el("h4", "", "From the first answer on"), way);
    for (const found of card.rev || []) add(box, el("h4", "", "Critique and revision" + (card.rev.length > 1 ? ", " + found.m : "")), revision(data, found));
    if (card.res) add(box, el("h4", "", "Responses"), answers(data, card.res));
    for (const stage of [...new Set((card.ans || []).map((one) => one.e))].sort()) {
      add(box, el("h4", "", "Answers of the models" + (stage ? ", " + stage : "")), answers(data, card.ans.filter((one) => one.e === stage)));
    }
    for (const found of card.cmp || []) add(box, el("h4", "", "Comparison and labels"), comparison(data, found));
    if (card.roll) add(box, el("h4", "", "RL rollouts"), rollouts(card.roll));
    return box;
  }
  function entry(data, card) {
    const item = el("details", "card"), top = el("summary");
    const asked = card.d.filter((turn) => turn[0] === "human").map((turn) => turn[1]);
    const q = el("span", "q", asked.length ? asked[asked.length - 1].slice(0, 300) : card.p);
    const delta = el("span", "delta " + (card.x > 0 ? "up" : card.x < 0 ? "down" : ""), card.x === null ? "" : num(card.x, true));
    if (card.x !== null) delta.setAttribute("aria-label", "score change " + num(card.x, true));
    add(top, q, el("span", "chip", card.k || ""), delta);
    add(item, top);
    item.addEventListener("toggle", function () {
      if (item.open && item.children.length === 1) add(item, body(data, card));
    });
    return item;
  }

  function start(data) {
    const state = { show: "", kind: "", principle: "", change: "", sort: "", text: "", page: 0 };
    const cards = data.cards;
    const used = (card) => [...(card.rev || []).flatMap((r) => r.r.map((x) => x.n)), ...(card.cmp || []).flatMap((c) => c.l.map((x) => x.n))];
    cards.forEach(function (card) { card.u = new Set(used(card)); });
    const fill = function (id, values) {
      const box = document.getElementById(id);
      for (const value of values) { const option = el("option", "", value); option.value = value; box.appendChild(option); }
    };
    fill("f-kind", [...new Set(cards.map((c) => c.k).filter(Boolean))].sort());
    fill("f-principle", [...new Set(cards.flatMap((c) => [...c.u]))].sort());

    function text(card) {
      if (card.q === undefined) card.q = JSON.stringify([card.p, card.d, card.rev, card.res, card.ans, card.cmp, card.roll]).toLowerCase();
      return card.q;
    }
    function fits(card) {
      if (state.show && !card[state.show]) return false;
      if (state.kind && card.k !== state.kind) return false;
      if (state.principle && !card.u.has(state.principle)) return false;
      if (state.change === "up" && !(card.x > 0)) return false;
      if (state.change === "down" && !(card.x < 0)) return false;
      if (state.change === "same" && card.x !== 0) return false;
      return !state.text || text(card).includes(state.text);
    }
    function draw() {
      let found = cards.filter(fits);
      if (state.sort) {
        const way = state.sort === "up" ? -1 : 1;
        found = found.filter((c) => c.x !== null).sort((a, b) => way * (a.x - b.x)).concat(found.filter((c) => c.x === null));
      }
      const pages = Math.max(1, Math.ceil(found.length / PAGE));
      state.page = Math.min(state.page, pages - 1);
      list.textContent = "";
      for (const card of found.slice(state.page * PAGE, (state.page + 1) * PAGE)) add(list, entry(data, card));
      document.getElementById("count").textContent = found.length + (found.length === 1 ? " prompt" : " prompts") +
        (found.length === cards.length ? "" : " of " + cards.length);
      document.getElementById("where").textContent = "Page " + (state.page + 1) + " of " + pages;
      document.getElementById("previous").disabled = state.page === 0;
      document.getElementById("next").disabled = state.page >= pages - 1;
    }
    for (const name of ["show", "kind", "principle", "change", "sort"]) {
      document.getElementById("f-" + name).addEventListener("change", function (event) {
        state[name] = event.target.value; state.page = 0; draw();
      });
    }
    let wait = 0;
    document.getElementById("f-text").addEventListener("input", function (event) {
      clearTimeout(wait);
      wait = setTimeout(function () { state.text = event.target.value.trim().toLowerCase(); state.page = 0; draw(); }, 120);
    });
    const go = (by) => function () { state.page += by; draw(); document.getElementById("transcripts").scrollIntoView(); };
    document.getElementById("previous").addEventListener("click", go(-1));
    document.getElementById("next").addEventListener("click", go(1));
    document.getElementById("browser").hidden = false;
    draw();
    if (list.firstElementChild) list.firstElementChild.open = true;
    window.addEventListener("beforeprint", function () { for (const item of list.children) item.open = true; });
  }

  async function load() {
    const text = source.textContent;
    if (source.dataset.encoding === "json") return JSON.parse(text);
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }
  load().then(start).catch(function (error) {
    list.textContent = "The records could not be shown (" + error + "). They stand in the run's records.jsonl files.";
  });
})();
