// The explorer: adds the parts of a head at the chosen weights (alphas), and shows its predictions.
// The address keeps its state: #explorer?timesformer=0.5&ast=1&list=changed
(function () {
  "use strict";
  const root = document.currentScript.closest(".explorer-root");
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const { clips, classes, votes } = data;
  const streams = data.streams.map((stream) => stream.id);
  const FIRST_CARDS = 6;
  const MORE_CARDS = 12;
  const SLICE_MS = 11; // of the 16 ms of a frame: leaves the browser time to draw
  const SPEAK_AFTER_MS = 500; // a screen reader announces the final position of a slider, not every step

  // ---- The head

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const floats = (text) => new Float32Array(bytesOf(text));

  /** quanta (rows, columns) times a scale per row. */
  function unpack({ quanta, scales }) {
    const integers = new Int16Array(bytesOf(quanta));
    const perRow = floats(scales);
    const columns = integers.length / perRow.length;
    return Float32Array.from(integers, (value, i) => value * perRow[(i / columns) | 0]);
  }

  function transposed(matrix, rows) {
    const columns = matrix.length / rows;
    const result = new Float32Array(matrix.length);
    for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = matrix[i * columns + j];
    return result;
  }

  const parts = streams.map((stream) => unpack(data.head.parts[stream])); // (clips, width) each
  const firstBias = floats(data.head.bias);
  const first = new Float32Array(firstBias.length);
  const layers = data.head.layers.map((layer) => {
    const bias = floats(layer.bias);
    return { weight: transposed(unpack(layer), bias.length), bias, output: new Float32Array(bias.length) };
  });
  const active = new Int32Array(Math.max(first.length, ...layers.map((layer) => layer.output.length)));
  data.head = null; // its text is no longer needed

  /** output += p * row at a + q * row at b + r * row at c + s * row at d. */
  function addRows(output, weight, a, p, b, q, c, r, d, s) {
    for (let j = 0; j < output.length; j++) {
      output[j] += p * weight[a + j] + q * weight[b + j] + r * weight[c + j] + s * weight[d + j];
    }
  }

  /** Logits of a clip, in an array that the next call overwrites. */
  function logitsOf(clip, alphas) {
    const start = clip * first.length;
    first.set(firstBias);
    parts.forEach((part, m) => {
      const alpha = alphas[m];
      for (let i = 0; i < first.length; i++) first[i] += alpha * part[start + i];
    });
    let x = first;
    for (const { weight, bias, output } of layers) {
      // ReLU keeps 52 to 63% of the first layer's units in the demo's heads: read only their rows, four at a time
      let count = 0;
      for (let i = 0; i < x.length; i++) if (x[i] > 0) active[count++] = i;
      const width = output.length;
      output.set(bias);
      let k = 0;
      for (; k + 3 < count; k += 4) {
        const [a, b, c, d] = [active[k], active[k + 1], active[k + 2], active[k + 3]];
        addRows(output, weight, a * width, x[a], b * width, x[b], c * width, x[c], d * width, x[d]);
      }
      for (; k < count; k++) addRows(output, weight, active[k] * width, x[active[k]], 0, 0, 0, 0, 0, 0);
      x = output;
    }
    return x;
  }

  function emptyResult(alphas) {
    return {
      alphas,
      predicted: new Int32Array(clips.length),
      probability: new Float32Array(clips.length), // of the prediction
      ofLabel: new Float32Array(clips.length), // of the clip's label
    };
  }

  function predict(clip, result) {
    const logits = logitsOf(clip, result.alphas);
    let best = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    let sum = 0;
    for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - logits[best]);
    const target = clips[clip].target;
    result.predicted[clip] = best;
    result.probability[clip] = 1 / sum;
    result.ofLabel[clip] = target < 0 ? 0 : Math.exp(logits[target] - logits[best]) / sum;
  }

  // ---- Recomputing. A pass goes over all clips, in slices of a frame. It always ends, and the next one starts with
  // the current alphas, so that each state shown while dragging is consistent.

  const ONES = streams.map(() => 1);
  const same = (a, b) => a.every((value, i) => value === b[i]);
  let baseline = null;
  let shown = null; // the last complete result
  let pass = { result: emptyResult(ONES), next: 0 };
  let frame = 0;

  function work(untilMs) {
    while (pass.next < clips.length) {
      predict(pass.next++, pass.result);
      if (performance.now() >= untilMs) break;
    }
    if (pass.next < clips.length) return false;
    shown = pass.result;
    baseline = baseline || shown;
    pass = null;
    return true;
  }

  function startPass() {
    const alphas = wanted();
    if (baseline && same(alphas, baseline.alphas)) shown = baseline;
    if (shown && same(alphas, shown.alphas)) return;
    pass = { result: emptyResult(alphas), next: 0 };
  }

  function onFrame() {
    frame = 0;
    if (pass && work(performance.now() + SLICE_MS)) {
      startPass();
      render();
    }
    if (pass) frame = requestAnimationFrame(onFrame);
  }

  function moved() {
    if (!pass) startPass();
    showAlphas();
    if (!pass) render(); // at alpha 1, already computed
    else root.dataset.busy = "true";
    if (pass && !frame) frame = requestAnimationFrame(onFrame);
  }

  function finishNow() {
    while (pass) if (work(Infinity)) startPass();
    render();
  }

  // ---- The page

  const one = (selector, within = root) => within.querySelector(selector);
  const all = (selector, within = root) => [...within.querySelectorAll(selector)];
  const out = (name) => one(`[data-out="${name}"]`);
  const sliders = streams.map((stream) => one(`input[data-stream="${stream}"]`));
  const values = streams.map((stream) => one(`[data-value="${stream}"]`));
  const presets = all("button[data-alphas]").map((button) => {
    const alphas = JSON.parse(button.dataset.alphas);
    return { button, alphas: streams.map((stream) => alphas[stream]) };
  });
  const list = one(".explorer-list");
  const more = one("[data-more]");
  const maps = all(".explorer-map svg"); // of each pair of streams, one shown
  let map = maps[0];
  const wanted = () => sliders.map((slider) => Number(slider.value));
  const percent = (share) => (100 * share).toFixed(1);
  const isRight = (result, clip) => result.predicted[clip] === clips[clip].target;
  const KINDS = {
    all: () => true,
    changed: (clip) => shown.predicted[clip] !== baseline.predicted[clip],
    wrong: (clip) => !isRight(shown, clip),
    right: (clip) => isRight(shown, clip),
  };
  let kind = "all";
  let cards = FIRST_CARDS;

  /** Wilson's score interval, as `wilson_interval` in Python. */
  function wilson(successes, n) {
    const z = 1.959963984540054;
    const p = successes / n;
    const centre = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
    const half = (z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n))) / (1 + (z * z) / n);
    return [successes === 0 ? 0 : Math.max(0, centre - half), successes === n ? 1 : Math.min(1, centre + half)];
  }

  /** Update what follows the pointer at once: sliders, their values, presets and the ring. */
  function showAlphas() {
    const alphas = wanted();
    alphas.forEach((alpha, m) => {
      values[m].textContent = alpha.toFixed(2);
      sliders[m].setAttribute("aria-valuetext", `weight ${alpha.toFixed(2)} of ${data.streams[m].sense}`);
    });
    for (const preset of presets) preset.button.setAttribute("aria-pressed", String(same(preset.alphas, alphas)));
    const { left, cell, rows, perAlpha, x, y } = geometry();
    const right = left + (alphas[x] * perAlpha + 0.5) * cell - 0.5;
    const down = y < 0 ? cell / 2 + 1.5 : (rows - 0.5 - alphas[y] * perAlpha) * cell + 1.5;
    const ring = one(".explorer-present", map);
    ring.setAttribute("transform", `translate(${right} ${down})`);
    ring.dataset.beside = String(alphas.some((alpha, m) => m !== x && m !== y && alpha !== 1)); // of the map's plane
  }

  function render() {
    if (!shown) return; // the first pass isn't done
    showResult();
    showClips();
    root.dataset.busy = String(Boolean(pass));
  }

  let rendered = null;
  function showResult() {
    if (rendered === shown) return;
    const atStart = !rendered;
    rendered = shown;
    const n = clips.length;
    const counts = { right: 0, gained: 0, lost: 0 };
    for (let i = 0; i < n; i++) {
      const now = isRight(shown, i);
      const before = isRight(baseline, i);
      if (now) counts.right++;
      if (now && !before) counts.gained++;
      if (before && !now) counts.lost++;
    }
    const [low, high] = wilson(counts.right, n);
    const accuracy = `${percent(counts.right / n)}%`;
    out("accuracy").textContent = accuracy;
    out("right").textContent = String(counts.right);
    out("interval").textContent = `${percent(low)} to ${percent(high)}`;
    const gain = counts.gained - counts.lost;
    const points = (100 * gain) / n;
    let change = "as trained";
    if (shown !== baseline) {
      const difference = `${points > 0 ? "+" : points < 0 ? "−" : ""}${Math.abs(points).toFixed(1)} points`;
      change = `${difference}: ${counts.gained} became right, ${counts.lost} became wrong`;
    }
    const element = out("change");
    element.textContent = change;
    element.className = gain > 0 ? "explorer-good" : gain < 0 ? "explorer-bad" : "";
    one(".explorer-gauge-fill").style.width = `${(100 * counts.right) / n}%`;
    one(".explorer-gauge-one").style.left = `${(100 * (counts.right - gain)) / n}%`;
    const interval = one(".explorer-gauge-interval").style;
    interval.left = `${100 * low}%`;
    interval.width = `${100 * (high - low)}%`;
    for (const name of Object.keys(KINDS)) {
      one(`[data-count="${name}"]`).textContent = String(clips.filter((_, clip) => KINDS[name](clip)).length);
    }
    if (atStart) return; // no alpha has been changed yet
    const where = data.streams.map(({ sense }, m) => `${sense} ${shown.alphas[m].toFixed(2)}`).join(", ");
    speak(`At weights ${where}: accuracy ${accuracy}, ${counts.right} of ${n} clips right; ${change}.`);
  }

  let speaking = 0;
  function speak(sentence) {
    clearTimeout(speaking);
    speaking = setTimeout(() => {
      out("spoken").textContent = sentence;
      keepState();
    }, SPEAK_AFTER_MS);
  }

  function keepState() {
    const state = new URLSearchParams(streams.map((stream, m) => [stream, String(wanted()[m])]));
    state.set("list", kind);
    const isStart = same(wanted(), ONES) && kind === "all";
    try {
      if (!isStart || location.hash.startsWith("#explorer?")) {
        history.replaceState(null, "", isStart ? "#explorer" : `#explorer?${state}`);
      }
    } catch { /* a page without an address of its own */ }
  }

  function readState() {
    const [place, text] = location.hash.split("?");
    if (place !== "#explorer" || !text) return;
    const state = new URLSearchParams(text);
    streams.forEach((stream, m) => { if (state.has(stream)) sliders[m].value = state.get(stream); });
    const choice = all('[name="explorer-filter"]').find((one) => one.value === state.get("list"));
    if (choice) {
      choice.checked = true;
      kind = choice.value;
    }
    moved();
    root.scrollIntoView();
  }

  function showClips() {
    const chosen = clips.map((_, clip) => clip).filter(KINDS[kind]);
    const here = chosen.slice(0, cards);
    while (list.children.length < here.length) list.append(one("template").content.cloneNode(true));
    while (list.children.length > here.length) list.lastElementChild.remove();
    here.forEach((clip, i) => showCard(list.children[i], clip));
    one(".explorer-empty").hidden = here.length > 0;
    out("shown").textContent = here.length < chosen.length ? `${here.length} of ${chosen.length}` : "";
    more.hidden = here.length === chosen.length;
  }

  /** Labels and ids are untrusted: insert them as text only. */
  function showCard(card, clip) {
    const { id, label, target, thumbnail } = clips[clip];
    const predicted = shown.predicted[clip];
    const before = baseline.predicted[clip];
    if (card.dataset.clip !== id) {
      card.dataset.clip = id;
      one("code", card).textContent = id;
      const picture = one("img", card);
      picture.hidden = !thumbnail;
      if (thumbnail) picture.src = thumbnail;
      else picture.removeAttribute("src");
      one('[data-row="label"] bdi', card).textContent = label;
      for (const [stream, predictions] of Object.entries(votes)) showVote(card, stream, predictions[clip], target);
    }
    card.dataset.predicted = String(predicted);
    card.dataset.changed = String(predicted !== before);
    showVote(card, "now", predicted, target);
    showVote(card, "one", before, target);
    showShare(card, "label", shown.ofLabel[clip]);
    showShare(card, "now", shown.probability[clip]);
    const badge = one(".explorer-badge", card);
    badge.hidden = predicted === before;
    badge.dataset.kind = predicted === target ? "right" : before === target ? "wrong" : "other";
    badge.textContent = { right: "now right", wrong: "now wrong", other: "changed" }[badge.dataset.kind];
  }

  function showVote(card, row, predicted, target) {
    const place = one(`[data-row="${row}"] dd`, card);
    place.dataset.right = String(predicted === target);
    one("bdi", place).textContent = classes[predicted];
  }

  function showShare(card, row, share) {
    one(`[data-row="${row}"] .explorer-share`, card).textContent = `${Math.round(100 * share)}%`;
    one(`[data-row="${row}"] .explorer-bar span`, card).style.transform = `scaleX(${share.toFixed(4)})`;
  }

  // ---- Input

  function setAlphas(alphas) {
    alphas.forEach((alpha, m) => (sliders[m].value = String(alpha)));
    moved();
  }

  for (const slider of sliders) {
    slider.addEventListener("input", moved);
    slider.addEventListener("dblclick", () => {
      slider.value = "1";
      moved();
    });
  }
  for (const { button, alphas } of presets) button.addEventListener("click", () => setAlphas(alphas));

  /** The shown map: its measures, squares per alpha of 1, and the places of its two streams (y: -1 for one stream). */
  function geometry() {
    const { left, cell, columns, rows, x, y } = map.dataset;
    return {
      left: Number(left),
      cell: Number(cell),
      rows: Number(rows),
      perAlpha: (Number(columns) - 1) / 2,
      x: streams.indexOf(x),
      y: streams.indexOf(y),
    };
  }

  function goTo(event) {
    const { left, cell, rows, perAlpha, x, y } = geometry();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    const alphas = [...ONES];
    alphas[x] = ((at.x - left) / cell - 0.5) / perAlpha;
    if (y >= 0) alphas[y] = (rows - 0.5 - (at.y - 2) / cell) / perAlpha;
    setAlphas(alphas.map((alpha) => Math.min(2, Math.max(0, alpha)))); // a range input rounds to its step
  }
  for (const each of maps) {
    each.addEventListener("click", goTo);
    each.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse") each.setPointerCapture(event.pointerId);
    });
    each.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && event.buttons === 1) goTo(event); // dragging a finger scrolls the page
    });
  }
  const pair = one("#explorer-pair");
  pair?.addEventListener("change", () => {
    map = maps[Number(pair.value)];
    for (const each of maps) each.toggleAttribute("hidden", each !== map);
    showAlphas();
  });

  for (const choice of all('[name="explorer-filter"]')) {
    choice.addEventListener("change", () => {
      kind = choice.value;
      cards = FIRST_CARDS;
      render();
      speak(`${one(`[data-count="${kind}"]`).textContent} clips listed: ${kind}.`);
    });
  }
  more.addEventListener("click", () => {
    const before = list.children.length;
    cards += MORE_CARDS;
    render();
    list.children[before].tabIndex = -1;
    list.children[before].focus({ preventScroll: true }); // the button may be gone
  });
  window.addEventListener("beforeprint", finishNow);
  window.addEventListener("hashchange", readState);

  showAlphas();
  readState();
  frame = requestAnimationFrame(onFrame);
})();
