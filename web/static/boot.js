// Sets the chosen theme before the first paint. A module would run after it, and a dark page would flash white.
(() => {
  try {
    const theme = localStorage.getItem("headrace.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is switched off: the page follows the system's theme.
  }
})();
