/** A daemon of its own for the tests: its home is a new folder, its guest kernels are those of the usual one. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = new URL('../..', import.meta.url).pathname;
const program =
  process.env.QUEZTL_HV ??
  ['release', 'debug'].map((profile) => join(root, 'target', profile, 'queztl-hv')).find(existsSync) ??
  'queztl-hv';
const usualHome = process.env.QUEZTL_HOME ?? '/var/lib/queztl';

export class Daemon {
  private readonly home = mkdtempSync(join(tmpdir(), 'queztl-e2e-'));

  constructor() {
    const kernels = join(usualHome, 'kernels');
    if (existsSync(kernels))
      cpSync(kernels, join(this.home, 'kernels'), { recursive: true, dereference: true });
  }

  /** Runs the program; gives what it printed. */
  run(...words: string[]): string {
    const env = { ...process.env, QUEZTL_HOME: this.home };
    return execFileSync(program, words, { env, encoding: 'utf8', timeout: 120_000 }).trim();
  }

  /** Where other daemons of this host reach it. */
  get address(): string {
    return `unix:${join(this.home, 'daemon.sock')}`;
  }

  /** A file of its home, for what all daemons of a test see. */
  path(name: string): string {
    return join(this.home, name);
  }

  /** An address that logs in, once. */
  login(): string {
    return this.run('dashboard', '--no-open');
  }

  stop() {
    this.run('daemon', 'stop');
  }

  /** Ends all machines and the daemon, and removes what they had. */
  end() {
    const names = this.run('list', '-o', 'name').split('\n').filter(Boolean);
    if (names.length > 0) this.run('delete', '--force', ...names);
    this.stop();
    rmSync(this.home, { recursive: true, force: true });
  }
}
