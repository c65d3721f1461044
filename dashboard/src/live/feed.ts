/**
 * Events as they happen, over one WebSocket. Each tells the cache what is no longer true, and joins the list of events.
 *
 * ```text
 * connecting ─> live <─(tried after 1 s, 2 s, … 15 s, from the last event that is known)─ lost
 *                 └─ the connection ends ─> lost ─ the session is over ─> ended
 * ```
 */
import type { QueryClient, QueryKey } from '@tanstack/react-query';
import { openSocket } from '../api/client';
import { keys } from '../api/queries';
import type { Event } from '../api/types';

export type FeedState = 'connecting' | 'live' | 'lost' | 'ended';

const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 15_000;
/** Events come in crowds: what they make untrue is asked for once. */
const GATHER_MS = 150;
const KEPT_EVENTS = 2_000;

export interface FeedOptions {
  cache: QueryClient;
  onState: (state: FeedState) => void;
  /** Tells whether the session still holds; asked when the connection is lost. */
  stillLoggedIn: () => Promise<boolean>;
}

/** Starts following; the function that comes back ends it. */
export function followEvents({ cache, onState, stillLoggedIn }: FeedOptions): () => void {
  let [socket, timer, pause, over]: [WebSocket | undefined, number | undefined, number, boolean] = [
    undefined,
    undefined,
    FIRST_PAUSE_MS,
    false,
  ];
  let last: number | undefined;
  const stale = gatherer((touched) => {
    for (const key of touched) void cache.invalidateQueries({ queryKey: key });
  });

  const connect = () => {
    socket = openSocket(`/v1/events/stream${last === undefined ? '' : `?after=${last}`}`);
    socket.onopen = () => {
      pause = FIRST_PAUSE_MS;
      onState('live');
      // What happened while nobody listened is not known.
      stale([keys.vms, keys.operations, keys.images, keys.info, keys.alerts]);
    };
    socket.onmessage = ({ data }) => {
      const event = JSON.parse(String(data)) as Event;
      last = event.sequence;
      cache.setQueryData<Event[]>(keys.events, (known) => joined(known, event));
      stale(touchedBy(event));
    };
    socket.onclose = () => void lost();
  };

  const lost = async () => {
    if (over) return;
    onState('lost');
    if (!(await stillLoggedIn())) {
      if (!over) onState('ended');
      return;
    }
    if (over) return;
    timer = window.setTimeout(connect, pause);
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  };

  onState('connecting');
  connect();
  return () => {
    over = true;
    window.clearTimeout(timer);
    socket?.close();
  };
}

/** The list with one more, in order and without doubles. */
export function joined(known: Event[] | undefined, event: Event): Event[] | undefined {
  if (!known || (known.at(-1)?.sequence ?? -1) >= event.sequence) return known;
  return [...known, event].slice(-KEPT_EVENTS);
}

/** What an event makes untrue. */
export function touchedBy(event: Event): QueryKey[] {
  if (event.event.startsWith('vm-')) return [keys.vms];
  if (event.event.startsWith('snapshot-')) return [keys.vms];
  if (event.event.startsWith('image-')) return [keys.images];
  if (event.event.startsWith('operation-')) return [keys.operations, keys.benchmarks];
  if (event.event.startsWith('alert-')) return [keys.alerts];
  if (event.event === 'lost') return [keys.vms, keys.operations, keys.images, keys.events, keys.alerts];
  return [];
}

function gatherer(give: (touched: QueryKey[]) => void): (more: QueryKey[]) => void {
  const touched = new Map<string, QueryKey>();
  let waiting = false;
  return (more) => {
    for (const key of more) touched.set(key.join(), key);
    if (waiting || touched.size === 0) return;
    waiting = true;
    window.setTimeout(() => {
      waiting = false;
      const gathered = [...touched.values()];
      touched.clear();
      give(gathered);
    }, GATHER_MS);
  };
}
