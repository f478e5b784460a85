// The interactive plane: one curve a method, gain against harm; a chosen method is turned up and down by a slider.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 640;
  const HEIGHT = 380;
  const EDGE = { left: 62, right: 16, top: 14, bottom: 46 };

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function drawn(tag, attributes, text = "") {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  }

  const number = (x, digits) => (x > 0 ? "+" : "") + x.toFixed(digits).replace("-", "−");

  // About five round steps between two numbers.
  function ticks(low, high) {
    const raw = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((x) => x * power >= raw) * power;
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(6)));
  }

  function build(box, index) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const best = (settings) => settings.reduce((low, x, k) => (x.gain < settings[low].gain ? k : low), 0);
    const chosen = { method: 0, harm: 0, setting: data.methods.map((method) => best(method.settings)) };

    function choice(title, key, names) {
      const fields = names.map((name, k) => {
        const input = element("input", { type: "radio", name: `plane-${index}-${key}`, value: k });
        input.checked = k === chosen[key];
        input.addEventListener("change", () => {
          chosen[key] = k;
          show();
        });
        return element("label", {}, input, ` ${name}`);
      });
      return element("fieldset", {}, element("legend", {}, title), ...fields);
    }

    const slider = element("input", { type: "range", id: `plane-${index}-dial`, min: 0, step: 1 });
    const written = element("output", { for: slider.id });
    const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
    const said = element("p", { class: "plane-value", role: "status" });
    slider.addEventListener("input", () => {
      chosen.setting[chosen.method] = Number(slider.value);
      show();
    });

    function plot(harm) {
      const all = data.methods.flatMap((method) => method.settings);
      const range = (key) => {
        const values = all.map((x) => x[key]);
        const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
        return [low - 0.04 * (high - low), high + 0.04 * (high - low)];
      };
      const [x0, x1] = range(harm.key);
      const [y0, y1] = range("gain");
      const x = (value) => EDGE.left + ((value - x0) / (x1 - x0)) * (WIDTH - EDGE.left - EDGE.right);
      const y = (value) => HEIGHT - EDGE.bottom - ((value - y0) / (y1 - y0)) * (HEIGHT - EDGE.top - EDGE.bottom);
      const parts = [];
      for (const value of ticks(x0, x1)) {
        parts.push(drawn("line", { class: "plane-grid", x1: x(value), x2: x(value), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
        parts.push(drawn("text", { class: "plane-tick", x: x(value), y: HEIGHT - EDGE.bottom + 16, "text-anchor": "middle" }, String(value).replace("-", "−")));
      }
      for (const value of ticks(y0, y1)) {
        parts.push(drawn("line", { class: "plane-grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(value), y2: y(value) }));
        parts.push(drawn("text", { class: "plane-tick", x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value).replace("-", "−")));
      }
      parts.push(drawn("line", { class: "plane-zero", x1: x(0), x2: x(0), y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      parts.push(drawn("line", { class: "plane-zero", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: y(0), y2: y(0) }));
      parts.push(drawn("text", { class: "plane-title", x: (EDGE.left + WIDTH - EDGE.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, `${harm.title}; left is less harm`));
      const middle = (EDGE.top + HEIGHT - EDGE.bottom) / 2;
      parts.push(
        drawn("text", { class: "plane-title", x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, data.gain.title),
      );
      const order = data.methods.map((_, k) => k).sort((a, b) => (a === chosen.method) - (b === chosen.method));
      for (const k of order) {
        const own = k === chosen.method;
        const points = data.methods[k].settings.map((s) => `${x(s[harm.key]).toFixed(1)},${y(s.gain).toFixed(1)}`);
        parts.push(drawn("polyline", { class: own ? "plane-curve plane-own" : "plane-curve", points: points.join(" ") }));
      }
      const at = data.methods[chosen.method].settings[chosen.setting[chosen.method]];
      parts.push(drawn("circle", { class: "plane-dot", cx: x(at[harm.key]), cy: y(at.gain), r: 7 }));
      svg.replaceChildren(...parts);
    }

    function show() {
      const method = data.methods[chosen.method];
      slider.max = method.settings.length - 1;
      slider.value = chosen.setting[chosen.method];
      const at = method.settings[chosen.setting[chosen.method]];
      written.textContent = at.at;
      slider.setAttribute("aria-valuetext", `${data.dial} ${at.at}`);
      plot(data.harms[chosen.harm]);
      const values = [{ ...data.gain, key: "gain" }, ...data.harms].map((x) => `${x.title} ${number(at[x.key], x.digits)}`);
      said.textContent = `${method.name[0].toUpperCase()}${method.name.slice(1)} at ${data.dial} ${at.at}: ${values.join("; ")}.`;
    }

    box.replaceChildren(
      choice("Method", "method", data.methods.map((method) => method.name)),
      choice("Harm", "harm", data.harms.map((harm) => harm.title)),
      element("div", { class: "plane-dial" }, element("label", { for: slider.id }, data.dial[0].toUpperCase() + data.dial.slice(1)), slider, written),
      svg,
      said,
      element("p", { class: "plane-note" }, `${data.note} Values are changes from the base, which is at zero on both axes. Lower is a larger gain.`),
    );
    show();
  }

  const start = () => document.querySelectorAll(".plane").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
