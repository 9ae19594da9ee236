// The theme chosen in this browser: as the system, light, or dark. Runs before anything is drawn.
(function () {
  "use strict";
  const THEMES = ["system", "light", "dark"];
  const root = document.documentElement;

  function kept() {
    try { return localStorage.getItem("theme") || "system"; } catch (error) { return "system"; }
  }

  function apply(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  apply(kept());
  document.addEventListener("DOMContentLoaded", function () {
    const button = document.getElementById("theme");
    if (!button) return;
    function name(theme) {
      button.setAttribute("aria-label", "Theme: " + theme);
      button.title = "Theme: " + theme + ". Click to change.";
    }
    name(kept());
    button.hidden = false;
    button.addEventListener("click", function () {
      const next = THEMES[(THEMES.indexOf(kept()) + 1) % THEMES.length];
      try { localStorage.setItem("theme", next); } catch (error) { /* Applies to this page only. */ }
      apply(next);
      name(next);
    });
  });
})();
