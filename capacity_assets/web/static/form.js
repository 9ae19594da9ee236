// Offers the names that the search finds in fields for names, and omits empty fields of What if from its address.
(function () {
  "use strict";
  const PAUSE_MILLISECONDS = 120;
  const SHOWN = 50;

  document.querySelectorAll("form.assumptions").forEach(function (form) {
    form.addEventListener("formdata", function (event) {
      [...event.formData].forEach(function (one) { if (!one[1].trim()) event.formData.delete(one[0]); });
    });
  });

  document.querySelectorAll("input[data-names]").forEach(function (input) {
    const server = input.dataset.of ? input.form.elements.namedItem(input.dataset.of) : null;
    let timer = 0;
    let asked = 0;

    async function offer() {
      const mine = ++asked;
      const on = server ? server.value.trim() : "";
      const query = { q: (input.value + " " + on).trim(), kind: input.dataset.names, format: "json", shown: SHOWN };
      try {
        const answer = await fetch("/search?" + new URLSearchParams(query));
        if (!answer.ok || mine !== asked) return;
        const matches = (await answer.json()).found.filter(function (one) { return !on || one.server === on; });
        // A label is found with its key as the server.
        const names = matches.map(function (one) { return one.kind === "group" ? one.server + "=" + one.name : one.name; });
        input.list.replaceChildren(...[...new Set(names)].map(function (name) { return new Option("", name); }));
      } catch (error) {
        // Without names, the field can be filled all the same.
      }
    }

    input.addEventListener("focus", offer);
    input.addEventListener("input", function () {
      clearTimeout(timer);
      timer = setTimeout(offer, PAUSE_MILLISECONDS);
    });
  });
})();
