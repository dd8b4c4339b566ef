// The real socket.io-client, driven by lines of JSON: one command a line in, one event a line out.

import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url, options] = [process.argv[2], JSON.parse(process.argv[3] ?? "{}")];
let last = options.last_event_id ?? null;

const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const socket = io(url, {
  transports: options.transports ?? ["polling", "websocket"],
  reconnectionDelay: 100,
  reconnectionDelayMax: 300,
  auth: (give) => give({ ...options.auth, ...(last && { last_event_id: last }) }),
});

socket.on("connect", () => tell({ connected: socket.id, transport: socket.io.engine.transport.name }));
socket.on("disconnect", (reason) => tell({ disconnected: reason }));
socket.on("connect_error", (error) => tell({ refused: error.message, data: error.data ?? null }));
socket.io.on("reconnect_attempt", () => {});
socket.io.engine.on("upgrade", (transport) => tell({ upgraded: transport.name }));
socket.onAny((event, data) => {
  if (data?.id) last = data.id;
  tell({ event, data });
});

createInterface({ input: process.stdin }).on("line", (line) => {
  const { emit, args = [], files = [] } = JSON.parse(line);
  if (!emit) {
    socket.disconnect();
    process.exit(0);
  }
  const binary = files.map((file) => Buffer.from(file, "base64"));
  socket.emit(emit, ...args, ...binary, (answer) => tell({ ack: answer }));
});
