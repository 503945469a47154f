"use strict";

// The address hash is the state of the page: the round, the one beside it, the filters and the order. Texts of a run become
// text nodes and values of attributes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const NUMBERS = [
  ["Mean reward", "reward", number],
  ["Correct", "correct", percent],
  ["Kept", "kept", percent],
  ["All-equal groups", "equal", percent],
  ["Mean length in tokens", "tokens", number],
  ["Loss of the last update", "loss", number],
  ["Prompts", "prompts", String],
  ["Completions", "completions", String],
];
const BADGES = { correct: "✓ correct", wrong: "✗ wrong", ungradable: "? ungradable" };
const NOTHING = "–";
const ROUNDS_HELD = 4;

// Numbers and nodes

function number(value) {
  if (value === null || value === undefined) return NOTHING;
  const size = Math.abs(value);
  const text = size && (size < 0.001 || size >= 1e5) ? value.toExponential(1) : value.toFixed(3);
  return text.replaceAll("-", "−");
}

function percent(value) {
  return value === null ? NOTHING : (Math.round(1000 * value) / 10 || 0).toFixed(1) + "%";
}

function difference(here, there, write) {
  if (here === null || there === null) return NOTHING;
  const text = write(there - here).replace("-", "−").replace("%", " pp");
  return there > here ? "+" + text : text;
}

function make(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

// State

function state() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return { ...given, round: given.round || String(data.rounds.at(-1).round) };
}

function hashWith(changes) {
  const params = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of Object.entries(changes)) value === "" ? params.delete(key) : params.set(key, value);
  return "#" + params;
}

function indexOf(round) {
  return data.rounds.findIndex((numbers) => numbers.round === Number(round));
}

function openAt(index) {
  if (data.rounds[index]) location.hash = hashWith({ round: data.rounds[index].round });
}

// Rounds: `round-000012.js` calls fulguriteRound(12, groups)

const held = new Map();
const addresses = { createScriptURL: (round) => `round-${String(round).padStart(6, "0")}.js` };
const policy = window.trustedTypes ? trustedTypes.createPolicy("rounds", addresses) : addresses;

window.fulguriteRound = (round, groups) => {
  held.set(round, groups.map(withRewards));
  if (held.size > ROUNDS_HELD) held.delete(held.keys().next().value);
};

function withRewards(group) {
  const rewards = group.rows.map((row) => row.reward).filter((reward) => reward !== null);
  const mean = rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null;
  return { ...group, mean, spread: rewards.length ? Math.max(...rewards) - Math.min(...rewards) : null };
}

function load(round) {
  if (held.has(round)) return held.get(round);
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.onload = () => resolve(held.get(round));
    script.onerror = () => reject(new Error(`The file of round ${round} cannot be read; run fulgurite browse again.`));
    script.src = policy.createScriptURL(round);
    document.head.append(script);
    script.remove();
  });
}

// Filters: of a group the rows that match, none if the group does not

function matching(group, wanted) {
  if (wanted.spread && !(group.spread > 0)) return [];
  const text = (wanted.text ?? "").toLowerCase();
  const inPrompt = group.prompt.toLowerCase().includes(text);
  return group.rows.filter(
    (row) =>
      (!wanted.outcome || row.outcome === wanted.outcome) &&
      (!wanted.kept || row.kept === (wanted.kept === "kept")) &&
      (!wanted.finish || row.finish_reason === wanted.finish) &&
      (!wanted.least || (row.reward !== null && row.reward >= Number(wanted.least))) &&
      (!wanted.most || (row.reward !== null && row.reward <= Number(wanted.most))) &&
      (inPrompt || row.text.toLowerCase().includes(text)),
  );
}

function ordered(groups, sort) {
  const keys = { best: (group) => group.mean, worst: (group) => -group.mean, spread: (group) => group.spread };
  return sort in keys ? groups.toSorted((a, b) => keys[sort](b) - keys[sort](a)) : groups;
}

// The list of rounds and its chart

function drawList() {
  byId("name").textContent = document.title = data.name;
  byId("rounds").append(
    ...data.rounds.map((numbers, index) => {
      const link = make("a", { href: "#round=" + numbers.round }, String(numbers.round));
      link.addEventListener("click", (event) => {
        event.preventDefault();
        openAt(index);
        byId("title").scrollIntoView();
      });
      const cells = NUMBERS.slice(0, 6).map(([, key, write]) => make("td", {}, write(numbers[key])));
      return make("tr", {}, make("th", { scope: "row" }, link), ...cells);
    }),
  );
}

