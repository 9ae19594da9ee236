// Search-as-you-type, opened by / or Ctrl-K; what fills first is listed first. Without script, the form works.
(function () {
  "use strict";
  const input = document.getElementById("q");
  const list = document.getElementById("matches");
  if (!input || !list) return;
  const PAUSE_MILLISECONDS = 120;
  const SHOWN = 12;
  const pages = JSON.parse(input.form.dataset.pages);
  const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  let timer = 0;
  let asked = 0;
  let chosen = -1;

  const none = document.createElement("p");
  none.id = "none";
  none.setAttribute("role", "status");
  none.textContent = "No matches";
  none.hidden = true;
  list.after(none);
  input.setAttribute("role", "combobox");
  input.setAttribute("aria-controls", "matches");
  input.setAttribute("aria-autocomplete", "list");
  input.setAttribute("aria-expanded", "false");

  function close() {
    clearTimeout(timer);
    // Ignore a pending answer.
    ++asked;
    list.hidden = none.hidden = true;
    chosen = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function address(one) {
    if (one.kind === "page") return one.path;
    if (one.kind === "group") return "/group?" + new URLSearchParams({ by: one.server, name: one.name });
    const query = new URLSearchParams({ server: one.server_id });
    if (one.kind === "table") {
      query.set("database", one.database);
      query.set("schema", one.schema);
    }
    if (one.kind !== "server") query.set("name", one.name);
    return "/" + one.kind + "?" + query;
  }

  // "2027-03-07" as "7 Mar 2027", in every locale.
  function day(written) {
    const parts = written.split("-").map(Number);
    return parts[2] + " " + MONTHS[parts[1] - 1] + " " + parts[0];
  }

  function show(matches) {
    list.replaceChildren(...matches.map(function (one, number) {
      const item = document.createElement("li");
      const link = document.createElement("a");
      item.id = "matches-" + number;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", "false");
      link.href = address(one);
      link.tabIndex = -1;
      // As text, never as markup: users choose names.
      const kind = one.kind === "volume" ? "disk" : one.kind;
      const inside = one.kind === "table" ? " in " + one.database : "";
      const where = { group: one.server, page: "page" }[one.kind] || kind + inside + " on " + one.server;
      link.textContent = one.kind === "server" ? one.name : one.name + " · " + where;
      if (one.full_by) {
        const date = document.createElement("span");
        date.textContent = "full by " + day(one.full_by);
        link.append(date);
      }
      item.append(link);
      return item;
    }));
    chosen = -1;
    input.removeAttribute("aria-activedescendant");
    list.hidden = matches.length === 0;
    none.hidden = matches.length > 0 || input.value.trim() === "";
    input.setAttribute("aria-expanded", String(matches.length > 0));
  }

  function choose(number) {
    const items = list.children;
    if (items.length === 0) return;
    if (chosen >= 0) items[chosen].setAttribute("aria-selected", "false");
    chosen = (number + items.length) % items.length;
    items[chosen].setAttribute("aria-selected", "true");
    items[chosen].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", items[chosen].id);
  }

  // Pages whose title or further word has a word that begins with the query; listed before names.
  function pagesWith(query) {
    const begin = query.toLowerCase();
    return pages.filter(function (one) {
      return begin && (" " + one.title + " " + one.also).toLowerCase().includes(" " + begin);
    }).map(function (one) { return { kind: "page", name: one.title, path: one.path }; });
  }

  async function search() {
    const query = input.value.trim();
    const mine = ++asked;
    try {
      const answer = await fetch("/search?" + new URLSearchParams({ q: query, format: "json", shown: SHOWN }));
      if (answer.ok && mine === asked) show([...pagesWith(query), ...(await answer.json()).found]);
    } catch (error) {
      close();
    }
  }

  input.addEventListener("focus", search);
  input.closest("form").addEventListener("focusout", function (event) {
    if (!event.currentTarget.contains(event.relatedTarget)) close();
  });
  document.addEventListener("keydown", function (event) {
    const isTyping = event.target.closest("input, textarea, select");
    const isControlK = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k";
    if (!isControlK && (event.key !== "/" || isTyping)) return;
    event.preventDefault();
    input.focus();
    input.select();
  });
  input.addEventListener("input", function () {
    clearTimeout(timer);
    timer = setTimeout(search, PAUSE_MILLISECONDS);
  });
  input.addEventListener("keydown", function (event) {
    if (event.key === "ArrowDown") { event.preventDefault(); choose(chosen + 1); }
    else if (event.key === "ArrowUp") { event.preventDefault(); choose(chosen - 1); }
    else if (event.key === "Escape") { event.preventDefault(); close(); }
    else if (event.key === "Enter" && chosen >= 0) {
      event.preventDefault();
      location.href = list.children[chosen].firstChild.href;
    }
  });
  document.addEventListener("click", function (event) {
    if (!list.contains(event.target) && event.target !== input) close();
  });
})();
