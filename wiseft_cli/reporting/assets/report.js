"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const status = document.getElementById("status");
  // The interpreter evaluates expressions, so the page needs no permission to compile code.
  const options = { mode: "vega-lite", renderer: "svg", ast: true, logLevel: 1,
    actions: { export: true, source: false, compiled: false, editor: false } };

  async function copy(command) {
    const field = document.getElementById("command");
    field.value = command;
    try {
      await navigator.clipboard.writeText(command);
      status.textContent = "Copied: " + command;
    } catch {
      field.focus();
      field.select();
      status.textContent = "Select and copy: " + command;
    }
  }

  let drawn = null, drawing = Promise.resolve();
  function drawCurve() {
    const shown = new Set([...document.querySelectorAll("#series input:checked")].map((box) => box.value));
    const scale = document.querySelector("input[name=scale]:checked").value;
    const spec = { ...data.curve.specs[scale],
      data: { values: data.points.filter((point) => shown.has(point.series)) } };
    drawing = drawing.then(async () => {
      if (drawn) drawn.finalize();
      drawn = await vegaEmbed("#curve", spec, options);
      drawn.view.addEventListener("click", (event, item) => {
        if (item && item.datum && item.datum.command) copy(item.datum.command);
      });
      for (const mark of document.querySelectorAll("#curve .mark-symbol path[aria-label]")) {
        const command = mark.__data__ && mark.__data__.datum && mark.__data__.datum.command;
        mark.setAttribute("tabindex", "0");
        if (!command) continue;
        mark.setAttribute("role", "button");
        mark.addEventListener("keydown", (event) => {
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); copy(command); }
        });
      }
      document.getElementById("curve").dataset.drawn = scale + ":" + shown.size;
    });
    return drawing;
  }

  if (data.curve) {
    for (const box of document.querySelectorAll("#series input, input[name=scale]")) {
      box.addEventListener("change", drawCurve);
    }
    drawCurve();
  }

  if (data.reliability) {
    const choice = document.getElementById("reliability-set");
    const draw = () => vegaEmbed("#reliability", { ...data.reliability.spec,
      data: { values: data.reliability.data[choice.value] } }, options);
    choice.addEventListener("change", draw);
    draw();
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", () => copy(button.dataset.command));
  }

  const against = document.getElementById("against");
  if (against) {
    against.addEventListener("change", () => {
      document.getElementById("results").dataset.against = against.value;
    });
  }

  for (const heading of document.querySelectorAll("#results th[aria-sort]")) {
    heading.querySelector("button").addEventListener("click", () => {
      const isDown = heading.getAttribute("aria-sort") === "descending";
      for (const other of document.querySelectorAll("#results th[aria-sort]")) {
        other.setAttribute("aria-sort", "none");
      }
      heading.setAttribute("aria-sort", isDown ? "ascending" : "descending");
      const body = document.querySelector("#results tbody");
      const key = (row) => {
        const text = row.children[heading.cellIndex].dataset.value;
        return text === "" ? null : isNaN(text) ? text : Number(text);
      };
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" && typeof b === "number" ? a - b
          : String(a).localeCompare(String(b));
        return isDown ? order : -order;
      });
      body.append(...rows);
    });
  }

  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("main details")) details.open = true;
  });
})();
