// What a reader sets, kept where the browser keeps it for this page, if it does.

const DEFAULTS = { theme: "auto", keys: true, tokens: false, blanks: false, origins: true, compare: true, area: "prompts" };
const NAME = "flanc";

let settings = null;

export function setting(name) {
  if (!settings) {
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(NAME) ?? "{}") ?? {};
    } catch {
      // A page from disk may have no store.
    }
    settings = { ...DEFAULTS, ...kept };
  }
  return settings[name];
}

export function set(name, value) {
  setting(name);
  settings[name] = value;
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
  } catch {
    // It holds until the page is closed.
  }
}

export function applyTheme() {
  const theme = setting("theme");
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function themeControl(select) {
  select.value = setting("theme");
  select.addEventListener("change", () => {
    set("theme", select.value);
    applyTheme();
  });
}
