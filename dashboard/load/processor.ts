/** What processes take of the host's processors. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const TICKS_PER_SECOND = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));

/** Seconds that a process has worked (proc(5), fields 14 and 15 of `stat`). */
export function worked(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Percent of one processor, over so many seconds. */
export async function share(pid: number, seconds: number): Promise<number> {
  const [before, start] = [worked(pid), performance.now()];
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  return ((worked(pid) - before) / (performance.now() - start)) * 1e5;
}
