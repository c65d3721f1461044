// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { openConsole, openShell, words } from './links';

class FakeSocket {
  static readonly CONNECTING = 0;
  static readonly OPEN = 1;
  static last: FakeSocket;
  readyState = FakeSocket.OPEN;
  sent: (string | Uint8Array)[] = [];
  onopen?: () => void;
  onclose?: ((event: { code: number; reason: string }) => void) | null;
  onmessage?: (message: { data: string | ArrayBuffer }) => void;
  constructor(readonly url: URL) {
    FakeSocket.last = this;
  }
  send(data: string | Uint8Array) {
    this.sent.push(data);
  }
  close() {
    this.onclose?.({ code: 1000, reason: '' });
  }
}

const size = { rows: 24, columns: 80 };
const frame = (...bytes: number[]) => new Uint8Array(bytes).buffer;

beforeEach(() => {
  vi.stubGlobal('WebSocket', FakeSocket);
});
afterEach(() => {
  vi.unstubAllGlobals();
});

describe('a console', () => {
  it('tells its size, then carries bytes both ways', () => {
    const sink = { output: vi.fn(), ended: vi.fn() };
    const link = openConsole('web-1', size, sink);
    const socket = FakeSocket.last;
    socket.onopen?.();
    link.input('ls\r');
    socket.onmessage?.({ data: frame(104, 105) });

    expect(socket.url.pathname).toBe('/v1/vms/web-1/console');
    expect(JSON.parse(String(socket.sent[0]))).toEqual({ type: 'resize', rows: 24, columns: 80 });
    expect([...(socket.sent[1] as Uint8Array)]).toEqual([108, 115, 13]);
    expect(sink.output).toHaveBeenCalledWith(new Uint8Array([104, 105]));
  });

  it('sends what was typed before it was connected, in order', () => {
    const link = openConsole('web-1', size, { output: vi.fn(), ended: vi.fn() });
    const socket = FakeSocket.last;
    socket.readyState = FakeSocket.CONNECTING;
    link.input('l');
    link.input('s');
    expect(socket.sent).toEqual([]);
    socket.readyState = FakeSocket.OPEN;
    socket.onopen?.();
    link.input('\r');

    expect(socket.sent.slice(1).map((keys) => new TextDecoder().decode(keys as Uint8Array))).toEqual([
      'ls',
      '\r',
    ]);
  });

  it('comes back by itself when the connection is lost, not when the machine has ended', () => {
    const sink = { output: vi.fn(), ended: vi.fn() };
    openConsole('a', size, sink);
    FakeSocket.last.onclose?.({ code: 1006, reason: '' });
    expect(sink.ended).toHaveBeenLastCalledWith('the connection is lost', true);
    FakeSocket.last.onclose?.({ code: 1000, reason: 'the machine has ended' });
    expect(sink.ended).toHaveBeenLastCalledWith('the machine has ended', false);
  });

  it('says nothing when the page leaves it', () => {
    const sink = { output: vi.fn(), ended: vi.fn() };
    openConsole('a', size, sink).close();
    expect(sink.ended).not.toHaveBeenCalled();
  });
});

describe('a shell', () => {
  it('starts in a terminal of the right size and shows output without its header', () => {
    const sink = { output: vi.fn(), ended: vi.fn() };
    openShell('a', size, sink);
    const socket = FakeSocket.last;
    socket.onopen?.();
    socket.onmessage?.({ data: frame(1, 36, 32) });

    expect(JSON.parse(String(socket.sent[0]))).toMatchObject({ tty: size, stdin: true });
    expect(sink.output).toHaveBeenCalledWith(new Uint8Array([36, 32]));
  });

  it('is found again by its word until it has ended', () => {
    const sink = { output: vi.fn(), ended: vi.fn() };
    const start = () => {
      openShell('kept', size, sink);
      FakeSocket.last.onopen?.();
      return JSON.parse(String(FakeSocket.last.sent[0])).keep as string;
    };
    const first = start();
    FakeSocket.last.onclose?.({ code: 1006, reason: '' });
    expect(sink.ended).toHaveBeenLastCalledWith('the connection is lost', true);
    const again = start();
    FakeSocket.last.onmessage?.({ data: JSON.stringify({ type: 'exited', status: 0, signal: null }) });
    FakeSocket.last.onclose?.({ code: 1000, reason: '' });
    expect(sink.ended).toHaveBeenLastCalledWith('the shell ended with status 0', false);

    expect(again).toBe(first);
    expect(start()).not.toBe(first);
  });

  it('says how it ended', () => {
    expect(words({ type: 'exited', status: 3, signal: null })).toBe('the shell ended with status 3');
    expect(words({ type: 'exited', status: null, signal: 9 })).toBe('signal 9 ended the shell');
  });
});
