/** Terminals of a machine over WebSockets: its console, and shells that its agent runs. */
import { openSocket } from '../api/client';
import type { Problem } from '../api/types';

export interface Size {
  rows: number;
  columns: number;
}

/** Who is told what comes. */
export interface Sink {
  output: (bytes: Uint8Array) => void;
  /** It is over: why, and whether it makes sense to connect again by itself. */
  ended: (why: string, again: boolean) => void;
}

/** One connected terminal. */
export interface Link {
  input: (text: string) => void;
  resize: (size: Size) => void;
  close: () => void;
}

export type LinkKind = 'console' | 'shell';

/** Close codes of WebSockets (RFC 6455 §7.4.1). */
const NORMAL = 1000;

const encoder = new TextEncoder();

/** The console. What was printed last comes first, so that nothing is lost when one comes back. */
export function openConsole(vm: string, size: Size, sink: Sink): Link {
  const socket = openSocket(`/v1/vms/${encodeURIComponent(vm)}/console`);
  const keys = keysOf(socket);
  const resize = (size: Size) => send(socket, JSON.stringify({ type: 'resize', ...size }));
  socket.onopen = () => {
    resize(size);
    keys.opened();
  };
  socket.onmessage = ({ data }) => sink.output(new Uint8Array(data as ArrayBuffer));
  socket.onclose = ({ code, reason }) => sink.ended(reason || 'the connection is lost', code !== NORMAL);
  return { input: keys.input, resize, close: () => drop(socket) };
}

/** The best shell that the guest has, in a terminal of its own. */
const SHELL = ['/bin/sh', '-c', 'command -v bash >/dev/null && exec bash -l; exec sh -l'];
/** The first byte of a frame of output (`crates/api/src/exec.rs`). */
const HEADER = 1;

type Notice =
  | { type: 'started' }
  | { type: 'exited'; status: number | null; signal: number | null }
  | { type: 'problem'; problem: Problem };

/** A shell. The daemon keeps it for a while when the page goes, and this tab finds it again by its word. */
export function openShell(vm: string, size: Size, sink: Sink): Link {
  const socket = openSocket(`/v1/vms/${encodeURIComponent(vm)}/exec/stream`);
  const keys = keysOf(socket);
  const env = { TERM: 'xterm-256color' };
  const keep = wordOf(vm);
  let [last, over] = ['the connection is lost', false];
  socket.onopen = () => {
    send(socket, JSON.stringify({ command: SHELL, env, tty: size, stdin: true, keep }));
    keys.opened();
  };
  socket.onmessage = ({ data }) => {
    if (typeof data === 'string') {
      const end = words(JSON.parse(data) as Notice);
      if (end === undefined) return;
      [last, over] = [end, true];
      forget(vm);
    } else sink.output(new Uint8Array(data as ArrayBuffer).subarray(HEADER));
  };
  // A shell that has not ended is still there.
  socket.onclose = ({ code, reason }) => sink.ended(reason || last, !over && code !== NORMAL);
  return {
    input: keys.input,
    resize: (size) => send(socket, JSON.stringify({ type: 'resize', ...size })),
    close: () => drop(socket),
  };
}

const keyOf = (vm: string) => `shell of ${vm}`;

/** This tab's word for its shell of a machine; the next shell has another one. */
export function wordOf(vm: string): string {
  const known = sessionStorage.getItem(keyOf(vm));
  if (known) return known;
  const word = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, '0'),
  ).join('');
  sessionStorage.setItem(keyOf(vm), word);
  return word;
}

function forget(vm: string) {
  sessionStorage.removeItem(keyOf(vm));
}

/** How a shell ended, if this says so. */
export function words(notice: Notice): string | undefined {
  switch (notice.type) {
    case 'started':
      return undefined;
    case 'exited':
      return notice.signal === null
        ? `the shell ended with status ${notice.status}`
        : `signal ${notice.signal} ended the shell`;
    case 'problem':
      return notice.problem.detail;
  }
}

/** What is typed before the connection stands, characters. */
const MOST_EARLY = 4096;

/** Keys on their way: what is typed while it is still being connected is sent once it is. */
function keysOf(socket: WebSocket) {
  let early = '';
  return {
    input: (text: string) => {
      if (socket.readyState === WebSocket.CONNECTING) early = (early + text).slice(0, MOST_EARLY);
      else send(socket, encoder.encode(text));
    },
    opened: () => {
      if (early) send(socket, encoder.encode(early));
      early = '';
    },
  };
}

function send(socket: WebSocket, data: string | Uint8Array<ArrayBuffer>) {
  if (socket.readyState === WebSocket.OPEN) socket.send(data);
}

function drop(socket: WebSocket) {
  socket.onclose = null;
  socket.close();
}
