"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const number = (value) => Math.round(value).toLocaleString("en-US");
  const percent = (value) => (100 * value).toFixed(value > 5e-7 && value < 0.001 ? 4 : 2) + " %";
  let across = "time", only = -1, cell = null;

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "click") made.addEventListener("click", value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }
  // A plan's own classes come after the usual ones and take up the colours from the start.
  const usual = ["no effect", "latent", "handled", "silent corruption", "detected", "other end", "hang",
    "triple fault", "VM-entry failure", "stopped by the VMM", "not applied", "error"];
  const colour = (n) => {
    const place = usual.indexOf(data.outcomes[n]);
    return `var(--o${place >= 0 ? place : 3 + (n % 7)})`;
  };
  const swatch = (n) => element("span", { class: "swatch", style: `background:${colour(n)}` });
  const command = (run) => `trapgate campaign show ${quoted(data.folder)} ${run}`;
  const quoted = (text) => /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

  function head() {
    document.title = data.title;
    find("title").textContent = data.title;
    find("summary").textContent = data.facts.slice(1, 4).map(([name, value]) => `${name}: ${value}`).join(" · ");
    for (const [name, value] of data.facts) {
      find("facts").append(element("dt", {}, name), element("dd", {}, value));
    }
    if (data.pruned) {
      find("classes").textContent = "A run that stands for a class of moments is shown at the last of them.";
    }
    find("again").textContent = command("N");
  }

  function outcomes() {
    const list = element("div", {});
    for (const [name, runs, points, share, low, high] of data.shares) {
      const n = data.outcomes.indexOf(name);
      const sure = high > low ? `, ${percent(low)} to ${percent(high)}` : "";
      list.append(element("button", { type: "button", class: "share", "data-outcome": name,
        "aria-pressed": String(only === n), title: data.meanings[n],
        click: () => { only = only === n ? -1 : n; draw(); } },
      element("span", {}, swatch(n), name),
      element("span", { class: "track" },
        element("i", { style: `width:${100 * share}%;background:${colour(n)}` }),
        element("b", { style: `left:${100 * low}%;width:${100 * (high - low)}%` })),
      element("span", { class: "number" }, `${percent(share)}${sure} (${number(runs)} runs)`)));
    }
    keepFocus("outcomes", list);
  }

  function grouped() {
    const cells = new Map();
    for (const [x, y, outcome, runs, points, examples] of data.heat[across]) {
      const key = `${x},${y}`;
      if (!cells.has(key)) cells.set(key, { x, y, points: 0, parts: [] });
      const one = cells.get(key);
      one.points += points;
      one.parts.push({ outcome, runs, points, examples });
    }
    return cells;
  }
  function paint(one) {
    if (only >= 0) {
      const part = one.parts.find((p) => p.outcome === only);
      const share = part ? part.points / one.points : 0;
      return `color-mix(in srgb, ${colour(only)} ${Math.round(100 * share)}%, transparent)`;
    }
    let at = 0;
    const stops = [...one.parts].sort((a, b) => b.outcome - a.outcome).map((part) => {
      const from = at;
      at += 100 * part.points / one.points;
      return `${colour(part.outcome)} ${from}% ${at}%`;
    });
    return `linear-gradient(to top, ${stops.join(", ")})`;
  }
  const column = (x) => across === "time"
    ? `instruction ${number(data.begin + x * data.step)} on` : data.labels.at[x];

  function heat() {
    const cells = grouped();
    const columns = across === "time" ? data.bins : data.labels.at.length;
    const table = element("table", { class: across === "time" ? "map" : "map wide" });
    if (across === "at") {
      const row = element("tr", {}, element("td", {}));
      for (let x = 0; x < columns; x++) row.append(element("th", { class: "top", scope: "col" }, data.labels.at[x]));
      table.append(element("thead", {}, row));
    }
    const body = element("tbody", {});
    data.labels.target.forEach((label, y) => {
      const row = element("tr", {}, element("th", { scope: "row" }, label));
      for (let x = 0; x < columns; x++) {
        const one = cells.get(`${x},${y}`);
        const place = element("td", {});
        if (one) {
          const said = one.parts.map((p) => `${data.outcomes[p.outcome]} ${percent(p.points / one.points)}`);
          const words = `${label}, ${column(x)}: ${said.join(", ")}`;
          place.append(element("button", { type: "button", title: words, "aria-label": words,
            "data-cell": `${x},${y}`, style: `background:${paint(one)}`,
            click: () => { cell = { label, words: column(x), one }; runs(); } }));
        }
        row.append(place);
      }
      body.append(row);
    });
    table.append(body);
    keepFocus("heat", table);
    find("shown").textContent = only >= 0 ? `share of: ${data.outcomes[only]}` : "all outcomes";
    const choice = ["time", "at"].map((name) => element("button", { type: "button", "data-across": name,
      "aria-pressed": String(across === name), click: () => { across = name; cell = null; draw(); } },
    name === "time" ? "over time" : "by function"));
    keepFocus("across", element("span", {}, ...choice));
  }

  function runs() {
    const place = find("runs");
    place.replaceChildren();
    if (!cell) return;
    place.append(element("h3", {}, `${cell.label}, ${cell.words}`));
    for (const part of cell.one.parts) {
      const list = element("ul", {});
      for (const run of part.examples) list.append(element("li", {}, element("code", {}, command(run))));
      const more = part.runs > part.examples.length ? `, of which ${part.examples.length} are` : "";
      place.append(element("p", {}, swatch(part.outcome), `${data.outcomes[part.outcome]}: ` +
        (part.runs ? `${number(part.runs)} runs${more}` : `${number(part.points)} points, known without a run`)), list);
    }
  }

  function tables() {
    for (const name of ["at", "target", "which"]) {
      const table = element("table", {}, element("thead", {}, element("tr", {},
        element("th", {}, { at: "function", target: "target", which: "bit" }[name]),
        element("th", {}, "harm"), element("th", {}, "interval"), element("th", {}, "runs"))));
      const body = element("tbody", {});
      for (const [label, count, , share, low, high] of data.vulnerable[name]) {
        body.append(element("tr", {}, element("td", {}, label), element("td", {}, percent(share)),
          element("td", {}, high > low ? `${percent(low)} to ${percent(high)}` : "exact"),
          element("td", {}, number(count))));
      }
      table.append(body);
      find("by-" + name).replaceChildren(table);
    }
  }

  // Redrawing must not take the keyboard's place away.
  function keepFocus(id, content) {
    const place = find(id), active = document.activeElement;
    const key = active && place.contains(active) ? JSON.stringify(active.dataset) : null;
    place.replaceChildren(content);
    if (key === null) return;
    for (const candidate of place.querySelectorAll("button")) {
      if (JSON.stringify(candidate.dataset) === key) { candidate.focus(); return; }
    }
  }

  function theme() {
    const button = find("theme"), root = document.documentElement;
    button.addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark"
        : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      button.setAttribute("aria-pressed", String(!dark));
    });
  }

  function draw() { outcomes(); heat(); runs(); }
  head();
  theme();
  tables();
  draw();
})();