const LEFT = 36, RIGHT = 400, TOP = 10, BOTTOM = 126;

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function across(index) {
  return LEFT + (index / Math.max(1, data.rounds.length - 1)) * (RIGHT - LEFT);
}

function line(key, low, high) {
  const points = data.rounds.flatMap((numbers, index) => {
    if (numbers[key] === null) return [];
    const height = BOTTOM - ((numbers[key] - low) / (high - low)) * (BOTTOM - TOP);
    return `${across(index).toFixed(1)} ${height.toFixed(1)}`;
  });
  return svg("path", { class: key, d: points.length ? `M${points.join("L")}h0` : "" });
}

function drawChart() {
  const rewards = data.rounds.map((numbers) => numbers.reward);
  const low = Math.min(0, ...rewards), high = Math.max(1, ...rewards);
  const short = (value) => String(Number(value.toPrecision(2))).replace("-", "−");
  const first = data.rounds[0].round, last = data.rounds.at(-1).round;
  byId("chart").append(
    ...[TOP, (TOP + BOTTOM) / 2, BOTTOM].map((y) => svg("path", { class: "grid", d: `M${LEFT} ${y}H${RIGHT}` })),
    ...[[TOP, high, "100%"], [BOTTOM, low, "0%"]].flatMap(([y, reward, share]) => [
      svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, short(reward)),
      svg("text", { x: RIGHT + 6, y: y + 4 }, share),
    ]),
    svg("text", { x: LEFT, y: BOTTOM + 20 }, `round ${first}`),
    ...(last > first ? [svg("text", { x: RIGHT, y: BOTTOM + 20, "text-anchor": "end" }, String(last))] : []),
    svg("path", { id: "mark" }),
    line("kept", 0, 1),
    line("reward", low, high),
  );
  byId("chart").addEventListener("click", (event) => {
    const box = byId("chart").getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * 440 - LEFT) / (RIGHT - LEFT);
    openAt(Math.round(Math.min(1, Math.max(0, share)) * (data.rounds.length - 1)));
  });
}

function mark(open) {
  byId("mark").setAttribute("d", open.map((index) => `M${across(index)} ${TOP}V${BOTTOM}`).join(""));
  const list = byId("list");
  [...byId("rounds").rows].forEach((row, index) => {
    row.ariaCurrent = open.includes(index) ? "true" : null;
    if (index !== open[0]) return;
    const above = row.offsetTop - row.offsetHeight, below = row.offsetTop + row.offsetHeight - list.clientHeight;
    list.scrollTop = Math.min(Math.max(list.scrollTop, below), above);
  });
}

// A round, or two

function numbersOf(here, there) {
  if (!there) {
    const facts = NUMBERS.map(([name, key, write]) => make("div", {}, make("dt", {}, name), make("dd", {}, write(here[key]))));
    return make("dl", {}, ...facts);
  }
  const heads = ["", `Round ${here.round}`, `Round ${there.round}`, "Change"];
  const rows = NUMBERS.map(([name, key, write]) => {
    const cells = [write(here[key]), write(there[key]), difference(here[key], there[key], write)];
    return make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text)));
  });
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function columnsOf(rows) {
  const names = (key) => [...new Set(rows.flatMap((row) => Object.keys(row[key])))];
  const tokens = (row) => {
    const count = String(row.token_ids.length);
    return make("details", {}, make("summary", { title: "token ids" }, count), row.token_ids.join(" "));
  };
  return [
    ["outcome", "", (row) => make("b", { class: row.outcome }, BADGES[row.outcome] ?? row.outcome)],
    ["answer", "answer", (row) => row.extracted ?? NOTHING],
    ["reward", "number", (row) => number(row.reward)],
    ...names("rewards").map((name) => [name, "number", (row) => number(row.rewards[name]), "reward"]),
    ...names("coefficients").map((name) => [name, "number", (row) => number(row.coefficients[name]), "coefficient"]),
    ["kept", "state", (row) => (row.kept ? "kept" : "dropped")],
    ["finish", "", (row) => row.finish_reason],
    ["tokens", "number", tokens],
  ];
}

function completions(rows) {
  if (!rows.length) return make("p", {}, "No completion matches.");
  const columns = columnsOf(rows);
  const long = rows.some((row) => row.text.length > 60 || row.text.includes("\n") || row.failure);
  const head = columns.map(([name, kind, , group]) =>
    make("th", { scope: "col", class: kind }, ...(group ? [make("small", {}, group)] : []), name),
  );
  const bodies = rows.map((row) => {
    const cells = columns.map(([name, kind, write, group = ""]) =>
      make("td", { class: kind, "data-name": `${group} ${name}`.trim() }, write(row)),
    );
    const text = make("td", { class: "text" }, row.text ? make("pre", {}, row.text) : make("small", {}, "empty"));
    if (row.failure) text.append(make("p", { class: "failure" }, "Judging failed: " + row.failure));
    if (long) text.setAttribute("colspan", columns.length);
    else cells.splice(1, 0, text);
    const lines = [make("tr", {}, ...cells), ...(long ? [make("tr", {}, text)] : [])];
    return make("tbody", { class: row.kept ? "completion" : "completion dropped" }, ...lines);
  });
  if (!long) head.splice(1, 0, make("th", { scope: "col" }, "completion"));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), ...bodies);
}

