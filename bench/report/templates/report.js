(() => {
  const { state, remember, make, ordered, sortable, mark } = shared;
  const data = JSON.parse(document.getElementById("data").textContent);
  const metrics = new Map(data.metrics.map((metric) => [metric.key, metric]));

  function shown(value, digits = 4) {
    if (value === undefined || value === null) return "n/a";
    return (value || 0).toLocaleString("en", { maximumSignificantDigits: Math.max(digits, Math.floor(Math.log10(Math.abs(value) || 1)) + 1) });
  }

  const heading = (metric) => metric.label + (metric.unit ? `, ${metric.unit}` : "");

  // The matrix: the metric that it shows is the chosen one (by CSS); the address keeps it.
  for (const input of document.querySelectorAll('input[name="matrix-metric"]')) {
    if (state.get("matrix") === input.value) input.checked = true;
    input.addEventListener("change", () => remember({ matrix: input.value }));
  }

  // The table: sort, filter, choose columns, copy.
  let count = () => {};
  let keeps = () => true; // whether the filter keeps a row
  let redraw = () => {}; // draws the explorer anew
  const table = document.getElementById("cells");
  if (table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const names = heads.map((head) => head.textContent.trim());
    const first = Number(table.dataset.first);
    let all = rows.length <= first;
    const own = new Set(heads.map((head) => head.dataset.metric).filter(Boolean));
    const extra = new Map();
    const hidden = new Set((state.get("hide") || "").split("~").filter(Boolean));

    const column = (key) => extra.get(key) ?? names.indexOf(key);

    function figure(row, index) {
      const metric = heads[index].dataset.metric;
      const group = data.groups[row.dataset.group];
      return metric ? group.figures[metric]?.[0] : row.cells[index].textContent.trim();
    }

    function sort(key, descending) {
      const index = column(key);
      if (index === undefined || index < 0) return;
      body.append(...ordered(rows, (row) => figure(row, index), descending));
      filter(search.value);
      mark(heads, heads[index], descending);
    }

    function sortableBy(head, key) {
      sortable(head, (descending) => {
        sort(key, descending);
        remember({ sort: key, down: descending ? "1" : "" });
      });
    }
    heads.forEach((head, index) => sortableBy(head, names[index]));

    // What a filter also hides: squares and rows of the matrix, and points of the first figure.
    const contents = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const points = new Map(rows.map((row) => [row, document.getElementById(`point-${row.dataset.group}`)]));
    const lines = [...document.querySelectorAll("#matrix-table tbody tr")].map((line) => [
      line,
      [...new Set([...line.querySelectorAll("a.shade")].map((link) => link.hash.slice(1)))].map((id) => document.getElementById(id)),
    ]);
    // On a phone a card for each backbone takes the table's place.
    const cards = [...document.querySelectorAll(".backbones > section")].map((card) => [
      card,
      [...card.querySelectorAll("[data-of]")].map((line) => [line, document.getElementById(line.dataset.of)]),
    ]);
    const matching = new Set(rows);

    function filter(text) {
      const words = text.toLowerCase().split(/\s+/).filter((word) => word && word !== "-");
      let shown = 0;
      for (const row of body.rows) {
        const content = contents.get(row);
        const fits = words.every((word) => (word[0] === "-" ? !content.includes(word.slice(1)) : content.includes(word)));
        fits ? matching.add(row) : matching.delete(row);
        row.hidden = !fits || (!all && ++shown > first);
        points.get(row)?.classList.toggle("faded", !fits);
      }
      for (const [card, of] of cards) {
        for (const [line, row] of of) line.hidden = !matching.has(row);
        card.hidden = of.length ? of.every(([, row]) => row.hidden) : words.length > 0;
      }
      for (const [line, of] of lines) line.hidden = words.length > 0 && !of.some((row) => matching.has(row));
      count();
    }
    keeps = (id) => matching.has(document.getElementById(id));
    count = () => {
      const there = rows.filter((row) => !row.hidden).length;
      counter.textContent = there === rows.length ? `${there} rows` : `${there} of ${rows.length} rows`;
      whole.hidden = all || matching.size <= first;
      whole.textContent = `all ${matching.size}`;
    };
    const whole = make("button", { type: "button" });
    whole.addEventListener("click", () => {
      all = true;
      filter(search.value);
    });

    function show(index, on) {
      for (const row of [table.tHead.rows[0], ...rows]) row.cells[index].hidden = !on;
    }

    function addColumn(key) {
      const metric = metrics.get(key);
      const head = make("th", { scope: "col", class: "number", "data-metric": key, title: metric.meaning }, heading(metric));
      table.tHead.rows[0].append(head);
      rows.forEach((row) => row.append(make("td", { class: "number" }, shown(data.groups[row.dataset.group].figures[key]?.[0]))));
      heads.push(head);
      extra.set(key, heads.length - 1);
      sortableBy(head, key);
    }

    function visible() {
      const columns = heads.map((head, index) => index).filter((index) => !heads[index].hidden);
      const lines = [...body.rows].filter((row) => !row.hidden);
      return [
        columns.map((index) => heads[index].textContent.trim()),
        ...lines.map((row) => columns.map((index) => row.cells[index].textContent.trim())),
      ];
    }

    const formats = {
      CSV: (cells) => cells.map((row) => row.map((text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)).join(",")).join("\n"),
      Markdown: (cells) => {
        const lines = cells.map((row) => `| ${row.map((text) => text.replace(/[\\|`*[\]<]/g, "\\$&")).join(" | ")} |`);
        return [lines[0], `|${" --- |".repeat(cells[0].length)}`, ...lines.slice(1)].join("\n");
      },
      LaTeX: (cells) => {
        const clean = (text) =>
          text
            .replace(/[&%$#_{}]/g, "\\$&")
            .replace(/(?<!\\)\\(?![&%$#_{}])/g, "\\textbackslash{}")
            .replace(/~/g, "\\textasciitilde{}")
            .replace(/\^/g, "\\textasciicircum{}")
            .replace(/[<>]/g, "$$$&$$")
            .replace(/±/g, "$\\pm$").replace(/×/g, "$\\times$");
        const lines = cells.map((row) => `${row.map(clean).join(" & ")} \\\\`);
        return [`\\begin{tabular}{${"l".repeat(cells[0].length)}}`, "\\hline", lines[0], "\\hline", ...lines.slice(1), "\\hline", "\\end{tabular}"].join("\n");
      },
    };

    const counter = make("output", { "aria-live": "polite" });
    const search = make("input", { type: "search", placeholder: "Filter: lite0 -cuda", "aria-label": "Filter rows" });
    let waiting;
    search.addEventListener("input", () => {
      filter(search.value);
      remember({ q: search.value });
      clearTimeout(waiting);
      waiting = setTimeout(() => redraw(), 200); // of a thousand points it takes longer than a letter
    });
    const list = make("div", { class: "columns" });
    names.forEach((name, index) => {
      const box = make("input", { type: "checkbox" });
      box.checked = !hidden.has(name);
      show(index, box.checked);
      box.addEventListener("change", () => {
        show(index, box.checked);
        box.checked ? hidden.delete(name) : hidden.add(name);
        remember({ hide: [...hidden].join("~") });
      });
      list.append(make("label", {}, box, ` ${name}`));
    });
    const added = new Set((state.get("more") || "").split("~").filter((key) => metrics.has(key) && !own.has(key)));
    for (const metric of data.metrics.filter(({ key }) => !own.has(key))) {
      const box = make("input", { type: "checkbox" });
      const put = () => {
        if (!extra.has(metric.key)) addColumn(metric.key);
        show(extra.get(metric.key), box.checked);
      };
      box.checked = added.has(metric.key);
      if (box.checked) put();
      box.addEventListener("change", () => {
        put();
        box.checked ? added.add(metric.key) : added.delete(metric.key);
        remember({ more: [...added].join("~") });
      });
      list.append(make("label", { title: metric.meaning }, box, ` ${heading(metric)}`));
    }
    const copies = Object.entries(formats).map(([name, format]) => {
      const button = make("button", { type: "button", class: "copy" }, `Copy ${name}`);
      button.addEventListener("click", () => copy(format(visible()), button));
      return button;
    });
    const tools = document.getElementById("table-tools");
    tools.append(search, counter, make("span", {}, whole), ...copies, make("details", {}, make("summary", {}, "Columns"), list));
    tools.hidden = false;
    search.value = state.get("q") || "";
    filter(search.value);
    if (state.get("sort")) sort(state.get("sort"), state.get("down") === "1");
  }

  async function copy(text, button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // A page from disk may not be allowed to: select the text, as by hand.
      const area = make("textarea", { class: "offscreen" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1500);
  }
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(document.getElementById(button.dataset.copy).textContent, button));
  }

  // Each large figure as a picture and as its numbers.
  function save(name, content, type) {
    const link = make("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
  function savePicture(figure) {
    const drawing = figure.querySelector("svg").cloneNode(true);
    const [, , width, height] = drawing.getAttribute("viewBox").split(" ").map(Number);
    const look = getComputedStyle(figure);
    drawing.setAttribute("width", width);
    drawing.setAttribute("height", height);
    drawing.style.color = look.color;
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: Math.ceil(3 * width), height: Math.ceil(3 * height) });
      const pen = canvas.getContext("2d");
      pen.fillStyle = look.backgroundColor;
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(`${figure.dataset.name}.png`, blob, "image/png"));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(drawing))}`;
  }
  for (const figure of document.querySelectorAll("figure[data-csv]")) {
    const picture = make("button", { type: "button" }, "PNG");
    const numbers = make("button", { type: "button" }, "CSV");
    picture.addEventListener("click", () => savePicture(figure));
    numbers.addEventListener("click", () => save(`${figure.dataset.name}.csv`, figure.dataset.csv, "text/csv"));
    figure.querySelector(".message").after(make("p", { class: "tools" }, picture, numbers));
  }

  // The explorer: any metric against any other.
  const place = document.getElementById("explore");
  if (place && data.metrics.length > 1) {
    const SVG = "http://www.w3.org/2000/svg";
    const HEIGHT = 460, LEFT = 64, RIGHT = 16, TOP = 12, BOTTOM = 48;
    const REACH = 24; // pixels within which a pointer means a point
    const WIDE_RANGE = 10; // largest value over smallest one from which an axis is logarithmic unless the reader says
    let WIDTH = 860; // of the page, so that letters keep their size on a phone
    const devices = [...new Set(data.groups.map((group) => group.device))];
    const shapes = {
      o: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
      s: (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
      "^": (r) => `M0,${-1.3 * r}L${1.2 * r},${r}H${-1.2 * r}z`,
      D: (r) => `M0,${-1.4 * r}L${1.4 * r},0L0,${1.4 * r}L${-1.4 * r},0z`,
      v: (r) => `M0,${1.3 * r}L${1.2 * r},${-r}H${-1.2 * r}z`,
    };
    const known = (...keys) => keys.find((key) => metrics.has(key));
    const others = (key) => data.metrics.map((metric) => metric.key).filter((other) => other !== key);
    const view = { y: known(state.get("y"), data.axes.y, data.metrics[0].key) };
    view.x = known(...[state.get("x"), data.axes.x].filter((key) => key !== view.y), ...others(view.y));
    const logs = { x: "log", y: "logy" }; // name of what the address says of an axis: 1, 0, or nothing for what suits

    function svg(tag, attributes, ...children) {
      const node = document.createElementNS(SVG, tag);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      node.append(...children);
      return node;
    }

    // Marks of an axis, each a value and its text.
    function ticks(low, high, log, most) {
      if (log) {
        for (const digits of [[1, 2, 5], [1]]) {
          const found = [];
          for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
            for (const digit of digits) {
              const tick = Number(`${digit}e${power}`);
              if (tick >= low && tick <= high) found.push([tick, shown(tick)]);
            }
          if (found.length > 1 && found.length <= 2 * most) return found;
        }
      }
      const rough = (high - low) / most || 1;
      const power = Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].map((digit) => digit * 10 ** power).find((each) => each >= rough);
      const decimals = Math.min(20, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
      const found = [];
      for (let count = Math.ceil(low / step - 1e-9); count * step <= high + 1e-9 * step; count++) {
        const tick = count * step || 0; // no -0
        found.push([tick, tick.toLocaleString("en", { maximumFractionDigits: decimals })]);
      }
      return found;
    }

    function worded(key, value) {
      const { label, unit } = metrics.get(key);
      return `${label} ${shown(value)}${unit === "%" || !unit ? unit : ` ${unit}`}`;
    }

    // Of the points that are drawn, and their bars.
    function scale(axis, points, from, to) {
      const ends = points.flatMap((point) => point[axis]);
      const low = Math.min(...ends), high = Math.max(...ends);
      const metric = metrics.get(view[axis]), said = state.get(logs[axis]);
      const suits = metric.unit !== "%" && high / low >= WIDE_RANGE;
      const log = low > 0 && (said ? said === "1" : suits);
      const [at, back] = log ? [Math.log, Math.exp] : [(value) => value, (value) => value];
      const pad = (at(high) - at(low)) * 0.06 || Math.abs(at(high)) * 0.06 || 1;
      let start = at(low) - pad, end = at(high) + pad;
      if (!log && low >= 0) start = Math.max(start, 0); // nothing is below 0, and no share above 100%
      if (metric.unit === "%" && high <= 100) end = Math.min(end, 100);
      const map = (value) => from + ((at(value) - start) / (end - start)) * (to - from);
      const most = axis === "x" && WIDTH < 500 ? 3 : 5;
      return { map, log, can: low > 0, ticks: ticks(back(start), back(end), log, most) };
    }

    function front(points) {
      const sign = (key) => (metrics.get(key).better === "higher" ? -1 : metrics.get(key).better === "lower" ? 1 : 0);
      const [sx, sy] = [sign(view.x), sign(view.y)];
      if (!sx || !sy) return [];
      const cost = ({ x, y }) => [sx * x[0], sy * y[0]];
      return points
        .filter((point) => !points.some((other) => {
          const [a, b] = cost(point), [c, d] = cost(other);
          return c <= a && d <= b && (c < a || d < b);
        }))
        .sort((one, other) => one.x[0] - other.x[0]);
    }

    const chart = svg("svg", { role: "group", "aria-label": "Scatter plot; each point is a row of the table" });
    const caption = make("p", { class: "note", "aria-live": "polite" });
    const legend = make("p", { class: "legend" });
    const tip = make("div", { class: "tip", "aria-hidden": "true", hidden: true }); // a point's own label says the same
    let drawn = []; // points with their places on the chart

    function mark(group, attributes = {}) {
      const hollow = devices.indexOf(group.device) > 0;
      const colour = data.colours[group.regime];
      const look = hollow ? { fill: "var(--card)", stroke: colour, "stroke-width": 2 } : { fill: colour };
      return svg("path", { d: shapes[data.shapes[group.regime]](6), ...look, ...attributes });
    }

    function draw() {
      hide();
      WIDTH = Math.max(300, chart.clientWidth || 860);
      chart.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      const kept = data.groups.filter((group) => keeps(group.id));
      const points = kept
        .map((group) => ({ group, x: group.figures[view.x], y: group.figures[view.y] }))
        .filter(({ x, y }) => x && y);
      chart.replaceChildren();
      drawn = [];
      const best = front(points);
      const notes = [
        "Bars: range over seeds; for percentages, ± one standard deviation; for accuracies with one seed, the 95% interval.",
        best.length > 1 && "Line: groups that no other beats in both.",
        kept.length < data.groups.length && `The table's filter leaves ${kept.length} of ${data.groups.length} groups.`,
        points.length < kept.length && `${kept.length - points.length} of ${kept.length} groups lack one of the two values.`,
      ];
      caption.textContent = notes.filter(Boolean).join(" ");
      if (!points.length) return;
      const across = scale("x", points, LEFT, WIDTH - RIGHT), up = scale("y", points, HEIGHT - BOTTOM, TOP);
      for (const [axis, { log, can }] of Object.entries({ x: across, y: up })) {
        boxes[axis].checked = log;
        boxes[axis].disabled = !can;
        boxes[axis].parentNode.title = can ? "" : "Some values are 0 or less.";
      }
      for (const [tick, text] of across.ticks) {
        const x = across.map(tick);
        chart.append(svg("line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" }), svg("text", { x, y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, text));
      }
      for (const [tick, text] of up.ticks) {
        const y = up.map(tick);
        chart.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "grid" }), svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, text));
      }
      if (best.length > 1) chart.append(svg("polyline", { points: best.map(({ x, y }) => `${across.map(x[0])},${up.map(y[0])}`).join(" "), class: "front" }));
      for (const { group, x, y } of points) {
        const colour = data.colours[group.regime];
        const [cx, cy] = [across.map(x[0]), up.map(y[0])];
        const said = [
          `${group.name} on ${group.device}`,
          worded(view.x, x[0]),
          worded(view.y, y[0]),
          `${group.seeds} seed${group.seeds > 1 ? "s" : ""}`,
        ];
        const link = svg("a", { href: `#${group.id}`, class: "point", "aria-label": `${said[0]}: ${said.slice(1).join(", ")}` });
        link.append(
          svg("line", { x1: across.map(x[1]), x2: across.map(x[2]), y1: cy, y2: cy, stroke: colour }),
          svg("line", { x1: cx, x2: cx, y1: up.map(y[1]), y2: up.map(y[2]), stroke: colour }),
          mark(group, { transform: `translate(${cx},${cy})` }),
        );
        drawn.push({ id: group.id, link, said, cx, cy });
        chart.append(link);
      }
      const named = (key, log) => heading(metrics.get(key)) + (log ? " (logarithmic)" : "");
      chart.append(
        svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, named(view.x, across.log)),
        svg("text", { x: -(TOP + HEIGHT - BOTTOM) / 2, y: 16, "text-anchor": "middle", transform: "rotate(-90)" }, named(view.y, up.log)),
      );
    }

    // What a point is: on hover, keyboard focus and touch, where a second touch goes to its row, as a click does.
    let current = null, touched = false, pressed = null;

    function hide() {
      current?.link.classList.remove("current");
      current = null;
      tip.hidden = true;
      chart.style.cursor = "";
    }

    function tell(point, how) {
      if (point === current) return;
      hide();
      if (!point) return;
      current = point;
      point.link.classList.add("current");
      chart.style.cursor = "pointer";
      const [name, ...rest] = point.said;
      tip.replaceChildren(make("strong", {}, name), ...rest.map((text) => make("div", {}, text)), make("small", {}, how));
      tip.style.left = tip.style.top = "0"; // an element near an edge is as narrow as what is left there
      tip.hidden = false;
      const frame = place.getBoundingClientRect(), of = chart.getBoundingClientRect(), size = of.width / WIDTH;
      const x = of.left - frame.left + size * point.cx, y = of.top - frame.top + size * point.cy;
      const { width, height } = tip.getBoundingClientRect();
      tip.style.left = `${Math.max(4, Math.min(x - width / 2, frame.width - width - 4))}px`;
      tip.style.top = `${y - height - 12 < of.top - frame.top ? y + 14 : y - height - 12}px`;
    }

    function nearest(event) {
      const of = chart.getBoundingClientRect(), size = of.width / WIDTH;
      const x = (event.clientX - of.left) / size, y = (event.clientY - of.top) / size;
      let best = null, least = REACH / size;
      for (const point of drawn) {
        const away = Math.hypot(point.cx - x, point.cy - y);
        if (away <= least) [best, least] = [point, away];
      }
      return best;
    }

    const pointOf = (node) => drawn.find(({ link }) => link === node) ?? null;
    const focused = () => pointOf(document.activeElement);
    chart.addEventListener("pointerdown", (event) => {
      touched = event.pointerType === "touch";
      pressed = current;
    });
    const hovered = (event, point) => event.pointerType !== "touch" && tell(point ?? focused(), "Click for its row.");
    chart.addEventListener("pointermove", (event) => hovered(event, nearest(event)));
    chart.addEventListener("pointerleave", (event) => hovered(event, null));
    chart.addEventListener("focusin", () => touched || tell(focused(), "Enter for its row."));
    chart.addEventListener("focusout", hide);
    chart.addEventListener("click", (event) => {
      event.preventDefault();
      const point = event.detail ? nearest(event) : pointOf(event.target.closest("a")); // a key has no place
      if (touched && event.detail && point !== pressed) tell(point, "Touch again for its row.");
      else if (point) reveal(point.id);
    });
    addEventListener("keydown", (event) => {
      touched = false;
      if (event.key === "Escape") hide();
    });
    addEventListener("pointerdown", (event) => chart.contains(event.target) || hide());

    const choosers = {}, boxes = {};

    // A measure that the other axis has changes places with it, so that none is drawn against itself.
    function choose(axis, key) {
      const other = axis === "x" ? "y" : "x";
      if (key === view[other]) {
        view[other] = view[axis];
        choosers[other].value = view[other];
        const swapped = [state.get(logs.x), state.get(logs.y)];
        remember({ [other]: view[other], [logs.x]: swapped[1], [logs.y]: swapped[0] });
      } else remember({ [logs[axis]]: "" });
      view[axis] = key;
      remember({ [axis]: key });
      draw();
    }

    function chooser(axis, label) {
      const select = make("select", { "aria-label": label });
      for (const metric of data.metrics) select.append(make("option", { value: metric.key, selected: metric.key === view[axis] }, heading(metric)));
      select.addEventListener("change", () => choose(axis, select.value));
      const box = make("input", { type: "checkbox" });
      box.addEventListener("change", () => {
        remember({ [logs[axis]]: box.checked ? "1" : "0" });
        draw();
      });
      choosers[axis] = select;
      boxes[axis] = box;
      return [make("label", {}, `${label} `, select), make("label", {}, box, " logarithmic")];
    }

    const keyed = (group, text) => make("span", {}, svg("svg", { viewBox: "-9 -9 18 18", class: "shape" }, mark(group)), text);
    for (const regime of Object.keys(data.colours)) legend.append(keyed({ regime, device: devices[0] }, regime));
    if (devices.length > 1) legend.append(make("span", {}, `filled: ${devices[0]}, hollow: ${devices.slice(1).join(", ")}`));
    place.append(make("div", { class: "tools" }, ...chooser("y", "Up"), ...chooser("x", "Across")), legend, chart, tip, caption);
    place.hidden = false;
    draw();
    let width = WIDTH;
    addEventListener("resize", () => {
      if (chart.clientWidth !== width) draw();
      width = chart.clientWidth;
    });
    redraw = draw;
  }

  function reveal(id) {
    const row = document.getElementById(id);
    if (!row) return;
    if (row.hidden) {
      row.hidden = false;
      count();
    }
    const line = row.checkVisibility() ? row : document.querySelector(`[data-of="${id}"]`);
    line.closest(".backbones > section")?.removeAttribute("hidden");
    line.tabIndex = -1;
    line.focus({ preventScroll: true });
    line.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    line.classList.remove("found");
    void line.offsetWidth; // starts the highlight anew
    line.classList.add("found");
  }
  // A run that is going on.
  const live = document.getElementById("live");
  if (live) {
    const box = live.querySelector("input");
    box.checked = !state.get("still");
    box.addEventListener("change", () => remember({ still: box.checked ? "" : "1" }));
    live.hidden = false;
    setInterval(() => box.checked && !document.hidden && location.reload(), 1000 * live.dataset.seconds);
  }

  for (const link of document.querySelectorAll("a.shade"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      reveal(link.hash.slice(1));
    });
})();
