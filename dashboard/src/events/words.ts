import type { Event } from '../api/types';

/** Whether an event has each word somewhere. */
export function matches(event: Event, find: string): boolean {
  const text = Object.values(event).join(' ').toLowerCase();
  return find
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

/** Red for what should not be, orange for what should be looked at. */
export function colour(event: Event): string {
  if (event.event === 'vm-panicked') return 'red';
  if (event.event === 'vm-changed' && event.state === 'crashed') return 'red';
  if (event.event === 'alert-firing' || event.event === 'warning' || event.event === 'lost') return 'orange';
  return 'gray';
}
