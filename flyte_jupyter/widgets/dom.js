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

// Give `parent` these children, changing those that are there where they fit, and moving none: a button keeps its
// focus, and a click that has begun on it still counts. What has a `data-key` is found among the others.
export function patch(parent, children) {
  let old = parent.firstChild;
  for (const made of children) {
    let found = old;
    while (found && !alike(found, made)) found = made.dataset?.key ? found.nextSibling : null;
    if (!found) {
      parent.insertBefore(made, old);
      continue;
    }
    while (old !== found) old = removed(old);
    update(found, made);
    old = found.nextSibling;
  }
  while (old) old = removed(old);
}

function alike(old, made) {
  return old.nodeName === made.nodeName && old.dataset?.key === made.dataset?.key;
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function update(old, made) {
  if (made.nodeType === Node.TEXT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return;
  }
  for (const { name } of [...old.attributes])
    if (!made.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of COPIED) old[name] = made[name] ?? null;
  patch(old, [...made.childNodes]);
}