function side(group, rows, title) {
  const correct = group.rows.filter((row) => row.outcome === "correct").length;
  const facts = `mean reward ${number(group.mean)}, spread ${number(group.spread)}, ${correct} of ${group.rows.length} correct`;
  return make("div", { class: "side" }, make("p", {}, title ? make("b", {}, title + ": ") : "", facts), completions(rows));
}

function card(sides, wanted) {
  const [{ group }] = sides;
  const id = group.prompt_id === group.prompt ? [] : [make("small", {}, group.prompt_id)];
  const panes = sides.map((of) => side(of.group, matching(of.group, wanted), of.title));
  return make("article", {}, make("h3", {}, ...id, group.prompt), make("div", { class: "sides" }, ...panes));
}

// Per prompt its groups that are shown: one, or those of both rounds

function pairsOf(here, there, numbers, other) {
  if (!there) return here.map((group) => [{ group }]);
  const shared = (group) => there.filter((candidate) => candidate.prompt_id === group.prompt_id);
  return here.flatMap((group) => {
    const found = shared(group).map((twin) => ({ group: twin, title: `Round ${other.round}` }));
    return found.length ? [[{ group, title: `Round ${numbers.round}` }, ...found]] : [];
  });
}

function sayShown(pairs, cards, wanted) {
  const groups = pairs.flat().map((of) => of.group);
  const all = groups.reduce((sum, group) => sum + group.rows.length, 0);
  const matched = groups.reduce((sum, group) => sum + matching(group, wanted).length, 0);
  const both = wanted.with ? " that are in both rounds" : "";
  return `${matched} of ${all} completions and ${cards.length} of ${pairs.length} prompts${both} are shown.`;
}

async function show() {
  const wanted = state(), hash = location.hash;
  fillForm(wanted);
  const index = indexOf(wanted.round), beside = wanted.with ? indexOf(wanted.with) : -1;
  const open = [index, beside].filter((place) => place >= 0);
  byId("title").textContent = "Round " + wanted.round + (wanted.with ? " and round " + wanted.with : "");
  byId("previous").disabled = index <= 0;
  byId("next").disabled = index < 0 || index === data.rounds.length - 1;
  mark(open);
  const numbers = data.rounds[index], other = data.rounds[beside];
  try {
    if (!numbers) throw new Error(`The run has no completions of round ${wanted.round}.`);
    if (wanted.with && !other) throw new Error(`The run has no completions of round ${wanted.with}.`);
    const [here, there] = await Promise.all(open.map((place) => load(data.rounds[place].round)));
    if (location.hash !== hash) return;
    const pairs = pairsOf(ordered(here, wanted.sort), there, numbers, other);
    const visible = pairs.filter((sides) => sides.some((of) => matching(of.group, wanted).length));
    const none = there && !pairs.length;
    byId("numbers").replaceChildren(numbersOf(numbers, other));
    byId("shown").textContent = none ? "The two rounds have no prompt in common." : sayShown(pairs, visible, wanted);
    byId("groups").replaceChildren(...visible.map((sides) => card(sides, wanted)));
  } catch (error) {
    byId("numbers").replaceChildren();
    byId("groups").replaceChildren();
    byId("shown").textContent = error.message;
  }
}

function fillForm(wanted) {
  for (const field of byId("form").elements) {
    const value = wanted[field.name] ?? "";
    if (field.type === "checkbox") field.checked = value === "1";
    else if (field.name && field.value !== value) field.value = value;
  }
}

function readForm() {
  const given = new FormData(byId("form"));
  const names = [...byId("form").elements].map((field) => field.name).filter(Boolean);
  location.replace(hashWith(Object.fromEntries(names.map((name) => [name, given.get(name) ?? ""]))));
}

function step(by) {
  openAt(indexOf(state().round) + by);
}

drawList();
drawChart();
document.querySelector("main").addEventListener("input", readForm);
byId("form").addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && !event.altKey && !event.ctrlKey && !event.metaKey && !event.target.matches("input, select")) step(by);
});
show();
