// A file that a field does not take is told under the field, before it is sent; what was there stays.
(() => {
  const KINDS = __KINDS__, MOST_MEGABYTES = __MEGABYTES__, MEGABYTE = 1e6, LONGEST_NAME = 60;
  const fieldOf = target => target.closest && target.closest(".takes");
  const kindOf = field => KINDS.find(kind => field.classList.contains(kind.mark));
  const shortened = name => name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME / 2)}…${name.slice(-LONGEST_NAME / 2)}` : name;
  function fault(file, kind) {
    const name = shortened(file.name);
    if (!kind.endings.some(ending => file.name.toLowerCase().endsWith(ending))) return `${name} is not ${kind.name}; wanted ${kind.endings.join(", ")}.`;
    if (file.size === 0) return `${name} is empty: it has 0 bytes.`;
    if (file.size > MOST_MEGABYTES * MEGABYTE) return `${name} has ${Math.ceil(file.size / MEGABYTE)} MB, wanted at most ${MOST_MEGABYTES} MB.`;
    return "";
  }
  function tell(field, text) {
    const place = field.closest(".field") || field.parentElement;
    for (const old of place.querySelectorAll(".fault[data-upload]")) old.remove();
    if (!text) return;
    const message = document.createElement("div"), line = document.createElement("p");
    message.className = "fault";
    message.dataset.upload = "";
    line.setAttribute("role", "alert");
    line.textContent = text;
    message.append(line);
    place.append(message);
    message.scrollIntoView({block: "nearest"});
  }
  let sentFor = null;
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const isUpload = sentFor && /\/upload\b/.test(given[0].url || given[0]);
    try {
      const answer = await ask(...given);
      if (isUpload && !answer.ok) tell(sentFor, `The file was not taken: ${(await answer.clone().text()).slice(0, 200)}`);
      return answer;
    } catch (error) {
      if (isUpload) tell(sentFor, "The file was not sent: the server does not answer. Try again when it is back.");
      throw error;
    }
  };
  const stop = event => { event.preventDefault(); event.stopImmediatePropagation(); };
  function list(files) {
    const transfer = new DataTransfer();
    for (const file of files) transfer.items.add(file);
    return transfer.files;
  }
  document.addEventListener("change", event => {
    const input = event.target, field = input.type === "file" && fieldOf(input);
    if (!field || !input.files.length) return;
    const file = input.files[0], kind = kindOf(field), wrong = fault(file, kind);
    tell(field, wrong);
    sentFor = field;
    if (wrong) { stop(event); input.value = ""; return; }
    if (kind.type && !file.type.startsWith(`${kind.type}/`)) {  // gradio goes by the type that the browser guesses
      input.files = list([new File([file], file.name, {type: `${kind.type}/x`})]);
    }
  }, true);
  document.addEventListener("dragover", event => {  // else the browser leaves the page for a file that is dropped beside a field
    if (event.dataTransfer && [...event.dataTransfer.types].includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", event => {
    const field = fieldOf(event.target), file = event.dataTransfer && event.dataTransfer.files[0];
    const input = field && field.querySelector("input[type=file]");
    if (!file) return;
    stop(event);
    if (field && !input) tell(field, "Take away what is here first, by its cross, and drop the file again.");
    if (!input) return;
    event.target.dispatchEvent(new DragEvent("dragleave", {bubbles: true}));
    input.files = list([file]);
    input.dispatchEvent(new Event("change", {bubbles: true}));
  }, true);
  document.addEventListener("error", event => {  // a video that this browser cannot play may be one for the server
    if (event.target.tagName === "VIDEO" && fieldOf(event.target)) event.stopImmediatePropagation();
  }, true);
  document.addEventListener("click", event => {
    if (!event.isTrusted) return;
    const field = fieldOf(event.target), input = field && field.querySelector("input[type=file]"), kind = input && kindOf(field);
    if (input) input.accept = [...kind.type ? [`${kind.type}/*`] : [], ...kind.endings].join(",");  // image/* offers a phone's camera
    if (event.target.closest("button.primary, button.sm")) for (const old of document.querySelectorAll(".fault[data-upload]")) old.remove();
  }, true);
})();
