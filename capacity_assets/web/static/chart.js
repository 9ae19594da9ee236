// Shows the values of a chart under the pointer or by arrow keys; Enter opens a window, dragging zooms. The chart is
// complete without it, and the table below has the same values.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const LEAST_DRAG_PERCENT = 2;
  const PIXELS_PER_REM = 16;

  function element(parent, name, attributes) {
    const made = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(function (one) { made.setAttribute(one[0], one[1]); });
    parent.append(made);
    return made;
  }

  function dayOf(ordinal) {
    // Day 719163 is 1970-01-01.
    return new Date((ordinal - 719163) * 86400000).toISOString().slice(0, 10);
  }

  function explore(plot) {
    const readings = JSON.parse(plot.dataset.readings);
    const first = Number(plot.dataset.first);
    const last = Number(plot.dataset.last);
    const measured = Number(plot.dataset.measured);
    const height = Number(plot.dataset.height) / PIXELS_PER_REM + "rem";
    const chart = plot.parentElement;
    const known = readings.filter(function (one) { return one[1] !== null; });
    if (known.length === 0) return;
    const box = document.createElement("div");
    const line = element(plot, "line", { class: "cursor", y1: 0, y2: height, visibility: "hidden" });
    const dot = element(plot, "circle", { class: "cursor", r: ".25rem", visibility: "hidden" });
    const zoom = element(plot, "rect", { class: "zoom", y: 0, height: height, visibility: "hidden" });
    let chosen = -1;
    let from = null;

    chart.classList.add("explored");
    box.className = "reading";
    box.hidden = true;
    box.setAttribute("role", "status");
    chart.append(box);
    plot.tabIndex = 0;
    plot.setAttribute("role", "application");
    plot.setAttribute("aria-roledescription", "chart");
    plot.setAttribute("aria-description", "Arrow keys read values, Enter opens the samples of a window.");

    function percentOf(event) {
      const area = plot.getBoundingClientRect();
      return Math.min(Math.max(100 * (event.clientX - area.left) / area.width, 0), 100);
    }

    function nearest(percent) {
      return known.reduce(function (best, one, number) {
        return Math.abs(one[0] - percent) < Math.abs(known[best][0] - percent) ? number : best;
      }, 0);
    }

    function hide() {
      chosen = -1;
      box.hidden = true;
      line.setAttribute("visibility", "hidden");
      dot.setAttribute("visibility", "hidden");
    }

    function show(number) {
      const reading = known[number];
      chosen = number;
      [["x1", line], ["x2", line], ["cx", dot]].forEach(function (one) { one[1].setAttribute(one[0], reading[0] + "%"); });
      dot.setAttribute("cy", reading[1] / PIXELS_PER_REM + "rem");
      line.setAttribute("visibility", "visible");
      dot.setAttribute("visibility", "visible");
      // As text, never as markup: users write notes.
      box.replaceChildren(...reading[2].map(function (text) {
        const paragraph = document.createElement("p");
        paragraph.textContent = text;
        return paragraph;
      }));
      box.hidden = false;
      const area = plot.getBoundingClientRect();
      const around = chart.getBoundingClientRect();
      const x = area.left - around.left + area.width * reading[0] / 100;
      const right = Math.max(around.width - box.offsetWidth, 0);
      box.style.left = Math.min(Math.max(x < around.width / 2 ? x + 12 : x - box.offsetWidth - 12, 0), right) + "px";
      box.style.top = "0.75rem";
    }

    function open() {
      const address = chosen >= 0 && known[chosen][3];
      if (address) location.href = address;
    }

    function zoomTo(one, other) {
      const days = [one, other].sort(function (a, b) { return a - b; }).map(function (percent) {
        return dayOf(Math.round(first + (last - first) * percent / 100));
      });
      const query = new URLSearchParams(location.search);
      ["range", "window", "page"].forEach(function (name) { query.delete(name); });
      query.set("first", days[0]);
      query.set("last", days[1]);
      location.search = query.toString();
    }

    plot.addEventListener("pointermove", function (event) {
      const percent = percentOf(event);
      show(nearest(percent));
      if (from === null) return;
      zoom.setAttribute("x", Math.min(from, percent) + "%");
      zoom.setAttribute("width", Math.abs(percent - from) + "%");
      zoom.setAttribute("visibility", "visible");
    });
    plot.addEventListener("pointerleave", function (event) {
      // After a tap the value stays.
      if (from === null && event.pointerType !== "touch") hide();
    });
    plot.addEventListener("pointerdown", function (event) {
      if (event.button !== 0 || event.pointerType === "touch") return;
      from = percentOf(event);
      plot.setPointerCapture(event.pointerId);
      event.preventDefault();
      plot.focus({ preventScroll: true });
    });
    plot.addEventListener("pointerup", function (event) {
      if (from === null) { show(nearest(percentOf(event))); return; }
      const dragged = from;
      // The future cannot be zoomed into.
      const start = Math.min(from, measured);
      const end = Math.min(percentOf(event), measured);
      from = null;
      zoom.setAttribute("visibility", "hidden");
      if (Math.abs(percentOf(event) - dragged) < LEAST_DRAG_PERCENT) open();
      else if (Math.abs(end - start) >= LEAST_DRAG_PERCENT) zoomTo(start, end);
    });
    plot.addEventListener("pointercancel", function () { from = null; zoom.setAttribute("visibility", "hidden"); });
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", function (event) {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -7, PageDown: 7, Home: -known.length, End: known.length };
      if (event.key in steps) {
        event.preventDefault();
        const start = chosen < 0 ? known.length : chosen;
        show(Math.min(Math.max(start + steps[event.key], 0), known.length - 1));
      } else if (event.key === "Enter") open();
      else if (event.key === "Escape") hide();
    });
  }

  document.querySelectorAll("svg[data-readings]").forEach(explore);
})();
