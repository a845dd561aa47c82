"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const cube = data.cube;
  const dimensions = ["reason", "vector", "code", "symbol", "disposition"];
  const titles = { reason: "Reason", vector: "Vector", code: "Error code",
    symbol: data.named ? "Symbol" : "Address", disposition: "Disposition" };
  const chosen = Object.fromEntries(dimensions.map((name) => [name, new Set()]));
  const SVG = "http://www.w3.org/2000/svg";
  const EXIT = 0, DELIVER = 1, COMPLETE = 2, UNJUDGED = 3, STAYS = 4;
  const goes = { [EXIT]: ["exit", "s-exit"], [DELIVER]: ["guest", "s-guest"], [STAYS]: ["as it was", ""] };
  const kindCount = cube.kinds.reason.length;
  let from = 0, to = cube.bins - 1;

  const find = (id) => document.getElementById(id);
  const number = (value) => Math.round(value).toLocaleString("en-US");
  const millions = (value, digits) => (value / 1e6).toLocaleString("en-US",
    { maximumFractionDigits: digits });

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    return fill(made, attributes, children);
  }
  function drawn(tag, attributes, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }
  function fill(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "click") made.addEventListener("click", value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  function moment(bin) {
    const time = cube.start + bin * cube.step;
    return cube.unit === "ns" ? (time / 1e9).toFixed(6) + " s" : number(time) + " " + cube.unit;
  }

  // Which kinds pass the filters; `except` leaves one dimension out, for its own chart.
  function passing(except) {
    const asked = dimensions.filter((name) => name !== except && chosen[name].size);
    const pass = new Uint8Array(kindCount).fill(1);
    for (const name of asked) {
      const kinds = cube.kinds[name];
      for (let k = 0; k < kindCount; k++) if (!chosen[name].has(kinds[k])) pass[k] = 0;
    }
    return pass;
  }
  // Events, timed events and time of each kind within the span of time.
  function perKind() {
    const sums = { count: new Float64Array(kindCount), timed: new Float64Array(kindCount),
      spent: new Float64Array(kindCount) };
    const { bin, kind, count, timed, spent } = cube.cells;
    for (let c = 0; c < bin.length; c++) {
      if (bin[c] < from || bin[c] > to) continue;
      sums.count[kind[c]] += count[c];
      sums.timed[kind[c]] += timed[c];
      sums.spent[kind[c]] += spent[c];
    }
    return sums;
  }

  function toggle(name, value) {
    if (!chosen[name].delete(value)) chosen[name].add(value);
    update();
  }

  function bars(name, sums) {
    const words = cube.labels[name], pass = passing(name);
    const total = new Float64Array(words.length);
    const spent = new Float64Array(words.length);
    for (let k = 0; k < kindCount; k++) {
      if (pass[k]) {
        total[cube.kinds[name][k]] += sums.count[k];
        spent[cube.kinds[name][k]] += sums.spent[k];
      }
    }
    // What has no code, or is no fault, would dwarf the rest: it is told below.
    const beside = (n) => (name === "code" && words[n] === "(none)")
      || (name === "vector" && words[n] === "-")
      || (name === "symbol" && ["(none)", "(other)"].includes(words[n]));
    const order = [...words.keys()].filter((n) => (total[n] || chosen[name].has(n)) && !beside(n));
    order.sort((a, b) => total[b] - total[a] || a - b);
    const most = Math.max(1, ...order.map((n) => total[n]));
    const list = element("ul", { class: "bars" });
    for (const n of order) {
      const bar = element("i", { style: `width:${100 * total[n] / most}%` });
      const time = spent[n] && cube.unit === "ns" ? `, ${millions(spent[n], 1)} ms` : "";
      const button = element("button", { type: "button", "aria-pressed": String(chosen[name].has(n)),
        "data-dimension": name, "data-value": words[n], click: () => toggle(name, n) },
        bar, described(name, words[n]), element("span", {}, number(total[n]) + time));
      list.append(element("li", {}, button));
    }
    const rest = [...words.keys()].filter((n) => beside(n) && total[n]);
    const told = rest.map((n) => element("p", { class: "note" },
      `${number(total[n])} events ` + reasonBeside(name, words[n])));
    const none = element("p", { class: "note" }, "nothing left");
    replace("by-" + name, element("div", {}, order.length ? list : none, ...told));
  }

  function reasonBeside(name, word) {
    if (name === "code") return "have no error code";
    if (name === "vector") return "are no faults: they have no vector";
    const where = titles.symbol.toLowerCase();
    return word === "(none)" ? `have no ${where}` : `are elsewhere: this is the top by ${where}`;
  }

  // A word, and what a code means under it.
  function described(name, word) {
    const meaning = name === "code" ? data.words[word] : "";
    return element("span", {}, word, ...(meaning
      ? [element("span", { class: "words" }, meaning)] : []));
  }

  // Redrawing must not take the keyboard's place away.
  function replace(id, content) {
    const place = find(id), active = document.activeElement;
    const back = active && place.contains(active) ? active.dataset : null;
    const key = back && [back.dimension, back.value, back.other];
    place.replaceChildren(content);
    if (!key) return;
    for (const candidate of place.querySelectorAll("button")) {
      const own = candidate.dataset;
      if (own.dimension === key[0] && own.value === key[1] && own.other === key[2]) {
        candidate.focus();
        return;
      }
    }
  }

  function timeline() {
    const words = cube.labels.disposition, pass = passing(null);
    const stacks = words.map(() => new Float64Array(cube.bins));
    const { bin, kind, count } = cube.cells;
    for (let c = 0; c < bin.length; c++) {
      if (pass[kind[c]] && bin[c] >= from && bin[c] <= to) {
        stacks[cube.kinds.disposition[kind[c]]][bin[c]] += count[c];
      }
    }
    const sums = Array.from({ length: cube.bins }, (_, b) => stacks.reduce((s, x) => s + x[b], 0));
    const most = Math.max(1, ...sums), height = 180, left = 70, bottom = 22;
    const width = Math.max(300, Math.min(1300, find("timeline").clientWidth || 960));
    const slot = (width - left) / cube.bins;
    const chart = drawn("svg", { viewBox: `0 0 ${width} ${height + bottom}`, role: "img",
      "aria-label": "Events over time, stacked by disposition" });
    for (let b = 0; b < cube.bins; b++) {
      let base = height;
      words.forEach((word, n) => {
        const tall = stacks[n][b] / most * (height - 12);
        if (!tall) return;
        base -= tall;
        chart.append(drawn("rect", { class: word, x: left + b * slot, y: base,
          width: Math.max(slot - 1, .5), height: tall },
          drawn("title", {}, `${moment(b)}: ${number(stacks[n][b])} ${word}`)));
      });
    }
    chart.append(drawn("text", { x: left - 6, y: 16, "text-anchor": "end" }, number(most)),
      drawn("text", { x: left - 6, y: height, "text-anchor": "end" }, "0"),
      drawn("text", { x: left, y: height + 16 }, moment(0)),
      drawn("text", { x: width, y: height + 16, "text-anchor": "end" }, moment(cube.bins)));
    const legend = element("p", { class: "legend" });
    words.forEach((word) => legend.append(element("span", {},
      drawn("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" },
        drawn("rect", { class: word, width: 10, height: 10 })), " " + word)));
    replace("timeline", element("div", {}, chart, legend));
  }

  function heat(sums) {
    const pass = passing(null), grid = new Map(), perCode = new Map(), perSymbol = new Map();
    for (let k = 0; k < kindCount; k++) {
      if (!pass[k] || !sums.count[k]) continue;
      const code = cube.kinds.code[k], symbol = cube.kinds.symbol[k];
      if (cube.labels.code[code] === "(none)") continue;
      if (["(none)", "(other)"].includes(cube.labels.symbol[symbol])) continue;
      const add = (map, key) => map.set(key, (map.get(key) || 0) + sums.count[k]);
      add(grid, code + " " + symbol); add(perCode, code); add(perSymbol, symbol);
    }
    const top = (map, most) => [...map].sort((a, b) => b[1] - a[1] || a[0] - b[0])
      .slice(0, most).map((pair) => pair[0]);
    const codes = top(perCode, 24), symbols = top(perSymbol, 32);
    find("heat-section").hidden = !cube.labels.code.some((label) => label !== "(none)");
    if (!codes.length) {
      replace("heat", element("p", { class: "note" }, "no event with an error code is left"));
      return;
    }
    const most = Math.max(...grid.values());
    const head = element("tr", {}, element("th", { scope: "col" }, titles.symbol));
    codes.forEach((c) => head.append(element("th", { scope: "col", class: "code",
      title: data.words[cube.labels.code[c]] || "" }, cube.labels.code[c])));
    const table = element("table", { class: "heat" }, element("thead", {}, head));
    const body = element("tbody", {});
    for (const s of symbols) {
      const row = element("tr", {}, element("th", { scope: "row" }, cube.labels.symbol[s]));
      for (const c of codes) {
        const value = grid.get(c + " " + s) || 0;
        const cell = element("td", {});
        if (value) {
          const strength = .1 + .65 * Math.log1p(value) / Math.log1p(most);
          cell.style.backgroundColor = `rgba(var(--heat), ${strength.toFixed(2)})`;
          cell.append(element("button", { type: "button", "data-dimension": "heat",
            "data-value": cube.labels.code[c], "data-other": cube.labels.symbol[s],
            "aria-label": `${cube.labels.code[c]} in ${cube.labels.symbol[s]}: ${number(value)}`,
            click: () => both(c, s) }, short(value)));
        }
        row.append(cell);
      }
      body.append(row);
    }
    table.append(body);
    replace("heat", table);
  }
  function both(code, symbol) {
    const on = chosen.code.size === 1 && chosen.code.has(code) && chosen.symbol.size === 1
      && chosen.symbol.has(symbol);
    chosen.code = new Set(on ? [] : [code]);
    chosen.symbol = new Set(on ? [] : [symbol]);
    update();
  }
  function short(value) {
    if (value >= 1e6) return (value / 1e6).toFixed(1) + "M";
    return value >= 1e4 ? (value / 1e3).toFixed(0) + "k" : String(value);
  }

  function showChains() {
    find("chains-section").hidden = !data.chains.length;
    const vectors = new Set([...chosen.vector].map((n) => cube.labels.vector[n]));
    const wanted = data.chains.filter((chain) => !vectors.size
      || chain.steps.some((step) => vectors.has(step.vector)));
    const list = element("div", {});
    for (const chain of wanted) {
      const row = element("div", { class: "chain" }, element("b", {}, number(chain.count) + " ×"));
      chain.steps.forEach((step, n) => {
        if (n) row.append("→");
        const label = `${step.vector} ${step.code}`.trim();
        row.append(element("span", { class: "step s-" + step.disposition },
          `${label} ${step.disposition}`, element("span", { class: "words" },
            data.words[label] || "")));
      });
      list.append(row);
    }
    if (!wanted.length) list.append(element("p", { class: "note" }, data.chains.length
      ? "no chain has these vectors" : "no fault was nested in another"));
    replace("chains", list);
  }

  function policies(sums) {
    if (!data.policies.length) { find("policies-section").hidden = true; return; }
    const pass = passing(null);
    const names = ["policy", "exits", "delivered", "completed", "unjudged", "saved", "added", ""];
    const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
    const exits = cube.labels.disposition.indexOf("exit");
    let recorded = 0;
    for (let k = 0; k < kindCount; k++) {
      if (pass[k] && cube.kinds.disposition[k] === exits) recorded += sums.count[k];
    }
    const rows = [["recorded", recorded]];
    data.policies.forEach((policy, p) => {
      const found = [0, 0, 0, 0, 0];
      let saved = 0, added = 0, stays = 0;
      for (let k = 0; k < kindCount; k++) {
        if (!pass[k]) continue;
        const says = cube.verdicts[p][k], was = cube.kinds.disposition[k] === exits;
        found[says] += sums.count[k];
        if (says === STAYS && was) stays += sums.count[k];
        if (was && (says === DELIVER || says === COMPLETE)) saved += sums.count[k];
        if (!was && says === EXIT) added += sums.count[k];
      }
      rows.push([policy.policy, found[EXIT] + stays, found[DELIVER], found[COMPLETE],
        found[UNJUDGED], saved, added]);
    });
    const most = Math.max(1, ...rows.map((row) => row[1]));
    const body = element("tbody", {});
    for (const row of rows) {
      const bar = drawn("svg", { viewBox: "0 0 200 14", style: "width:200px", "aria-hidden": "true" },
        drawn("rect", { class: "exit", width: 200 * row[1] / most, height: 14 }));
      body.append(element("tr", {}, element("td", {}, row[0]),
        ...names.slice(1, -1).map((_, n) => element("td", {},
          row[n + 1] === undefined ? "" : number(row[n + 1]))), element("td", {}, bar)));
    }
    replace("policies", element("table", { class: "policies" }, element("thead", {}, head), body));
    const notes = data.policies.map((policy) => {
      const time = policy.time, scale = (value) => millions(value, 3);
      const unit = time.unit === "ns" ? "ms" : "million " + time.unit;
      return element("span", {}, `${policy.policy}: ${policy.summary}. Whole trace: saves `
        + `${scale(time.estimate)} ${unit} (${scale(time.low)} to ${scale(time.high)}), by `
        + (time.basis === "latencies" ? "the trace's own latencies." : `the ${time.basis}.`)
        + (policy.unjudged_exits ? ` Between ${number(policy.saved_range[0])} and `
          + `${number(policy.saved_range[1])} exits are saved: the trace lacks what some hang on.`
          : ""), element("br"));
    });
    find("basis").replaceChildren(...notes);
    find("reasons").replaceChildren(...data.policies.filter((policy) => policy.reasons.length)
      .map(reasons));
  }

  // What a policy does to exits that are no exceptions, over the whole trace.
  function reasons(policy) {
    const heads = ["reason", "control", "exits", "saved", "lost", "unjudged"];
    const head = element("tr", {}, ...heads.map((name, n) =>
      element("th", { scope: "col", ...(n < 2 ? { class: "left" } : {}) }, name)));
    const body = element("tbody", {}, ...policy.reasons.map((one) => {
      const lost = number(one.lost)
        + (one.lost_untold ? ` to ${number(one.lost + one.lost_untold)}` : "");
      return element("tr", {}, element("td", {}, one.reason),
        element("td", { class: "left" }, one.control), ...[number(one.recorded),
          number(one.saved), lost, number(one.unjudged)].map((text) => element("td", {}, text)));
    }));
    const told = new Map();
    for (const one of policy.reasons) {
      if (one.saved) told.set(one.control, `Without ${one.control} goes: ${one.lost_words}.`);
      if (one.unknown) {
        told.set(one.control + "?", `${one.control}: the trace does not tell ${one.unknown}.`);
      }
    }
    return element("div", {}, element("table", {}, element("caption", {},
      `${policy.policy}: exits by reason, whole trace; lost is what the VMM did there and `
      + "nobody does any more"), element("thead", {}, head), body),
      ...[...told.values()].map((text) => element("p", { class: "note" }, text)));
  }

  function truth(sums) {
    if (!data.truth) { find("truth-section").hidden = true; return; }
    const pass = passing(null), seen = new Map();
    for (let k = 0; k < kindCount; k++) {
      if (!pass[k]) continue;
      const vector = cube.labels.vector[cube.kinds.vector[k]];
      const code = vector === "#PF" ? cube.labels.code[cube.kinds.code[k]] : vector;
      seen.set(code, (seen.get(code) || 0) + sums.count[k]);
    }
    const head = element("tr", {}, ...["fault (ID RSVD U W P)", "meaning", "events"].map((name) =>
      element("th", { scope: "col", ...(name === "meaning" ? { class: "left" } : {}) }, name)));
    data.policies.forEach((policy) => head.append(element("th", { scope: "col" }, policy.policy)));
    const body = element("tbody", {});
    for (const row of data.truth.rows) {
      const count = row.events.reduce((sum, label) => sum + (seen.get(label) || 0), 0);
      body.append(element("tr", {}, element("td", {}, row.label), element("td", { class: "left" },
        row.words), element("td", {}, count ? number(count) : ""), ...row.said.map((said) =>
        element("td", { class: goes[said][1] }, goes[said][0]))));
    }
    const grids = data.policies.flatMap((policy, p) =>
      data.truth.grid.said.every((said) => said[p] === STAYS) ? []
        : [karnaugh(policy.policy, p, seen)]);
    replace("truth", element("div", {},
      element("table", {}, element("thead", {}, head), body),
      element("p", { class: "note" }, "A dash is a bit that does not matter. Below every code of a "
        + "page fault, neighbours differing in one bit; with the number of events."),
      element("div", { class: "karnaughs" }, ...grids)));
  }
  function karnaugh(name, p, seen) {
    const { columns, rows, codes, words, said } = data.truth.grid;
    const head = element("tr", {}, element("td", {}), ...columns.map((column) =>
      element("th", { scope: "col" }, column)));
    const body = element("tbody", {});
    rows.forEach((row, r) => body.append(element("tr", {}, element("th", { scope: "row" }, row),
      ...codes[r].map((code) => {
        const [word, style] = goes[said[code][p]], label = "#PF 0x" + code.toString(16);
        const count = seen.get(label) || 0;
        return element("td", { class: style, title: `${label}: ${words[code]}` }, word,
          element("span", { class: "words" }, count ? short(count) : "\u00a0"));
      }))));
    return element("table", { class: "karnaugh" }, element("caption", {}, name),
      element("thead", {}, head), body);
  }

  function boxes() {
    for (const name of dimensions) {
      const set = element("fieldset", {}, element("legend", { class: "note" }, "none is all"));
      cube.labels[name].forEach((word, n) => {
        const box = element("input", { type: "checkbox", "data-dimension": name, "data-value": word });
        box.addEventListener("change", () => toggle(name, n));
        set.append(element("label", {}, box, " " + word));
      });
      find("boxes").append(element("details", {}, element("summary", { "data-dimension": name },
        titles[name]), set));
    }
  }

  function update() {
    for (const box of document.querySelectorAll("#boxes input")) {
      const name = box.dataset.dimension;
      box.checked = chosen[name].has(cube.labels[name].indexOf(box.dataset.value));
    }
    for (const summary of document.querySelectorAll("#boxes summary")) {
      const name = summary.dataset.dimension;
      summary.textContent = titles[name] + (chosen[name].size ? ` (${chosen[name].size})` : "");
    }
    const sums = perKind(), pass = passing(null);
    let left = 0, exits = 0;
    const word = cube.labels.disposition.indexOf("exit");
    for (let k = 0; k < kindCount; k++) {
      if (!pass[k]) continue;
      left += sums.count[k];
      if (cube.kinds.disposition[k] === word) exits += sums.count[k];
    }
    find("count").textContent = `${number(left)} of ${number(cube.events)} events, `
      + `${number(exits)} exits`;
    find("count").dataset.events = left;
    find("count").dataset.exits = exits;
    find("span").textContent = `${moment(from)} to ${moment(to + 1)}`;
    timeline();
    for (const name of ["reason", "vector", "code", "symbol"]) bars(name, sums);
    heat(sums);
    showChains();
    policies(sums);
    truth(sums);
  }

  function start() {
    document.title = find("title").textContent = data.title;
    find("summary").textContent = `${number(cube.events)} events, times in ${cube.unit}`
      + (data.lost ? `; the recorder lost ${number(data.lost)} events, which are in no count` : "");
    find("symbol-title").textContent = `By ${titles.symbol.toLowerCase()}`;
    find("heat-title").textContent = `Error code and ${titles.symbol.toLowerCase()}`;
    for (const [key, value] of data.facts) {
      find("facts").append(element("dt", {}, key), element("dd", {}, value));
    }
    for (const id of ["from", "to"]) find(id).max = cube.bins - 1;
    find("from").value = from;
    find("to").value = to;
    find("from").addEventListener("input", (event) => {
      from = Number(event.target.value);
      if (from > to) find("to").value = to = from;
      update();
    });
    find("to").addEventListener("input", (event) => {
      to = Number(event.target.value);
      if (to < from) find("from").value = from = to;
      update();
    });
    find("reset").addEventListener("click", () => {
      for (const name of dimensions) chosen[name].clear();
      find("from").value = from = 0;
      find("to").value = to = cube.bins - 1;
      update();
    });
    const dark = () => document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    find("theme").setAttribute("aria-pressed", String(dark()));
    find("theme").addEventListener("click", () => {
      document.documentElement.dataset.theme = dark() ? "light" : "dark";
      find("theme").setAttribute("aria-pressed", String(dark()));
    });
    boxes();
    update();
    addEventListener("resize", timeline);
  }
  start();
})();
