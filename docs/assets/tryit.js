/* The Try it panel: sends a recipe's requests to the recipe, running under `recipes serve`.

   A page carries <div class="try-it" data-recipe="sse/feed" data-requests="[…]">. On a
   static host the text inside it stays, which says how to run it. Whatever a server
   answers is put in the page as text, never as HTML. */
(() => {
  "use strict";

  // This file is <site>/assets/tryit.js, whatever path the site is mounted under.
  const SITE = new URL("..", document.currentScript.src);

  const KEPT_LINES = 200; // of a stream: the newest
  const KEPT_CHARACTERS = 20000; // of a body or one line: the first
  const UNSEEN_HEADERS = new Set(["connection", "date", "server", "transfer-encoding"]);
  const TEXT = /^text\/|json|xml|javascript|urlencoded/;
  const FILE_FIELD = /^(\w+)=@$/;

  /** What is running on this page, so that leaving it ends all of it. */
  const running = new Set();

  let answered = null;
  let ids = 0;

  // --- the page ---------------------------------------------------------------------

  const start = () => {
    stopAll();
    document.querySelectorAll(".try-it[data-recipe]").forEach(fill);
  };

  const stopAll = () => running.forEach((controller) => controller.abort());

  const fill = async (panel) => {
    const recipe = panel.dataset.recipe;
    const recipes = await liveRecipes();
    if (!Object.hasOwn(recipes, recipe) || panel.dataset.state) return;
    const error = recipes[recipe];
    panel.dataset.state = error === null ? "live" : "failed";
    if (error !== null) {
      panel.replaceChildren(element("p", {}, `This recipe could not start: ${error}`));
      return;
    }
    const requests = JSON.parse(panel.dataset.requests);
    panel.replaceChildren(
      element("p", {}, "This recipe is running. Change what you like, and send it."),
      ...requests.map((request) => row(recipe, request)),
    );
  };

  /** Which recipes run; none on a host that only serves files. Asked once a page load. */
  const liveRecipes = () => {
    answered ??= fetch(new URL("live/status.json", SITE))
      .then((response) => response.json())
      .then((status) => Object(status?.recipes))
      .catch(() => ({}));
    return answered;
  };

  // --- one request ------------------------------------------------------------------

  const row = (recipe, request) => {
    const id = `try-it-${++ids}`;
    const path = element("input", {
      id, value: request.path, spellcheck: false, autocomplete: "off",
    });
    const url = () => {
      const typed = path.value.trim();
      return new URL(`live/${recipe}${typed.startsWith("/") ? "" : "/"}${typed}`, SITE);
    };
    const output = new Output();
    const label = element("label", { htmlFor: id, title: "Path" }, request.method);
    const button = element("button", { type: "submit" });
    const form = element("form", { className: "try-it-request" }, label, path);
    const parts = [form];

    if (request.method === "WS") {
      const composer = new Composer(request.body, output);
      form.append(button);
      parts.push(composer.form);
      whenSubmitted(form, button, "Connect", output, (signal) =>
        converse(url(), composer, output, signal));
    } else if (request.method === "SSE") {
      const resume = resumeBox(output);
      form.append(button, resume.label);
      whenSubmitted(form, button, "Open", output, (signal) =>
        subscribe(url(), resume, output, signal));
    } else {
      const body = bodyField(request.body);
      form.append(...body.nodes, button);
      if (request.method === "GET") form.append(tabLink(path, url));
      whenSubmitted(form, button, "Send", output, (signal) =>
        send(url(), { method: request.method, ...body.read() }, output, signal));
    }
    if (request.note) {
      form.append(element("p", { className: "try-it-note" }, `Expect: ${request.note}`));
    }
    const group = element("div", { className: "try-it-row" }, ...parts, output.node);
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `${request.method} ${request.path}`);
    return group;
  };

  /** The button starts `run`; while that goes on, the same button stops it. */
  const whenSubmitted = (form, button, label, output, run) => {
    let current = null;
    button.textContent = label;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (current) {
        current.abort();
        return;
      }
      current = new AbortController();
      running.add(current);
      button.textContent = "Stop";
      output.clear();
      try {
        await run(current.signal);
      } catch (error) {
        const stopped = current.signal.aborted;
        output.line(stopped ? "Stopped." : error.message, stopped ? "" : "bad");
      }
      running.delete(current);
      current = null;
      button.textContent = label;
    });
  };

  /** A field for the body, and `read`, which gives the options that `fetch` takes. */
  const bodyField = (body) => {
    if (!body) return { nodes: [], read: () => ({}) };
    const id = `try-it-${++ids}`;
    const file = FILE_FIELD.exec(body);
    if (file) {
      const input = element("input", { id, type: "file" });
      const label = element("label", { htmlFor: id }, file[1]);
      return { nodes: [label, input], read: () => multipart(file[1], input.files[0]) };
    }
    const area = element("textarea", { id, value: body, rows: 1, spellcheck: false });
    const label = element("label", { htmlFor: id }, "Body");
    return { nodes: [label, area], read: () => typed(area.value) };
  };

  const multipart = (field, file) => {
    if (!file) throw new Error("Choose a file first.");
    const body = new FormData();
    body.append(field, file);
    return { body };
  };

  /** JSON goes as JSON, other text as text. */
  const typed = (text) => {
    if (!text.trim()) return {};
    try {
      JSON.parse(text);
    } catch (error) {
      if (/^\s*[[{"]/.test(text)) throw new Error(`Not sent, this is not JSON: ${error.message}`);
      return { body: text, headers: { "Content-Type": "text/plain" } };
    }
    return { body: text, headers: { "Content-Type": "application/json" } };
  };

  /** The same request as a plain link: what a download or a page does in a browser. */
  const tabLink = (path, url) => {
    const link = element("a", { target: "_blank", rel: "noopener" }, "Open in a tab");
    const update = () => (link.href = url());
    path.addEventListener("input", update);
    update();
    return link;
  };

  // --- HTTP -------------------------------------------------------------------------

  const send = async (url, options, output, signal) => {
    const started = performance.now();
    const response = await fetch(url, { ...options, signal, cache: "no-store" });
    output.head(response);
    const size = await showBody(response, output);
    output.line(`${size}, ${((performance.now() - started) / 1000).toFixed(2)} s`, "dim");
  };

  /** The body as it arrives; returns how much there was. */
  const showBody = async (response, output) => {
    const type = response.headers.get("content-type") ?? "";
    const isText = TEXT.test(type);
    const decoder = new TextDecoder();
    let bytes = 0;
    let count = 0;
    for await (const chunk of chunks(response)) {
      bytes += chunk.length;
      count += 1;
      if (isText) output.text(decoder.decode(chunk, { stream: true }));
    }
    const shown = isText || !bytes ? "" : ", not shown";
    const pieces = count > 1 ? ` in ${count} chunks` : "";
    return `${bytes.toLocaleString("en")} bytes${pieces}${shown}`;
  };

  async function* chunks(response) {
    const reader = response.body?.getReader();
    while (reader) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  }

  // --- server-sent events -----------------------------------------------------------

  // `fetch` and not `EventSource`: it shows the status of a refusal and events of every
  // name, and it can send the Last-Event-ID that a reconnecting browser would send.
  const subscribe = async (url, resume, output, signal) => {
    const headers = { Accept: "text/event-stream", ...resume.headers() };
    const response = await fetch(url, { headers, signal, cache: "no-store" });
    output.head(response);
    if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
      await showBody(response, output);
      return;
    }
    for await (const event of events(response)) {
      if (event.id !== null) resume.seen(event.id);
      const id = event.id === null ? "" : `  id ${event.id}`;
      // The standard says so, and it surprises everybody once.
      const data = event.data ?? "(no data: an EventSource does not fire)";
      output.line(`${event.name}${id}  ${data}`);
    }
    output.line("The server ended the stream.", "dim");
  };

  /** Offers to resume once there is an id to resume from. */
  const resumeBox = () => {
    const box = element("input", { type: "checkbox" });
    const text = element("span");
    const label = element("label", { className: "try-it-resume", hidden: true }, box, text);
    let last = null;
    return {
      label,
      headers: () => (box.checked && last ? { "Last-Event-ID": last } : {}),
      seen: (id) => {
        last = id;
        label.hidden = false;
        text.textContent = `When opened again, send Last-Event-ID: ${id}`;
      },
    };
  };

  async function* events(response) {
    const decoder = new TextDecoder();
    let rest = "";
    let fields = [];
    for await (const chunk of chunks(response)) {
      rest += decoder.decode(chunk, { stream: true });
      // A CR at the end may be half of a CRLF: it waits for the next chunk.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      if (rest.length > 1e6) throw new Error("Stopped: a line of more than a megabyte.");
      for (const line of lines) {
        if (line) {
          fields.push(line);
          continue;
        }
        const event = parseEvent(fields);
        fields = [];
        if (event) yield event;
      }
      if (fields.length > 1e4) throw new Error("Stopped: an event of 10,000 lines.");
    }
  }

  /** One event, or null for comments alone, such as a keep-alive. */
  const parseEvent = (lines) => {
    const event = { name: "message", id: null, data: null };
    let found = false;
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?([\s\S]*)$/.exec(line);
      found ||= ["event", "id", "data"].includes(field);
      if (field === "event" && value) event.name = value;
      if (field === "id") event.id = value;
      if (field === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
    }
    return found ? event : null;
  };

  // --- WebSocket --------------------------------------------------------------------

  const converse = (url, composer, output, signal) =>
    new Promise((resolve) => {
      url.protocol = url.protocol.replace("http", "ws");
      const socket = new WebSocket(url);
      let opened = false;
      signal.addEventListener("abort", () => socket.close(1000));
      socket.onopen = () => {
        opened = true;
        output.line("Connected.", "good");
        composer.use(socket);
      };
      socket.onmessage = ({ data }) =>
        output.line(`← ${typeof data === "string" ? data : `${data.size} bytes, binary`}`);
      socket.onclose = ({ code, reason }) => {
        composer.use(null);
        if (opened) output.line(`Closed: ${code} ${reason}`, "dim");
        else output.line("Refused: a browser does not tell why. See the server's log.", "bad");
        resolve();
      };
    });

  /** The box under an open WebSocket. */
  class Composer {
    constructor(text, output) {
      const id = `try-it-${++ids}`;
      const field = element("textarea", { id, value: text, rows: 1, spellcheck: false });
      const label = element("label", { htmlFor: id }, "Message");
      this.button = element("button", { type: "submit", disabled: true }, "Send");
      this.form = element("form", { className: "try-it-request" }, label, field, this.button);
      this.socket = null;
      this.form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (this.socket?.readyState !== WebSocket.OPEN) return;
        this.socket.send(field.value);
        output.line(`→ ${field.value}`, "dim");
      });
      field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.form.requestSubmit();
      });
    }

    use(socket) {
      this.socket = socket;
      this.button.disabled = socket === null;
    }
  }

  // --- output -----------------------------------------------------------------------

  /** What came back: lines and body text, bounded, always as text. */
  class Output {
    constructor() {
      this.node = element("pre", { className: "try-it-output", hidden: true, tabIndex: 0 });
      this.node.setAttribute("role", "log");
      this.node.setAttribute("aria-live", "polite");
      this.node.setAttribute("aria-label", "Answer");
      this.clear();
    }

    clear() {
      this.node.replaceChildren();
      this.node.hidden = true;
      this.body = null;
      this.room = KEPT_CHARACTERS;
    }

    head(response) {
      const kind = response.ok ? "good" : "bad";
      this.line(`${response.status} ${response.statusText}`, kind);
      for (const [name, value] of response.headers) {
        if (!UNSEEN_HEADERS.has(name)) this.line(`${name}: ${value}`, "dim");
      }
    }

    line(text, kind = "") {
      const cut = text.length > KEPT_CHARACTERS ? `${text.slice(0, KEPT_CHARACTERS)} …` : text;
      this.add(element("div", { className: kind && `try-it-${kind}` }, cut));
      while (this.node.childElementCount > KEPT_LINES) this.node.firstElementChild.remove();
    }

    text(text) {
      if (!this.body) {
        this.body = element("div", { className: "try-it-body" });
        this.add(this.body);
      }
      const more = text.length > this.room;
      if (this.room > 0) this.body.append(text.slice(0, this.room), more ? " …" : "");
      this.room -= text.length;
      this.follow();
    }

    add(node) {
      this.node.hidden = false;
      this.node.append(node);
      this.follow();
    }

    follow() {
      this.node.scrollTop = this.node.scrollHeight;
    }
  }

  const element = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  // With instant navigation the theme emits each page; without, there is only this one.
  if (window.document$) window.document$.subscribe(start);
  else if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
  window.addEventListener("pagehide", stopAll);
})();
