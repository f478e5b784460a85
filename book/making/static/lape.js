// The interactive LAPE figure: firing probabilities of one neuron by slider; shares, entropy and assignment follow.
(() => {
  const LANGUAGES = ["Yoruba", "Icelandic", "Welsh", "English"];
  const PRESETS = {
    "One language": [0.62, 0.02, 0.01, 0.02],
    "Two languages": [0.51, 0.04, 0.48, 0.03],
    "All alike": [0.3, 0.3, 0.3, 0.3],
    "Hardly fires": [0.01, 0, 0, 0],
  };
  const START = "One language";
  const ACTIVE = 0.25; // stands for the 95th percentile of all probabilities
  const LOW = 1.0; // stands for the entropy below which the chosen share of neurons is

  const number = (x, digits = 2) => x.toFixed(digits);

  function entropy(probabilities) {
    const sum = probabilities.reduce((a, b) => a + b, 0);
    const shares = probabilities.map((p) => (sum ? p / sum : 0));
    // "+ 0" turns -0 into 0.
    return { shares, value: shares.reduce((total, q) => total - (q > 0 ? q * Math.log(q) : 0), 0) + 0 };
  }

  function verdict(probabilities, value) {
    const owners = LANGUAGES.filter((_, k) => probabilities[k] > ACTIVE);
    if (!owners.length) return `Excluded: it never fires on more than ${number(ACTIVE)} of the tokens.`;
    if (value > LOW) return `Not selected: its entropy is above ${number(LOW)}, it fires for many languages.`;
    return `Selected. Assigned to: ${owners.join(", ")}.`;
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function build(box) {
    const rows = LANGUAGES.map((name, k) => {
      const id = `lape-${k}`;
      const slider = element("input", { type: "range", id, min: 0, max: 1, step: 0.01 });
      const written = element("output", { for: id });
      const bar = element("span", { class: "lape-bar" });
      const share = element("span", { class: "lape-share" });
      const track = element("span", { class: "lape-track", "aria-hidden": "true" }, bar);
      const row = element("div", { class: "lape-row" }, element("label", { for: id }, name), slider, written, track, share);
      return { slider, written, bar, share, row };
    });
    const value = element("p", { class: "lape-value" });
    const needle = element("span", { class: "lape-needle" });
    const cut = element("span", { class: "lape-cut" });
    const scale = element("div", { class: "lape-scale", "aria-hidden": "true" }, cut, needle);
    const said = element("p", { class: "lape-verdict", role: "status" });
    const note = element(
      "p",
      { class: "lape-note" },
      `A bar is coloured where the neuron is active: it fires on more than ${number(ACTIVE)} of the tokens. ` +
        `The coloured part of the scale is the entropy of neurons that are selected, up to ${number(LOW)}. ` +
        "In a model, both limits follow from all neurons.",
    );
    const most = Math.log(LANGUAGES.length);
    cut.style.width = `${(100 * LOW) / most}%`;

    const show = () => {
      const probabilities = rows.map((row) => Number(row.slider.value));
      const found = entropy(probabilities);
      rows.forEach((row, k) => {
        row.written.textContent = number(probabilities[k]);
        row.bar.style.width = `${100 * found.shares[k]}%`;
        row.share.textContent = `${Math.round(100 * found.shares[k])}%`;
        row.row.classList.toggle("lape-active", probabilities[k] > ACTIVE);
      });
      needle.style.left = `${(100 * found.value) / most}%`;
      value.textContent =
        `LAPE ${number(found.value)} of at most ln ${LANGUAGES.length} = ${number(most)}: ` +
        `as if it fired equally for ${number(Math.exp(found.value), 1)} languages.`;
      said.textContent = verdict(probabilities, found.value);
    };
    const set = (values) => {
      rows.forEach((row, k) => (row.slider.value = values[k]));
      show();
    };
    const buttons = Object.entries(PRESETS).map(([name, values]) => {
      const button = element("button", { type: "button" }, name);
      button.addEventListener("click", () => set(values));
      return button;
    });
    rows.forEach((row) => row.slider.addEventListener("input", show));
    const head = element(
      "div",
      { class: "lape-row lape-head", "aria-hidden": "true" },
      ...["language", "fires on this share of its tokens", "", "share of all firing", ""].map((x) => element("span", {}, x)),
    );
    box.replaceChildren(
      element("div", { class: "lape-presets", role: "group", "aria-label": "Examples" }, ...buttons),
      head,
      ...rows.map((row) => row.row),
      value,
      scale,
      said,
      note,
    );
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Interactive figure: LAPE of one neuron");
    set(PRESETS[START]);
  }

  const start = () => document.querySelectorAll("#lape-explorer").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
