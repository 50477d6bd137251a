// A small way to make a DOM a function of a state. Text goes in by textContent alone, whatever it contains.

const COPIED = ["onclick", "onkeydown", "onsubmit", "tick"];

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (COPIED.includes(name)) made[name] = value;
    else if (value !== undefined && value !== null && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// `key` tells it from what else may stand in its place; a text without letters needs `label` for its name.
export function button(key, text, label, onclick, more = {}) {
  const name = /\p{L}/u.test(text) ? null : label;
  return el("button", { type: "button", "data-key": key, "aria-label": name, title: label, onclick, ...more }, text);
}

// An element whose text is a function of the time; `tickAll` brings it up to date.
export function ticking(text, now, attributes = {}) {
  return el("span", { ...attributes, "data-ticks": true, tick: text }, text(now) || "\u00a0");
}

export function tickAll(root, now) {
  for (const each of root.querySelectorAll("[data-ticks]")) {
    const text = each.tick(now);
    if (each.textContent !== text) each.textContent = text;
  }
}

// Give `parent` these children, changing those that are there where they fit: a button keeps its focus, and a click
// that has begun on it still counts.
export function patch(parent, children) {
  const there = [...parent.childNodes];
  children.forEach((made, place) => {
    const old = there[place];
    if (!old) parent.append(made);
    else if (old.nodeName !== made.nodeName || old.dataset?.key !== made.dataset?.key) old.replaceWith(made);
    else if (made.nodeType === Node.TEXT_NODE) {
      if (old.data !== made.data) old.data = made.data;
    } else {
      for (const { name } of [...old.attributes])
        if (!made.hasAttribute(name) && name !== "open") old.removeAttribute(name);
      for (const { name, value } of made.attributes)
        if (old.getAttribute(name) !== value) old.setAttribute(name, value);
      for (const name of COPIED) old[name] = made[name] ?? null;
      patch(old, [...made.childNodes]);
    }
  });
  for (const left of there.slice(children.length)) left.remove();
}
