// Imports the module ENTRY and those that it imports. esm.py writes two lines above this text: SOURCES, from the name
// of each file to its text, and ENTRY, the name of one of them.

const urls = {}; // name of a file -> its module's blob URL

function urlOf(name) {
  urls[name] ??= URL.createObjectURL(new Blob([linked(name)], { type: "text/javascript" }));
  return urls[name];
}

// The text of a file that imports its neighbours by their blob URLs. Developer tools show it under its own name.
function linked(name) {
  if (!Object.hasOwn(SOURCES, name)) throw new Error(`flyte_jupyter has no module ${name}`);
  const text = SOURCES[name].replace(/\b(from|import) "\.\/([\w.-]+)";$/gm, (_, word, other) => {
    return `${word} "${urlOf(other)}";`;
  });
  return `${text}\n//# sourceURL=flyte_jupyter/${name}\n`;
}

const entry = await import(urlOf(ENTRY));
Object.values(urls).forEach((url) => URL.revokeObjectURL(url)); // the modules are loaded

export default entry.default;
